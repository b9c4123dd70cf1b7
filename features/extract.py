"""Dataset to FeatureTable: resumable per chunk, content-addressed, so a changed row is encoded alone."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from recsys import schema
from recsys.config import parse
from recsys.dataset import Dataset
from recsys.errors import ConfigError, FeatureError, nearest
from recsys.features import ray_engine
from recsys.features.base import Content, Extractor, TableMaker, content_hash
from recsys.features.chunks import Encoded, encode_here
from recsys.features.parts import Parts
from recsys.features.store import Store
from recsys.features.table import FeatureTable
from recsys.progress import track
from recsys.registry import EXTRACTORS, load_class

logger = logging.getLogger("recsys")
Engine = Literal["local", "ray"]
Encode = Callable[[Extractor, list[list[Content]]], Iterator[Encoded]]
_NAMED_OFFENDERS = 5
_ATTEMPTS = 3


@dataclass(frozen=True)
class Summary:
    """What an extraction found and did.

    rows = present + missing + unreadable. encoded: contents that the store did not hold, in `seconds`; equal
    contents count once. left_out: unreadable contents of rows that have others. offenders: the first unreadable
    contents, as "id: why".
    """

    rows: int
    present: int
    missing: int
    unreadable: int
    encoded: int
    seconds: float
    left_out: int = 0
    offenders: tuple[str, ...] = ()


@dataclass(frozen=True)
class Raw:
    """Rows of an entity's table with their content: one, several, or None where it is missing."""

    ids: pl.Series
    contents: Sequence[Content | tuple[Content, ...] | None]


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

    raw: what `gather` gave, where it was called before. engine: "ray" encodes on Ray actors, `workers` of them;
    "local" here, where `workers` processes decode files ahead of the encoder (0 = none, unset = the extractor's own).
    Raises FeatureError where no row has this modality, unless the extractor's config says it is not required.
    """
    entity, raw = extractor.config.entity, raw or gather(dataset, extractor, name)
    encode = encode_here if engine == "local" else partial(ray_engine.encode, workers=workers)
    if engine == "local" and workers is not None:
        extractor.workers = workers
    parts = Parts.of(raw.contents)
    hashes, unreadable = _hashes(
        track(parts.contents, f"{name}: reading", enabled=progress, total=len(parts.contents))
    )
    began = time.perf_counter()
    values_PF, present_P, encoded, undecoded = _vectors(
        extractor, name, parts, hashes, store, encode, progress
    )
    seconds = time.perf_counter() - began
    unreadable |= undecoded
    values_EF, present_E = parts.pooled(values_PF, present_P, unit=extractor.unit)
    unreadable_E = np.zeros(len(raw.ids), bool)
    unreadable_E[parts.row_P[list(unreadable)]] = True
    unreadable_E &= ~present_E
    left_out = int(present_E[parts.row_P[list(unreadable)]].sum())
    offenders = tuple(
        f"{raw.ids[int(parts.row_P[part])]}: {unreadable[part]}"
        for part in sorted(unreadable)[:_NAMED_OFFENDERS]
    )
    if offenders:
        logger.warning(
            "%d %s rows are unreadable and count as missing%s: %s",
            unreadable_E.sum(),
            name,
            f", {left_out} contents of others are left out" if left_out else "",
            "; ".join(offenders),
        )
    if not present_E.any():
        if extractor.config.required:
            raise _nothing(extractor, name)
        logger.warning("no %s has the modality %r: models see it as missing everywhere", entity, name)
        values_EF = values_EF[:, :1]  # whatever else the store holds
    hashes_E = tuple(np.where(present_E, parts.hashes(hashes), "").tolist())
    manifest = {"modality": extractor.modality} | dict(extractor.identity())
    table = FeatureTable(entity, name, raw.ids, hashes_E, manifest, values_EF, present_E)
    if extractor.config.hide:
        table = table.hidden(extractor.config.hide, extractor.config.hide_seed)
    present = int(table.present_E.sum())
    missing = len(raw.ids) - present - int(unreadable_E.sum())
    counts = len(raw.ids), present, missing, int(unreadable_E.sum())
    return table, Summary(*counts, encoded, seconds, left_out, offenders)


def _hashes(contents: Iterable[Content | None]) -> tuple[list[str], dict[int, str]]:
    """Content hash of every part ("" where it is missing), and the parts whose file cannot be read, with the reason."""
    hashes: list[str] = []
    unreadable: dict[int, str] = {}
    for part, content in enumerate(contents):
        value = ""
        if content is not None:
            try:
                value = content_hash(content)
            except OSError as error:
                unreadable[part] = f"{content}: {error.strerror or error}"
        hashes.append(value)
    return hashes, unreadable


def _vectors(
    extractor: Extractor,
    name: str,
    parts: Parts,
    hashes: list[str],
    store: Path,
    encode: Encode,
    progress: bool,
) -> tuple[np.ndarray, np.ndarray, int, dict[int, str]]:
    """(values_PF, present_P, how many contents were encoded, part -> why it cannot be decoded)."""
    contents = {
        value: content
        for value, content in zip(hashes, parts.contents, strict=True)
        if value and content is not None
    }
    if not contents:
        return np.full((len(hashes), 1), np.nan, np.float32), np.zeros(len(hashes), bool), 0, {}
    encoded = 0
    with Store.opened(store / extractor.key()[:16]) as kept:
        for _ in range(_ATTEMPTS):
            encoded += _fill(kept, extractor, name, contents, encode, progress)
            found = kept.read(hashes)
            if found is not None:  # else a chunk was damaged, and the store lacks its contents now
                unreadable = {
                    part: kept.unreadable[value]
                    for part, value in enumerate(hashes)
                    if value in kept.unreadable
                }
                return *found, encoded, unreadable
        raise FeatureError("what is written here does not come back", where=kept.folder, fix="check the disk")


def _fill(
    kept: Store,
    extractor: Extractor,
    name: str,
    contents: Mapping[str, Content],
    encode: Encode,
    progress: bool,
) -> int:
    """Encode what the store lacks, chunk by chunk; returns how many contents were encoded.

    A chunk is made of contents that were never tried, in the order of the rows, so that a killed extraction goes on
    with the very chunks that it had not finished. What could not be read before comes last, in chunks of its own.
    """
    lacking = [value for value in contents if value not in kept]
    untried = [value for value in lacking if value not in kept.unreadable]
    again = [value for value in lacking if value in kept.unreadable]
    chunks = [
        some[start : start + extractor.chunk_rows]
        for some in (untried, again)
        for start in range(0, len(some), extractor.chunk_rows)
    ]
    given = [[contents[value] for value in chunk] for chunk in chunks]
    encoded = 0
    for one in track(encode(extractor, given), f"{name}: encoding", enabled=progress, total=len(chunks)):
        chunk = chunks[one.number]
        readable = [value for position, value in enumerate(chunk) if position not in one.unreadable]
        reasons = {chunk[position]: why for position, why in one.unreadable.items()}
        if readable or reasons.keys() - kept.unreadable.keys():
            kept.commit(readable, one.vectors, reasons, where=f"features.{name}")
        encoded += len(readable)
    return encoded


def _nothing(extractor: Extractor, name: str) -> FeatureError:
    return FeatureError(
        f"no {extractor.config.entity} has this modality",
        where=f"features.{name}",
        fix=f"leave the table out, or set features.{name}.required = false",
    )
