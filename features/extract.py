"""Dataset to FeatureTable: resumable per chunk, content-addressed, so a changed row is encoded alone."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from recsys import schema
from recsys.config import parse
from recsys.dataset import Dataset
from recsys.errors import ConfigError, FeatureError, nearest
from recsys.features import ray_engine
from recsys.features.base import Extractor, TableMaker, content_hash
from recsys.features.chunks import Encoded, encode_here
from recsys.features.store import Store
from recsys.features.table import FeatureTable
from recsys.progress import track
from recsys.registry import EXTRACTORS, load_class

logger = logging.getLogger("recsys")
Engine = Literal["local", "ray"]
_NAMED_OFFENDERS = 5


@dataclass(frozen=True)
class Summary:
    """What an extraction found and did.

    rows = present + missing + unreadable. encoded: contents that the store did not hold, in `seconds`; equal
    contents count once. offenders: the first unreadable rows, as "id: why".
    """

    rows: int
    present: int
    missing: int
    unreadable: int
    encoded: int
    seconds: float
    offenders: tuple[str, ...] = ()


@dataclass(frozen=True)
class Raw:
    """Rows of an entity's table with their content: a text, a file to read, or None where it is missing."""

    ids: pl.Series
    contents: list[str | Path | None]


def make_extractor(table: Mapping[str, Any], *, where: str) -> TableMaker:
    """An extractor from a recipe table such as `{kind = "text", template = "{title}"}`."""
    settings = dict(table)
    kind = settings.pop("kind", None)
    if kind not in EXTRACTORS and ":" not in str(kind):
        raise ConfigError(f"{where}.kind = {kind!r}", fix=nearest(str(kind), EXTRACTORS))
    extractor = load_class(kind, EXTRACTORS, TableMaker)
    return extractor(parse(extractor.Config, settings, where=where))


def gather(dataset: Dataset, extractor: Extractor, name: str) -> Raw:
    """The raw contents. Raises FeatureError where no row has any, unless the extractor's config allows it."""
    entity = extractor.config.entity
    rows = dataset.items if entity == "item" else dataset.scan("users").collect()
    contents = extractor.contents(rows, dataset.media_root)
    if extractor.config.required and all(content is None for content in contents):
        raise _nothing(extractor, name)
    return Raw(rows[schema.ITEM if entity == "item" else schema.USER], contents)


def extract(
    dataset: Dataset,
    extractor: Extractor,
    name: str,
    store: Path,
    *,
    raw: Raw | None = None,
    engine: Engine = "local",
    workers: int | None = None,
    progress: bool = True,
) -> tuple[FeatureTable, Summary]:
    """Encode every row of the entity's table that the store does not hold yet.

    raw: what `gather` gave, where it was called before. engine: "ray" encodes on Ray actors, `workers` of them.
    Raises FeatureError where no row has this modality, unless the extractor's config says it is not required.
    """
    entity, raw = extractor.config.entity, raw or gather(dataset, extractor, name)
    hashes, unreadable = _hashes(raw, track(raw.contents, f"{name}: reading", enabled=progress, total=len(raw.ids)))
    values_EF, present_E = np.full((len(hashes), 1), np.nan, np.float32), np.zeros(len(hashes), bool)
    encoded, seconds = 0, 0.0
    if any(hashes):
        with Store.opened(store / extractor.key()[:16]) as kept:
            while True:
                began = time.perf_counter()
                encoded += _fill(kept, extractor, name, dict(zip(hashes, raw.contents, strict=True)), engine, workers, progress)
                seconds += time.perf_counter() - began
                found = kept.read(hashes)
                if found is not None:  # else a chunk was damaged, and its contents are missing from the store
                    break
            values_EF, present_E = found
            unreadable |= {
                row: kept.unreadable[value] for row, value in enumerate(hashes) if value in kept.unreadable
            }
    offenders = tuple(f"{raw.ids[row]}: {unreadable[row]}" for row in sorted(unreadable)[:_NAMED_OFFENDERS])
    if offenders:
        logger.warning(
            "%d %s rows are unreadable and count as missing: %s", len(unreadable), name, "; ".join(offenders)
        )
    if not present_E.any():
        if extractor.config.required:
            raise _nothing(extractor, name)
        logger.warning("no %s has the modality %r: models see it as missing everywhere", entity, name)
        values_EF = values_EF[:, :1]  # whatever else the store holds
    hashes_E = tuple(np.where(present_E, hashes, "").tolist())
    manifest = {"modality": extractor.modality} | dict(extractor.identity())
    table = FeatureTable(entity, name, raw.ids, hashes_E, manifest, values_EF, present_E)
    if extractor.config.hide:
        table = table.hidden(extractor.config.hide, extractor.config.hide_seed)
    present = int(table.present_E.sum())
    missing = len(hashes) - present - len(unreadable)
    return table, Summary(len(hashes), present, missing, len(unreadable), encoded, seconds, offenders)


def _hashes(raw: Raw, contents: Iterator[str | Path | None]) -> tuple[list[str], dict[int, str]]:
    """Content hash of every row ("" where it is missing), and the rows whose file cannot be read, with the reason."""
    hashes, unreadable = [], {}
    for row, content in enumerate(contents):
        value = ""
        if content is not None:
            try:
                value = content_hash(content)
            except OSError as error:
                unreadable[row] = f"{content}: {error.strerror}"
        hashes.append(value)
    return hashes, unreadable


def _fill(
    kept: Store,
    extractor: Extractor,
    name: str,
    contents: Mapping[str, str | Path | None],
    engine: Engine,
    workers: int | None,
    progress: bool,
) -> int:
    """Encode what the store lacks, chunk by chunk; returns how many contents were encoded.

    A chunk is made of contents that were never tried, in the order of the rows, so that a killed extraction goes on
    with the very chunks that it had not finished. What could not be read before comes last, in chunks of its own.
    """
    lacking = [value for value in contents if value and value not in kept]
    untried = [value for value in lacking if value not in kept.unreadable]
    chunks = [*_cut(untried, extractor.chunk_rows), *_cut(list(filter(kept.unreadable.get, lacking)), extractor.chunk_rows)]
    given = [[contents[value] for value in chunk] for chunk in chunks]
    done: Iterator[Encoded] = (
        encode_here(extractor, given) if engine == "local" else ray_engine.encode(extractor, given, workers)
    )
    encoded = 0
    for one in track(done, f"{name}: encoding", enabled=progress, total=len(chunks)):
        chunk = chunks[one.number]
        readable = [value for position, value in enumerate(chunk) if position not in one.unreadable]
        reasons = {chunk[position]: why for position, why in one.unreadable.items()}
        if readable or reasons.keys() - kept.unreadable.keys():
            kept.commit(readable, one.vectors, reasons, where=f"features.{name}")
        encoded += len(readable)
    return encoded


def _cut(values: Sequence[str], size: int) -> list[Sequence[str]]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def _nothing(extractor: Extractor, name: str) -> FeatureError:
    return FeatureError(
        f"no {extractor.config.entity} has this modality",
        where=f"features.{name}",
        fix=f"leave the table out, or set features.{name}.required = false",
    )
