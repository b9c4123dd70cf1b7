"""Tables of [features.*] outside a run: checked all together, then made one after the other into a folder."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, get_args

from recsys.dataset import Dataset
from recsys.errors import ConfigError, FeatureError, nearest
from recsys.features import ray_engine
from recsys.features.base import Extractor, FittedExtractor, TableMaker
from recsys.features.extract import Engine, Summary, extract, gather, make_extractor
from recsys.features.table import Table
from recsys.files import locked, write_json
from recsys.splits import Split

_NAME = re.compile(r"[A-Za-z0-9][\w\-]*", re.ASCII)
_STORE = "_store"  # no table can have this name
_SETTINGS = "settings.json"


@dataclass(frozen=True)
class Made:
    """A table and where it lies. summary: of its extraction; None for a table that was fitted."""

    name: str
    table: Table
    folder: Path
    summary: Summary | None


def extract_features(
    dataset: Dataset | str | Path,
    features: Mapping[str, Mapping[str, Any]],
    *,
    out: str | Path | None = None,
    split: Split | None = None,
    engine: Engine = "local",
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Table]:
    """Feature tables by name, as a recipe's [features] would make them; each is saved as a folder of `out`.

        tables = recsys.extract_features("my-dataset", {"text": {"kind": "text", "template": "{title}"}})

    out: default DATASET-features. What was encoded is kept there, so that a second call encodes only what changed,
    and a killed one goes on where it stood. split: what fitted tables (metadata, reduce) are fitted on.
    engine: "local", where `workers` processes decode files, or "ray" with `workers` actors (extra `scale`); both give
    the same table.
    Raises ConfigError, FeatureError or DataError before anything is encoded, LockedError where `out` is in use.
    """
    opened = dataset if isinstance(dataset, Dataset) else Dataset.open(dataset)
    folder = default_folder(opened) if out is None else Path(out)
    made = make_tables(
        opened, features, folder, split=split, engine=engine, workers=workers, progress=progress
    )
    return {one.name: one.table for one in made}


def default_folder(dataset: Dataset) -> Path:
    path = dataset.path.resolve()
    return path.with_name(f"{path.name}-features")


def make_tables(
    dataset: Dataset,
    features: Mapping[str, Mapping[str, Any]],
    out: Path,
    *,
    split: Split | None = None,
    engine: Engine = "local",
    workers: int | None = None,
    progress: bool = True,
) -> Iterator[Made]:
    """As extract_features, table by table, each after those that it stands on."""
    if engine not in get_args(Engine):
        raise ConfigError(f"engine {engine!r}", expected=" or ".join(get_args(Engine)))
    if engine == "ray":
        ray_engine.load()
    makers = ordered(
        {name: make_extractor(table, where=f"features.{name}") for name, table in features.items()}
    )
    if split is not None:
        split.check(dataset)
    for name, maker in makers.items():
        _check_target(out, name)
        if isinstance(maker, FittedExtractor) and split is None and maker.needs_split:
            deploy = (
                ", or fit a table for deployment with --fit-on all" if hasattr(maker.config, "fit_on") else ""
            )
            raise ConfigError(
                f"{maker.modality} is fitted on the train part",
                where=f"features.{name}",
                expected="a split",
                fix=f"give it with --split (split= in Python){deploy}",
            )
    if (
        engine == "local"
        and workers is not None
        and not any(getattr(one, "workers", 0) for one in makers.values())
    ):
        raise ConfigError(f"{workers} workers", expected="a table of files to decode, or engine 'ray'")
    raw = {
        name: _gathered(dataset, maker, name)
        for name, maker in makers.items()
        if isinstance(maker, Extractor)
    }
    made: dict[str, Table] = {}
    with locked(out):
        for name, maker in makers.items():
            for pattern in (
                f".{name}.????????",
                f".{name}.old.????????",
            ):  # a killed extraction was saving it
                for leftover in out.glob(pattern):
                    shutil.rmtree(leftover)
            summary = None
            if isinstance(maker, Extractor):
                made[name], summary = extract(
                    dataset, maker, name, out / _STORE, raw=raw.pop(name), engine=engine, workers=workers,
                    progress=progress,
                )  # fmt: skip
            elif isinstance(maker, FittedExtractor):
                made[name] = maker.table(name, dataset, split, made)
            made[name].save(out / name)
            settings = maker.config.model_dump(mode="json", exclude_unset=True)
            write_json(out / name / _SETTINGS, {"kind": features[name]["kind"]} | settings)
            if summary is not None:
                write_json(out / name / "summary.json", vars(summary))
            yield Made(name, made[name], out / name, summary)


def stored_settings(folder: Path) -> dict[str, dict[str, Any]]:
    """Kind and settings of the tables that were made into a folder, by name: how to make them again."""
    found = {path.parent.name: path for path in sorted(folder.glob(f"*/{_SETTINGS}"))}
    return {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name, path in found.items()
        if _NAME.fullmatch(name)
    }


def _gathered(dataset: Dataset, extractor: Extractor, name: str):
    extractor.key()  # asks for the weights: a missing extra shows now
    return gather(dataset, extractor, name)


def ordered(makers: dict[str, TableMaker]) -> dict[str, TableMaker]:
    """Each after the tables that it stands on. Raises ConfigError for a name that cannot be, or is not there."""
    sources = {
        name: maker.sources if isinstance(maker, FittedExtractor) else () for name, maker in makers.items()
    }
    for name, others in sources.items():
        if not _NAME.fullmatch(name):
            raise ConfigError(f"features.{name}", expected="a name of letters, digits, - and _")
        for other in others:
            if other not in makers:
                raise ConfigError(f"features.{name} names {other!r}", fix=nearest(other, makers))
    try:
        return {name: makers[name] for name in TopologicalSorter(sources).static_order()}
    except CycleError as error:
        raise ConfigError(f"features stand on each other: {' -> '.join(error.args[1])}") from None


def _check_target(out: Path, name: str) -> None:
    """Raises FeatureError where something that is no table would be replaced."""
    path = out / name
    if path.exists() and not (path / "table.json").is_file():
        raise FeatureError(
            "there is something else of this name", where=path, fix="give another folder with --out"
        )
