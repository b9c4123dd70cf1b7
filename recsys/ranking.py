"""The second stage of a run: lists of candidates from the `ranker` part, trees learnt from them, and whether they are
worth shipping.

Generators are fitted on the part before. Labels are what users took in the ranker part; a positive that no generator
finds is not put in by hand, and counts as a miss wherever lists are judged.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from recsys import schema
from recsys.boxes import Box
from recsys.dataset import Dataset
from recsys.errors import ConfigError, DataError
from recsys.evaluate import BATCH, evaluate
from recsys.features.whitening import Whitening
from recsys.fields import as_vectors
from recsys.files import new_folder, write_json
from recsys.fitting import Fit, aligned_tables
from recsys.impressions import shown_lists
from recsys.judgements import Judgements
from recsys.models.base import Model
from recsys.models.ranker import fit_ranker
from recsys.popularity import Popularity
from recsys.progress import track
from recsys.protocol import Protocol
from recsys.ranker_config import RankerConfig
from recsys.ranking_features import Asked, Items, feature_names, ranking_features
from recsys.schema import Dense, Ragged
from recsys.splits import Split
from recsys.stats import paired_test
from recsys.two_stage import Ranker, candidate_rows

VERSION = 1
JUDGED_AT = 10
"""Cut-off of the NDCG that decides whether a ranker is shipped."""


@dataclass(frozen=True)
class Lists:
    """Candidates of all queries that teach something: list after list, lengths in group_Q. recall: share of the targets
    that the generators found, None for lists that were shown; queries: how many there were. places_N: where items stood
    in lists that were shown."""

    features_NF: np.ndarray
    labels_N: np.ndarray
    group_Q: np.ndarray
    recall: float | None
    queries: int
    places_N: np.ndarray | None = None


def make_ranker(
    box: Box, config: RankerConfig, fits: list[Fit], data: Box, split_box: Box, tables: Mapping[str, Box]
) -> None:
    """Learn, judge on the valid part, and keep both; test data is not in reach."""
    split = Split.load(split_box.folder)
    models = {fit.job.name: fit.model() for fit in fits}
    known = {name: as_vectors(table) for (_, name), table in aligned_tables(split, tables).items()}
    ranker = learnt(config, models, split, Dataset.open(data.folder), known)
    with new_folder(box.folder) as folder:
        save_ranker(ranker, folder)


def generators(config: RankerConfig, fits: Sequence[Fit]) -> list[Fit]:
    """The fit of the first seed of every generator, in the order of the recipe."""
    first: dict[str, Fit] = {}
    for fit in fits:
        first.setdefault(fit.job.name, fit)
    return [first[name] for name in config.generators]


def save_ranker(ranker: Ranker, folder: Path) -> None:
    save_file(
        {name: np.ascontiguousarray(v) for name, v in ranker.arrays().items()}, folder / "ranker.safetensors"
    )
    (folder / "ranker.txt").write_text(ranker.trees.text, encoding="utf-8")
    write_json(folder / "ranker.json", ranker.settings())


def load_ranker(folder: Path) -> Ranker:
    settings = json.loads((folder / "ranker.json").read_text(encoding="utf-8"))
    text = (folder / "ranker.txt").read_text(encoding="utf-8")
    return Ranker.of(settings, load_file(folder / "ranker.safetensors"), text)


def learnt(
    config: RankerConfig,
    models: Mapping[str, Model],
    split: Split,
    dataset: Dataset,
    tables: Mapping[str, Dense],
) -> Ranker:
    """The trees, and in `facts` how they were judged. Raises ConfigError for a split without a part `ranker`."""
    if split.config.method != "staged":
        raise ConfigError(
            f"[ranker] on a {split.config.method} split", expected='split.method = "staged"',
            fix="it has a part of its own for the ranker, after that of the generators",
        )  # fmt: skip
    if not dataset.has_time:
        raise DataError("a ranker needs times", where=dataset.path, expected="a column timestamp")
    counts_I = split.fit_log().item_counts()
    maps = {
        name: Whitening.fit(tables[name], counts_I > 0, config.dims, scaled=False) for name in config.tables
    }
    items, categories = _items(dataset, split, maps, tables)
    names = feature_names(config.generators, config.tables, judged=config.judgements is not None)
    items_for = _items_for(config, split, items)
    lists = (_lists if config.impressions is None else _shown_lists)(config, models, split, items_for)
    items = items_for(-1)
    trees = fit_ranker(config, lists.features_NF, lists.labels_N, lists.group_Q, names, lists.places_N)
    ranker = Ranker(
        config.generators, config.per_generator, trees, items,
        {name: (map.mean_F, map.map_FK) for name, map in maps.items()}, categories, {},
    )  # fmt: skip
    facts = _judged(config, ranker, models, split) | {
        "lists": len(lists.group_Q),
        "candidates": len(lists.labels_N),
        "queries": lists.queries,
        "recall": lists.recall,
        "gains": trees.gains,
    }
    return Ranker(
        ranker.generators, ranker.per_generator, trees, items, ranker.maps, ranker.categories, facts
    )


def _items(
    dataset: Dataset, split: Split, maps: Mapping[str, Whitening], tables: Mapping[str, Dense]
) -> tuple[Items, tuple[str, ...]]:
    content, present = {}, {}
    for name, whitening in maps.items():
        table = tables[name]
        rows_ID = whitening(table.values_EF, table.present_E)
        rows_ID[~table.present_E] = 0
        length_I1 = np.linalg.norm(rows_ID, axis=1, keepdims=True)
        content[name] = rows_ID / np.maximum(length_I1, 1e-12)
        present[name] = table.present_E
    size = split.num_items
    if schema.CATEGORY not in dataset.items.columns:
        return Items(content, present, Ragged.empty(size), 0), ()
    rows = split.item_ids.to_frame(schema.ITEM).join(
        dataset.items.select(schema.ITEM, schema.CATEGORY), on=schema.ITEM, how="left", maintain_order="left"
    )
    lists = [found or [] for found in rows[schema.CATEGORY].to_list()]
    names = tuple(sorted({name for found in lists for name in found}))
    code_of = {name: code for code, name in enumerate(names)}
    codes = Ragged.of([[code_of[name] for name in found] for found in lists])
    return Items(content, present, codes, len(names)), names


def _items_for(config: RankerConfig, split: Split, items: Items) -> Callable[[int], Items]:
    """What is known of items where a user asks: judgements without those that this user was asked for; -1 = all."""
    if config.judgements is None:
        return lambda user: items
    judged = Judgements.open(config.judgements, split)
    return lambda user: replace(items, judged=judged.of(user))


def _lists(
    config: RankerConfig, models: Mapping[str, Model], split: Split, items_for: Callable[[int], Items]
) -> Lists:
    asked = split.queries("ranker")
    if len(asked) > config.queries:
        drawn = np.random.default_rng(config.seed).permutation(len(asked))[: config.queries]
        asked = asked.take(np.sort(drawn))
    popularity = Popularity.of_log(split.fit_log(("train", "ranker")))
    features, labels, lengths, found, wanted = [], [], [], 0, 0
    for start in track(range(0, len(asked), BATCH), "candidates for the ranker"):
        part = asked.take(slice(start, start + BATCH))
        scores_GQI = np.stack([models[name].score(part.queries) for name in config.generators])
        rows = candidate_rows(part.queries, scores_GQI, config.per_generator, items_for, popularity)
        for row, (items_C, features_CF) in enumerate(rows):
            targets = np.setdiff1d(part.targets[row], part.queries.history[row])
            taken_C = np.isin(items_C, targets)
            found, wanted = found + int(taken_C.sum()), wanted + len(targets)
            if taken_C.any() and not taken_C.all():
                features.append(features_CF)
                labels.append(taken_C)
                lengths.append(len(items_C))
    recall = found / max(wanted, 1)
    if not features:
        width = len(feature_names(config.generators, config.tables, judged=config.judgements is not None))
        return Lists(np.zeros((0, width)), np.zeros(0), np.zeros(0, np.int64), recall, len(asked))
    return Lists(np.concatenate(features), np.concatenate(labels), np.array(lengths), recall, len(asked))


def _shown_lists(
    config: RankerConfig, models: Mapping[str, Model], split: Split, items_for: Callable[[int], Items]
) -> Lists:
    shown = shown_lists(config.impressions, split, config.attribution_hours)
    popularity = Popularity.of_log(split.fit_log(("train", "ranker")))
    starts_Q = shown.items.starts
    features, labels, places = [], [], []
    for start in track(range(0, len(shown), BATCH), "lists for the ranker"):
        part = shown.queries.take(slice(start, start + BATCH))
        scores_GQI = np.stack([models[name].score(part) for name in config.generators])
        for row in range(len(part)):
            number = start + row
            items_C = shown.items[number]
            here = slice(starts_Q[number], starts_Q[number] + len(items_C))
            taken_C = shown.taken_N[here]
            if taken_C.any() and not taken_C.all():
                asked = Asked(part.history[row], part.times[row], int(part.at_Q[row]))
                known = items_for(int(part.user_Q[row]))
                scores_GC, snapshot = scores_GQI[:, row, items_C], popularity.as_of(asked.at)
                features.append(ranking_features(asked, items_C, scores_GC, snapshot, known))
                labels.append(taken_C)
                places.append(shown.places_N[here])
    if not features:
        raise DataError(
            f"{len(shown)} lists were shown in the ranker part, none with an answer", where=config.impressions,
            expected="lists of which something was taken and something was not",
        )  # fmt: skip
    lengths = np.array([len(one) for one in labels])
    return Lists(
        np.concatenate(features), np.concatenate(labels), lengths, None, len(shown), np.concatenate(places)
    )


def _judged(
    config: RankerConfig, ranker: Ranker, models: Mapping[str, Model], split: Split
) -> dict[str, Any]:
    """NDCG of the line and of each generator alone over the catalogue, on the valid part, and the lift with its
    interval."""
    protocol = Protocol(ks=(JUDGED_AT,), mask="history", slices=(), bootstrap=0)
    key = f"valid/ndcg_at_{JUDGED_AT}"
    popularity = Popularity.of_log(split.fit_log(("train", "ranker", "valid")))
    scorers = {name: models[name] for name in config.generators}
    judged = {
        name: evaluate(scorer, split, "valid", protocol, name=name)
        for name, scorer in {**scorers, "ranker": ranker.scorer(models, popularity)}.items()
    }
    alone = {name: judged[name].value(key) for name in config.generators}
    strongest = max(alone, key=lambda name: alone[name])
    a_Q, b_Q = (judged[name].per_query[key].to_numpy() for name in ("ranker", strongest))
    lift = paired_test(a_Q, b_Q, judged["ranker"].per_query["user"].to_numpy())
    return {
        "metric": key,
        "generators": alone,
        "ranker": judged["ranker"].value(key),
        "against": strongest,
        "lift": lift,
        "shipped": lift["low"] > config.required_lift,
    }
