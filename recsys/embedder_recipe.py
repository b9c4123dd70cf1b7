"""What a run of an item embedder is made by: which one, what it reads, which pairs it learns from."""

from collections.abc import Iterator, Mapping
from typing import Any

from recsys.config import Config, parse
from recsys.errors import ConfigError
from recsys.features.base import FittedExtractor
from recsys.features.extract import make_extractor
from recsys.models.embedders.contract import Embedder
from recsys.pairing import PairingConfig, PairSplitConfig
from recsys.recipe import merge
from recsys.registry import EMBEDDERS, EXTRACTORS, load_class
from recsys.train_config import TrainConfig

_TEXTS = {"language": "smollm2", "template": "{title}. {category}"}


class EmbedderRecipe(Config):
    """What a run is made by; `filled` puts in what is left out."""

    model: str = "notellm2"
    """The embedder: notellm2, neighbours, frozen_head, or "package.module:Class"."""
    tables: dict[str, dict[str, Any]] = {}  # noqa: RUF012 (pydantic copies it)
    """Kind and settings of the feature tables that the model reads, by the names that it knows them under, and of those
    that these stand on. One without a kind is of the kind of its name: image, text, ..."""
    config: dict[str, Any] = {}  # noqa: RUF012
    """Settings of the model."""
    language: str | None = None
    """For models that read texts: the language model, "smollm2" (from its package), a hub name or a local folder;
    None = "smollm2"."""
    template: str | None = None
    """For them, too: the text of an item, columns in braces; None = "{title}. {category}"."""
    pairs: PairingConfig = PairingConfig()
    """The pairs that are learnt from."""
    parts: PairSplitConfig | None = None
    """Items that are held out of training, for choosing the epoch (valid) and for a later test; None = all are learnt
    from, and the last epoch is kept."""
    train: TrainConfig = TrainConfig()
    """The loop. What is left out is as the model learns well. The learning rate of NoteLLM-2 is that of its language
    model."""

    def embedder(self) -> Embedder:
        """The model, untrained. Raises ConfigError for an unknown one, or settings that it does not take."""
        return embedder_of(self.model, self.config, where="config")

    def filled(self, known: Mapping[str, Mapping[str, Any]] | None = None) -> "EmbedderRecipe":
        """With every setting in its place; filled again, it is the same. known: kind and settings of tables by name,
        taken for those that the recipe says nothing of.

        Raises ConfigError for what does not fit the model: also for a language or a template where no text is read, and
        for a table that nothing reads.
        """
        model = self.embedder()
        for name in _TEXTS:
            if not model.reads_texts and getattr(self, name) is not None:
                raise ConfigError(
                    f"{name} for {self.model!r}, which reads no text",
                    expected=f"no {name}",
                    fix="leave it out",
                )
        train = merge(dict(model.loop), self.train.model_dump(exclude_unset=True))
        changes = {
            "tables": self._all_tables(model.tables, known or {}),
            "config": model.config.model_dump(mode="json"),
            "train": parse(TrainConfig, train, where="train"),
        }
        if model.reads_texts:
            changes |= {name: getattr(self, name) or value for name, value in _TEXTS.items()}
        return self.model_copy(update=changes)

    def _all_tables(
        self, read: tuple[str, ...], known: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        waiting = list(read)
        while waiting:
            name = waiting.pop(0)
            if name in found:
                continue
            usual = {"kind": name} if name in EXTRACTORS else {}
            settings = usual | (self.tables[name] if name in self.tables else dict(known.get(name, {})))
            if "kind" not in settings:
                raise ConfigError(
                    f"{self.model} reads table {name!r}, and nothing says what it is",
                    fix=f"give tables.{name}.kind, or extract it first",
                )
            found[name] = settings
            waiting += sources_of(settings, where=f"tables.{name}")
        unread = [name for name in self.tables if name not in found]
        if unread:
            raise ConfigError(
                f"tables.{unread[0]}, which {self.model} does not read",
                expected=f"some of: {', '.join(found)}",
            )
        return found


def embedder_of(name: str, settings: Mapping[str, Any], *, where: object) -> Embedder:
    """An untrained embedder by its registered name or class."""
    found = load_class(name, EMBEDDERS, Embedder)
    return found(parse(found.Config, settings, where=where))


def sources_of(settings: Mapping[str, Any], *, where: str) -> Iterator[str]:
    """Names of the tables that one of these settings stands on."""
    maker = make_extractor(settings, where=where)
    yield from maker.sources if isinstance(maker, FittedExtractor) else ()
