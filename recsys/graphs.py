"""The graph around items as a box of a run: made of fitted parts and feature tables, kept as arrays and a manifest."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
from safetensors.numpy import load_file, save_file

from recsys import schema
from recsys.boxes import Box
from recsys.dataset import Dataset
from recsys.errors import ConfigError, FeatureError, nearest
from recsys.features.field_table import load_table
from recsys.files import new_folder, write_json
from recsys.graph_config import GraphConfig
from recsys.item_graph import ItemGraph
from recsys.models.graph.build import build_graph
from recsys.splits import Split

VERSION = 1


def make_graph(
    box: Box,
    config: GraphConfig,
    parts: tuple[str, ...],
    data: Box,
    split_box: Box,
    tables: Mapping[str, Box],
) -> None:
    """The graph of what the parts hold; rows of other parts are not in reach."""
    split = Split.load(split_box.folder)
    loaded = {name: load_table(made.folder) for name, made in tables.items()}
    for name, table in loaded.items():
        table.check_split(split.id)
        if table.entity != "item":
            raise ConfigError(f"[graph] names {name!r}, a table of users", expected="item tables")
    pairs_3N = None if config.pairs is None else _pairs(Dataset.open(data.folder), split, config.pairs.kinds)
    made_of = {
        "split": split.id,
        "parts": list(parts),
        "features": {name: table.fingerprint for name, table in loaded.items()},
        "settings": config.model_dump(mode="json"),
    }
    rows = {name: table.align(split.item_ids) for name, table in loaded.items()}
    save_graph(box.folder, build_graph(config, split.fit_log(parts), rows, pairs_3N, made_of))


def _pairs(dataset: Dataset, split: Split, kinds: tuple[str, ...]) -> np.ndarray | None:
    """Rows item, other item, rank; pairs with an item outside the catalogue are left out. None: there are no pairs."""
    if not dataset.has("pairs"):
        return None
    pairs = dataset.scan("pairs").collect()
    known = pairs[schema.KIND].unique().to_list()
    for kind in kinds:
        if kind not in known:
            raise ConfigError(f"graph.pairs.kinds names {kind!r}", fix=nearest(kind, known))
    if kinds:
        pairs = pairs.filter(pl.col(schema.KIND).is_in(kinds))
    places = pl.DataFrame({schema.ITEM: split.item_ids, "place": np.arange(split.num_items)})
    for column in (schema.ITEM, schema.OTHER):
        own = places.rename({schema.ITEM: column, "place": f"{column} place"})
        pairs = pairs.join(own, on=column, how="inner")
    columns = (f"{schema.ITEM} place", f"{schema.OTHER} place", schema.RANK)
    return np.stack([pairs[column].cast(pl.Int64).to_numpy() for column in columns])


def save_graph(path: Path, graph: ItemGraph) -> None:
    """graph.safetensors and graph.json, which names what the graph was made of."""
    with new_folder(path) as folder:
        arrays = {name: np.ascontiguousarray(value) for name, value in graph.arrays().items()}
        save_file(arrays, folder / "graph.safetensors")
        write_json(folder / "graph.json", graph.facts())


def load_graph(path: Path, split: Split, tables: Mapping[str, Box]) -> ItemGraph:
    """What `make_graph` left. Raises FeatureError where it was made of another split or other feature tables."""
    facts = json.loads((path / "graph.json").read_text(encoding="utf-8"))
    graph = ItemGraph.of(facts, load_file(path / "graph.safetensors"))
    if graph.made_of["split"] != split.id:
        raise FeatureError("the graph was made of another split", where=path, fix="make it again")
    for name, fingerprint in graph.made_of["features"].items():
        if name in tables and load_table(tables[name].folder).fingerprint != fingerprint:
            raise FeatureError(
                f"the graph was made of another table {name!r}", where=path, fix="make it again"
            )
    return graph
