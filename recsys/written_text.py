"""Texts for items that have none: a writer is trained on those that have one, and its texts are marked as written.

A run's folder:
run.json              settings, what the language model and the features are, how training went
weights.safetensors   what was learnt; the frozen language model is named by its hash, not kept
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
from pydantic import Field

from recsys import schema
from recsys.config import Config, parse
from recsys.dataset import Dataset
from recsys.errors import FeatureError, ModelError
from recsys.features.language import open_language_model
from recsys.features.table import FeatureTable, Table
from recsys.features.text.clean import clean_text
from recsys.features.text.extractor import TextConfig, TextExtractor, template_columns
from recsys.files import digest, locked, write_json
from recsys.learnt_run import check_language, read_run, read_weights, write_run
from recsys.models.graph.writer import TextWriter
from recsys.models.graph.writer_config import WriterConfig
from recsys.models.graph.writer_content import WriterContent, WriterContext, alike
from recsys.models.graph.writer_language import CausalModel
from recsys.train import fit
from recsys.train_config import TrainConfig

VERSION = 1
_KIND = "writer"


class WriterRecipe(Config):
    """What a run is made by."""

    language: str = "smollm2"
    """The causal language model: "smollm2" (from its package), a hub name or a local folder."""
    column: str = schema.TEXT
    """The column of items that is written where it is missing."""
    template: str = "Title: {title}. Genres: {category}"
    """What the model is told of an item: columns in braces, without the one that it writes."""
    ending: str = "\nPlot:"
    """Put behind the filled template: what comes next is the text."""
    nearest: Annotated[tuple[str, ...], Field(min_length=1)] = ("image",)
    """Feature tables that neighbours are found by; none that is made of the column."""
    config: WriterConfig = WriterConfig()
    """The writer."""
    train: TrainConfig = TrainConfig(epochs=3, lr=3e-4, schedule="cosine")
    """The loop; its learning rate is that of the adapters."""

    @property
    def tables(self) -> tuple[str, ...]:
        """All feature tables that are needed, each once."""
        return tuple(dict.fromkeys((*self.config.reads, *self.nearest)))


def writer_content(dataset: Dataset, recipe: WriterRecipe, tables: Mapping[str, Table]) -> WriterContent:
    """All items of a Dataset, in its order. Raises FeatureError where a table that neighbours are found by, or of which
    an item reads its own row, is made of the column to be written."""
    items, column = dataset.items, recipe.column
    if column not in items.columns:
        raise FeatureError(f"items have no column {column!r}", expected=f"one of: {', '.join(items.columns)}")
    if column in template_columns(recipe.template):
        raise FeatureError(f"the template tells {column!r}, which is to be written", fix="leave it out")
    dense = {}
    for name in recipe.tables:
        if name not in tables:
            raise FeatureError(
                f"no feature table {name!r}", expected=f"one of: {', '.join(tables) or 'none'}"
            )
        table = tables[name]
        if not isinstance(table, FeatureTable):
            raise FeatureError(f"table {name!r} holds typed fields", expected="a table of vectors")
        told = name in recipe.nearest or name in recipe.config.own
        if told and column in _columns(table.manifest):
            raise FeatureError(
                f"table {name!r} is made of {column!r}, which is to be written",
                fix="find neighbours by another table, and leave it out of config.own",
            )
        dense[name] = table.align(items[schema.ITEM])
    texts = [None if value is None else clean_text(str(value)) for value in items[column].to_list()]
    known_I = np.array([text is not None for text in texts])
    filled = TextExtractor(TextConfig(template=recipe.template)).contents(items, None)
    prompts = [(told or "") + recipe.ending for told in filled]
    found_IN = alike([dense[name] for name in recipe.nearest], known_I, recipe.config.neighbours)
    return WriterContent(prompts, texts, dense, found_IN)


def _columns(facts: Any) -> set[str]:
    """All that the templates of a manifest name, those of tables that it was made of included."""
    if not isinstance(facts, Mapping):
        return set()
    found = set().union(*map(_columns, facts.values()))
    template = facts.get("template")
    return found | set(template_columns(template)) if isinstance(template, str) else found


def train_writer(
    dataset: Dataset,
    recipe: WriterRecipe,
    tables: Mapping[str, Table],
    out: str | Path,
    *,
    seed: int = 0,
    device: str = "cpu",
) -> "WriterRun":
    """Learn from the items that have a text, and write the run. A killed training goes on where it stood."""
    out = Path(out)
    content = writer_content(dataset, recipe, tables)
    opened = causal_model(recipe.language)
    made_of = {name: tables[name].fingerprint for name in recipe.tables}
    settings = recipe.model_dump(mode="json")
    work = out.with_name(f".{out.name}.{digest([settings, seed, dataset.fingerprint, made_of])[:12]}")
    with locked(work):
        writer = TextWriter(recipe.config)
        ctx = WriterContext(content, lambda: opened, seed=seed, device=device, folder=work)
        progress = fit(writer, ctx, recipe.train)
    facts = {
        "recipe": settings,
        "seed": seed,
        "language": dict(opened.facts),
        "features": {name: dict(tables[name].manifest) for name in recipe.tables},
        "dataset": {"name": dataset.name, "fingerprint": dataset.fingerprint},
        "learnt_from": len(content.known),
        "training": progress.history,
    }
    write_run(out, _KIND, VERSION, facts, writer.state())
    shutil.rmtree(work)
    return WriterRun.open(out)


def causal_model(name: str) -> CausalModel:
    """By name, in float32. Raises FeatureError where it cannot be had."""
    found, tokenizer = open_language_model(name, writes=True)
    return CausalModel(found.model, tokenizer, found.facts)


@dataclass(frozen=True)
class WriterRun:
    """A trained writer on disk. facts: run.json."""

    folder: Path
    facts: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> "WriterRun":
        """Reads the facts alone. Raises FeatureError where the folder is no run, or another version's."""
        return cls(Path(folder), read_run(Path(folder), _KIND, VERSION))

    @cached_property
    def recipe(self) -> WriterRecipe:
        return parse(WriterRecipe, self.facts["recipe"], where=self.folder)

    def identity(self) -> dict[str, Any]:
        """What a text depends on besides the items: no paths."""
        return {name: self.facts[name] for name in ("weights", "language", "features")} | {
            "settings": digest(self.facts["recipe"])[:16]
        }

    @cached_property
    def writer(self) -> TextWriter:
        """Loaded with its language model. Raises FeatureError where a hash is another than when it was trained."""
        weights = read_weights(self.folder, self.facts)
        language = causal_model(self.recipe.language)
        check_language(self.facts, language.facts, self.recipe.language)
        try:
            return TextWriter.from_state(self.recipe.config, weights, language)
        except ModelError as error:
            raise FeatureError(str(error), where=self.folder, fix="train it again") from None

    def write(self, dataset: Dataset, tables: Mapping[str, Table]) -> dict[int, str]:
        """Row of the items table -> text, of the items without one; a row of which nothing came is left out.

        Raises FeatureError where a table was made by another extractor than the one the run learnt with.
        """
        for name, manifest in self.facts["features"].items():
            if name in tables and digest(dict(tables[name].manifest)) != digest(manifest):
                raise FeatureError(
                    f"table {name!r} is not made as the one that the run learnt with", where=self.folder
                )
        content = writer_content(dataset, self.recipe, tables)
        missing_N = np.setdiff1d(np.arange(len(content)), content.known)
        made = zip(missing_N.tolist(), self.writer.write(content, missing_N), strict=True)
        return {row: text for row, raw in made if (text := clean_text(raw)) is not None}

    def filled(self, dataset: Dataset, written: Mapping[int, str]) -> pl.DataFrame:
        """The items with what `write` gave in its column."""
        column = self.recipe.column
        values: Sequence[Any] = dataset.items[column].to_list()
        texts = [written.get(row, value) for row, value in enumerate(values)]
        return dataset.items.with_columns(pl.Series(column, texts, pl.String))


