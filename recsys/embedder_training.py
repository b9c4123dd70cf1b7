"""Learning item embeddings: content and pairs in, the folder of a run out."""

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recsys.dataset import Dataset
from recsys.embedder_recipe import EmbedderRecipe
from recsys.embedder_run import KIND, VERSION, EmbedderRun, item_content, language_model, made_by
from recsys.errors import ConfigError, DataError, FeatureError
from recsys.features.table import FeatureTable, Table
from recsys.files import digest, locked
from recsys.item_retrieval import RetrievalTask, by_cosine, per_query
from recsys.learnt_run import write_run
from recsys.models.embedders.contract import Embedder, ItemContent, PairContext
from recsys.pairing import ItemPairs, make_pairs, split_pairs, targets_of
from recsys.splits import Split
from recsys.train import fit

_VALID_K = 10


def validator(content: ItemContent, pairs: ItemPairs) -> Callable[[Embedder], float]:
    """recall@10 of the partners of validation items, among the items that validation pairs name."""
    named = np.unique(pairs.pairs_P2)
    place_I = np.full(len(content), -1)
    place_I[named] = np.arange(len(named))
    queries_Q, targets = targets_of(place_I[pairs.pairs_P2])
    task, few = RetrievalTask.of(queries_Q, targets, np.arange(len(named))), content.take(named)

    def validate(model: Embedder) -> float:
        scores = by_cosine(model.encode(few)["joint"])
        return float(per_query(task, scores, (_VALID_K,))[f"recall_at_{_VALID_K}"].mean())

    return validate


def train_embedder(
    dataset: Dataset,
    recipe: EmbedderRecipe,
    tables: Mapping[str, Table],
    out: str | Path,
    *,
    split: Split | None = None,
    teacher: FeatureTable | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> EmbedderRun:
    """Learn as the recipe says and write the run to the folder `out`. tables: those of `recipe.filled().tables`, by
    name. split: what pairs of interactions are counted on, and tables were fitted on. teacher: vectors that hard
    negatives are mined with, and students learn.

    A killed training goes on where it stood. Raises ConfigError, SplitError, DataError, FeatureError or ModelError for
    what does not fit, before anything is learnt.
    """
    out, recipe = Path(out), recipe.filled()
    model = recipe.embedder()
    read = _read(model, tables)
    if teacher is not None and not model.takes_teacher:
        raise ConfigError(
            f"{recipe.model} learns nothing from the teacher {teacher.name!r}",
            fix="set config.hard_negatives, or config.teacher_weight of frozen_head; or leave the teacher out",
        )
    for table in (*read.values(), *([] if teacher is None else [teacher])):
        table.check_split("none" if split is None else split.id)
    pairs, valid = make_pairs(dataset, recipe.pairs, split), None
    if recipe.parts is not None:
        parts = split_pairs(dataset, pairs, recipe.parts)
        pairs, valid = parts.train, parts.valid if recipe.parts.valid else None
        if valid is not None and not len(valid):
            raise DataError("no validation pair", where="parts.valid", fix="a larger share, or 0")
    content = item_content(dataset, recipe.template, read)
    taught = None
    if teacher is not None:
        rows = teacher.align(dataset.items["item_id"])
        taught = np.where(rows.present_E[:, None], rows.values_EF, 0)
    started = time.monotonic()
    opened = language_model(recipe.language) if model.reads_texts else None
    settings = recipe.model_dump(mode="json")
    made_of = [pairs.fingerprint, dataset.fingerprint, {name: one.fingerprint for name, one in read.items()}]
    key = digest([settings, seed, made_of, teacher and teacher.fingerprint])[:12]
    work = out.with_name(f".{out.name}.{key}")
    with locked(work):
        ctx = PairContext(
            pairs.pairs_P2, content, teacher_ID=taught, open_language=None if opened is None else lambda: opened,
            seed=seed, device=device, folder=work, validate=None if valid is None else validator(content, valid),
        )  # fmt: skip
        progress = fit(model, ctx, recipe.train)
    fitted = [one for one in (*read.values(), teacher) if one is not None and "split_id" in one.manifest]
    facts: dict[str, Any] = {
        "model": recipe.model,
        "model_version": model.version,
        "recipe": settings,
        "seed": seed,
        "features": {name: made_by(one) for name, one in read.items()},
        "widths": {name: one.width for name, one in content.tables.items()},
        "pairs": {"fingerprint": pairs.fingerprint, "count": len(pairs), "made_of": pairs.made_of},
        "teacher": teacher and {"fingerprint": teacher.fingerprint, "made_by": made_by(teacher)},
        "split_id": split.id if fitted else pairs.split_id,
        "dataset": {
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "licence": dataset.manifest["licence"],
        },
        "training": {
            "history": progress.history,
            "best_epoch": progress.best_epoch,
            "best": progress.best_metric,
        },
        "seconds": time.monotonic() - started,
    }
    if opened is not None:
        facts["language"] = dict(opened.facts)
    write_run(out, KIND, VERSION, facts, model.state())
    shutil.rmtree(work)
    return EmbedderRun.open(out)


def _read(model: Embedder, tables: Mapping[str, Table]) -> dict[str, Table]:
    """Those that the model reads. Raises FeatureError where one is not there."""
    for name in model.tables:
        if name not in tables:
            raise FeatureError(f"no table {name!r}", expected=f"all of: {', '.join(model.tables)}")
    return {name: tables[name] for name in model.tables}
