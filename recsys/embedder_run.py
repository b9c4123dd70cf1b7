"""Learning item embeddings: content and pairs in, a folder out that embeds any item (a run of NoteLLM-2).

run.json              settings, what the language model and the features are, pairs, split, how training went
weights.safetensors   what was learnt; the frozen language model is named by its hash, not kept
embeddings/           vectors by the hash of what they were made from
"""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from recsys.config import Config, parse
from recsys.dataset import Dataset
from recsys.errors import DataError, FeatureError, ModelError
from recsys.features.language import open_language_model
from recsys.features.table import FeatureTable, Table
from recsys.features.text.extractor import TextConfig, TextExtractor
from recsys.files import digest, locked
from recsys.item_retrieval import RetrievalTask, by_cosine, per_query
from recsys.learnt_run import check_language, read_run, read_weights, write_run
from recsys.models.embedders.contract import Embedder, ItemContent, PairContext
from recsys.models.notellm2.config import NoteLLM2Config
from recsys.models.notellm2.embedder import NoteLLM2
from recsys.models.notellm2.language import LanguageModel
from recsys.models.notellm2.prompt import VERSION as PROMPT_VERSION
from recsys.pairing import ItemPairs, PairingConfig, PairSplitConfig, make_pairs, split_pairs, targets_of
from recsys.splits import Split
from recsys.train import fit
from recsys.train_config import TrainConfig

VERSION = 1
_KIND = "embedder"
_VALID_K = 10


class EmbedderRecipe(Config):
    """What a run is made by."""

    language: str = "smollm2"
    """The language model: "smollm2" (from its package), a hub name or a local folder."""
    template: str = "{title}. {category}"
    """The text of an item: columns in braces."""
    table: dict[str, Any] = {"kind": "image"}  # noqa: RUF012 (pydantic copies it)
    """Kind and settings of the feature table that the model sees as its picture."""
    config: NoteLLM2Config = NoteLLM2Config()
    """The model."""
    pairs: PairingConfig = PairingConfig()
    """The pairs that are learnt from."""
    parts: PairSplitConfig | None = None
    """Items that are held out of training, for choosing the epoch (valid) and for a later test; None = all are learnt
    from, and the last epoch is kept."""
    train: TrainConfig = TrainConfig(lr=1e-4, schedule="cosine")
    """The loop; its learning rate is that of the language model."""