def fill_text(dataset: Dataset, run: WriterRun, tables: Mapping[str, Table], out: str | Path) -> Dataset:
    """A Dataset at `out` like this one with missing texts written. written.json beside its tables says of which items,
    and by what."""
    written = run.write(dataset, tables)
    made = _with_items(dataset, run.filled(dataset, written), out)
    ids = dataset.items[schema.ITEM]
    rows = {"column": run.recipe.column, "by": run.identity(), "items": [ids[row] for row in written]}
    write_json(Path(out) / "written.json", rows)
    return made


def hide_text(dataset: Dataset, ids: pl.Series, out: str | Path, column: str = schema.TEXT) -> Dataset:
    """A Dataset at `out` like this one without the texts of these items: what a writer is judged on."""
    kept = pl.when(~pl.col(schema.ITEM).is_in(ids.implode())).then(pl.col(column))
    return _with_items(dataset, dataset.items.with_columns(kept.alias(column)), out)


def _with_items(dataset: Dataset, items: pl.DataFrame, out: str | Path) -> Dataset:
    frames = {name: dataset.scan(name) for name in dataset.manifest["tables"] if name != "items"}
    return Dataset.from_frames(
        out, items=items, name=dataset.name, source=dataset.manifest["source"], media_root=dataset.media_root,
        licence=dataset.manifest["licence"], licence_text=dataset.licence_text, **frames,
    )  # fmt: skip
