"""Recipe: the whole of a run in one typed value, as read from TOML, a Dataset path and overrides."""

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from recsys.config import Config, override, parse, read_recipe
from recsys.errors import ConfigError
from recsys.graph_config import GraphConfig
from recsys.protocol import Protocol
from recsys.ranker_config import RankerConfig
from recsys.split_config import SplitConfig
from recsys.train_config import TrainConfig

RANKER = "ranker"
"""What the second stage is called in reports and metric keys."""
_NAME = re.compile(r"[A-Za-z0-9][\w\-]*", re.ASCII)


class SelectConfig(Config):
    """How the model that is shipped is chosen; test data has no part in it."""

    refit: tuple[str, ...] = ()
    """Parts that every model is fitted on again once selection has fixed its settings and number of epochs,
    e.g. ["train", "valid"]; empty = the selected models are tested as they are."""


class BundleConfig(Config):
    """What goes into the bundle beside the model."""

    histories: int = Field(default=200, ge=0)
    """Newest events kept per user; 0 keeps no user at all."""
    index: Literal["auto", "none", "always"] = "auto"
    """An approximate index of the item vectors. auto: above 200,000 items, where Faiss is installed and the index finds
    98 % of what exact scoring does."""
    states: int = Field(default=20_000, ge=0)
    """Most users, newest first, whose state in a recurrent model goes along; 0 = none: a long history is then read when
    its user first asks."""
    columns: tuple[str, ...] = ("title", "category", "image_path")
    """Columns of the items table shown to people; a boolean column `available` keeps items out of answers."""
    thumbnails: int = Field(default=0, ge=0, le=1024)
    """Longest side in pixels of the pictures that go along; 0 = none."""


class TrackConfig(Config):
    """Where the run is recorded."""

    enabled: bool = True
    """Record the run in MLflow."""
    uri: str | None = None
    """MLflow tracking URI; None = MLFLOW_TRACKING_URI, or a SQLite file in the output folder."""
    experiment: str = "recsys"
    """MLflow experiment."""
    registered_name: str | None = None
    """Name in the model registry; None = the recipe's name."""


class Recipe(Config):
    """A run, fully resolved."""

    name: str
    """Names the output folder, the MLflow run and the registered model."""
    seeds: tuple[int, ...] = (0,)
    """One fit of every looped model per seed; the bundle takes the first."""
    data: dict[str, Any]
    """A source: kind and its settings."""
    split: SplitConfig = SplitConfig()
    """Parts and questions."""
    features: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Feature tables by name: kind (text, image) and the extractor's settings."""
    graph: GraphConfig | None = None
    """The graph around items, for the models that read one; None = there is none."""
    models: dict[str, dict[str, Any]]
    """Models by name: `model` (a registered name; default: the table's own), `train` (overrides of [train]),
    `like` (another table here, whose keys stand unless this one sets them), and the model's settings."""
    train: TrainConfig = TrainConfig()
    """The loop."""
    select: SelectConfig = SelectConfig()
    """The choice."""
    ranker: RankerConfig | None = None
    """A second stage over the candidates of several models; None = the selected model ranks alone."""
    tune: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Search spaces of `recsys tune` by model: key -> { low, high, log } or a list of values; keys of the loop begin
    with "train."; a model without one takes that of its kind."""
    evaluate: Protocol = Protocol()
    """The protocol of the test."""
    bundle: BundleConfig = BundleConfig()
    """What is shipped."""
    track: TrackConfig = TrackConfig()
    """MLflow."""

    @field_validator("seeds")
    @classmethod
    def _some(cls, seeds):
        if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
            raise ValueError("one or more different seeds, none negative")
        return seeds

    @field_validator("models")
    @classmethod
    def _models(cls, models):
        if not models:
            raise ValueError("at least one model")
        return {name: _unfolded(models, name) for name in models}

    @model_validator(mode="after")
    def _names(self):
        for name in (self.name, *self.features, *self.models):
            if not _NAME.fullmatch(name):  # names stand in folder names and metric keys
                raise ValueError(f"names of letters, digits, - and _; {name!r} is none")
        if self.graph is not None:
            for name in self.graph.tables:
                if name not in self.features:
                    raise ValueError(f"[graph] names {name!r}; expected some of: {', '.join(self.features)}")
        if self.ranker is not None:
            for kind, names, known in (
                ("generators", self.ranker.generators, self.models),
                ("tables", self.ranker.tables, self.features),
            ):
                unknown = [name for name in names if name not in known]
                if unknown:
                    raise ValueError(
                        f"ranker.{kind} names {unknown[0]!r}; expected some of: {', '.join(known)}"
                    )
            if RANKER in self.models:
                raise ValueError(f"no model of the name {RANKER!r}: the second stage is called so")
        return self


def _unfolded(
    models: Mapping[str, Mapping[str, Any]], name: str, above: tuple[str, ...] = ()
) -> dict[str, Any]:
    """A model's table with the keys of the one it is `like`, which may itself be like another."""
    table = dict(models[name])
    if "like" not in table:
        return table
    base = table.pop("like")
    if base not in models or base in (*above, name):
        raise ValueError(f"models.{name}.like = {base!r}: expected another model of this recipe")
    found = _unfolded(models, base, (*above, name))
    return merge({"model": base} | found, table)


def load_recipe(
    name: str,
    assignments: list[str] | None = None,
    *,
    data: str | None = None,
    seeds: tuple[int, ...] | None = None,
) -> Recipe:
    """A shipped recipe or TOML file with overrides applied.

    data: path of a prepared Dataset that takes the place of the recipe's source.
    Raises ConfigError naming the first wrong key.
    """
    values = override(read_recipe(name), assignments or [])
    if data is not None:
        values["data"] = {"kind": "dataset", "path": data}
    if seeds is not None:
        values["seeds"] = list(seeds)
    return parse(Recipe, values, where=name)


def model_tables(recipe: Recipe) -> dict[str, tuple[str, Mapping[str, Any], TrainConfig]]:
    """name -> (registered name, the model's own settings, the loop's settings with its overrides)."""
    found = {}
    for name, table in recipe.models.items():
        settings = dict(table)
        kind = settings.pop("model", name)
        overrides = settings.pop("train", {})
        if not isinstance(overrides, dict):
            raise ConfigError(f"models.{name}.train = {overrides!r}", expected="a table")
        merged = merge(recipe.train.model_dump(), overrides)
        found[name] = (kind, settings, parse(TrainConfig, merged, where=f"models.{name}.train"))
    return found


def merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `base` with the keys of `over`; tables within tables are merged too."""
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if nested else value
    return merged