def item_content(dataset: Dataset, template: str, tables: Mapping[str, Table]) -> ItemContent:
    """Texts and vectors of all items of a Dataset, in its order. tables: by the names that a model knows them under."""
    ids = dataset.items["item_id"]
    texts = TextExtractor(TextConfig(template=template)).contents(dataset.items, None)
    dense = {}
    for name, table in tables.items():
        if not isinstance(table, FeatureTable):
            raise FeatureError(f"table {name!r} holds typed fields", expected="a table of vectors")
        dense[name] = table.align(ids)
    return ItemContent(texts, dense)


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
    source: Table,
    out: str | Path,
    *,
    split: Split | None = None,
    teacher: FeatureTable | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> "EmbedderRun":
    """Learn as the recipe says and write the run to the folder `out`. source: the table of `recipe.table`.
    split: what pairs of interactions are counted on. teacher: vectors that hard negatives are mined with.

    A killed training goes on where it stood. Raises SplitError, DataError, FeatureError or ModelError for what does not
    fit, before anything is learnt.
    """
    out = Path(out)
    pairs, valid = make_pairs(dataset, recipe.pairs, split), None
    if recipe.parts is not None:
        parts = split_pairs(dataset, pairs, recipe.parts)
        pairs, valid = parts.train, parts.valid if recipe.parts.valid else None
        if valid is not None and not len(valid):
            raise DataError("no validation pair", where="parts.valid", fix="a larger share, or 0")
    content = item_content(dataset, recipe.template, {recipe.config.table: source})
    started = time.monotonic()
    opened = language_model(recipe.language)
    settings, taught = recipe.model_dump(mode="json"), None
    if teacher is not None:
        teacher.check_split(split.id if split is not None else "none")
        rows = teacher.align(dataset.items["item_id"])
        taught = np.where(rows.present_E[:, None], rows.values_EF, 0)
    made_of = [pairs.fingerprint, dataset.fingerprint, source.fingerprint, teacher and teacher.fingerprint]
    key = digest([settings, seed, made_of])[:12]
    work = out.with_name(f".{out.name}.{key}")
    with locked(work):
        ctx = PairContext(
            pairs.pairs_P2, content, teacher_ID=taught, open_language=lambda: opened, seed=seed, device=device,
            folder=work, validate=None if valid is None else validator(content, valid),
        )  # fmt: skip
        model = NoteLLM2(recipe.config)
        progress = fit(model, ctx, recipe.train)
    facts = {
        "recipe": settings,
        "seed": seed,
        "language": dict(opened.facts),
        "features": dict(source.manifest),
        "feature_width": source.width,
        "prompt_version": PROMPT_VERSION,
        "pairs": {"fingerprint": pairs.fingerprint, "count": len(pairs), "made_of": pairs.made_of},
        "teacher": teacher and teacher.fingerprint,
        "split_id": pairs.split_id,
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
    write_run(out, _KIND, VERSION, facts, model.state())
    shutil.rmtree(work)
    return EmbedderRun.open(out)


def language_model(name: str) -> LanguageModel:
    """By name, in float32. Raises FeatureError where it cannot be had."""
    found, tokenizer = open_language_model(name)
    return LanguageModel(found.model, tokenizer, found.facts)


@dataclass(frozen=True)
class EmbedderRun:
    """A trained embedder on disk. facts: run.json."""

    folder: Path
    facts: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> "EmbedderRun":
        """Reads the facts alone. Raises FeatureError where the folder is no run, or another version's."""
        return cls(Path(folder), read_run(Path(folder), _KIND, VERSION))

    @property
    def config(self) -> NoteLLM2Config:
        return parse(NoteLLM2Config, self.facts["recipe"]["config"], where=self.folder)

    @property
    def table(self) -> tuple[str, dict[str, Any]]:
        """(name, settings) of the feature table that the model sees."""
        return self.config.table, dict(self.facts["recipe"]["table"])

    @property
    def split_id(self) -> str | None:
        return self.facts["split_id"]

    def identity(self) -> dict[str, Any]:
        """What a vector depends on besides the item: no paths."""
        facts = self.facts
        return {
            "extractor": "notellm2",
            "run": facts["weights"][:16],
            "language": facts["language"],
            "features": facts["features"],
            "adapter": facts["weights"],
            "config": facts["recipe"]["config"],
            "template": facts["recipe"]["template"],
            "prompt_version": facts["prompt_version"],
            "pairs": facts["pairs"]["fingerprint"],
        }

    def check(self, source: Table) -> None:
        """Raises FeatureError where a table was made by another extractor than the one the run learnt with."""
        own, given = digest(self.facts["features"]), digest(dict(source.manifest))
        if own != given:
            raise FeatureError(
                f"table {source.name!r} is not made as the one that the run learnt with",
                where=self.folder,
                expected=f"kind and settings {self.facts['recipe']['table']}",
            )

    @cached_property
    def model(self) -> NoteLLM2:
        """Loaded with its language model. Raises FeatureError where a hash is another than when it was trained."""
        weights = read_weights(self.folder, self.facts)
        name = self.facts["recipe"]["language"]
        language = language_model(name)
        check_language(self.facts, language.facts, name)
        try:
            return NoteLLM2.from_state(self.config, weights, language, self.facts["feature_width"])
        except ModelError as error:
            raise FeatureError(str(error), where=self.folder, fix="train it again") from None
