"""Dataset to FeatureTable: resumable per chunk, content-addressed, so a changed row is encoded alone."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from recsys import schema
from recsys.config import parse
from recsys.dataset import Dataset
from recsys.errors import ConfigError, FeatureError, nearest
from recsys.features.base import Extractor, UnreadableContent, content_hash
from recsys.features.table import FeatureTable
from recsys.files import digest, write_bytes
from recsys.progress import track
from recsys.registry import EXTRACTORS, load_class

logger = logging.getLogger("recsys")


@dataclass(frozen=True)
class Summary:
    """What an extraction found: rows present, missing, unreadable (first offender named), newly encoded."""

    present: int
    missing: int
    unreadable: int
    encoded: int
    first_unreadable: str | None = None


def make_extractor(table: Mapping[str, Any], *, where: str) -> Extractor:
    """An extractor from a recipe table such as `{kind = "text", template = "{title}"}`."""
    settings = dict(table)
    kind = settings.pop("kind", None)
    if kind not in EXTRACTORS and ":" not in str(kind):
        raise ConfigError(f"{where}.kind = {kind!r}", fix=nearest(str(kind), EXTRACTORS))
    extractor = load_class(kind, EXTRACTORS, Extractor)
    return extractor(parse(extractor.Config, settings, where=where))


def extract(
    dataset: Dataset, extractor: Extractor, name: str, store: Path, *, progress: bool = True
) -> tuple[FeatureTable, Summary]:
    """Encode every row of the entity's table that the store does not hold yet.

    Raises FeatureError where no row has this modality, unless the extractor's config says it is not required.
    """
    entity = extractor.config.entity
    rows = dataset.items if entity == "item" else dataset.scan("users").collect()
    ids = rows[schema.ITEM if entity == "item" else schema.USER]
    contents = extractor.contents(rows, dataset.media_root)
    hashes = ["" if content is None else content_hash(content) for content in contents]
    folder = store / extractor.key()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    known = _read_store(folder)
    todo = {
        row_hash: content
        for row_hash, content in zip(hashes, contents, strict=True)
        if row_hash and row_hash not in known
    }
    unreadable: dict[str, str] = {}
    pending = list(todo.items())
    chunks = [
        pending[start : start + extractor.chunk_rows]
        for start in range(0, len(pending), extractor.chunk_rows)
    ]
    for chunk in track(chunks, f"{name} features", enabled=progress, total=len(chunks)):
        vectors = _encode_chunk(extractor, chunk, unreadable)
        if vectors:
            write_bytes(folder / f"{digest(sorted(vectors))[:32]}.safetensors", save(vectors))
            known |= vectors
    if unreadable:
        logger.warning(
            "%d %s rows are unreadable and count as missing: %s",
            len(unreadable),
            name,
            next(iter(unreadable.values())),
        )
    present_E = np.array([row_hash in known for row_hash in hashes], bool)
    if not present_E.any():
        if extractor.config.required:
            raise FeatureError(
                f"no {entity} has this modality",
                where=f"features.{name}",
                fix=f"leave the table out of the recipe, or set features.{name}.required = false",
            )
        logger.warning("no %s has the modality %r: models see it as missing everywhere", entity, name)
    width = len(next(iter(known.values()))) if known else 1
    values_EF = np.full((len(ids), width), np.nan, np.float32)
    for row in np.flatnonzero(present_E):
        values_EF[row] = known[hashes[row]]
    row_hashes = tuple(
        row_hash if present else "" for row_hash, present in zip(hashes, present_E, strict=True)
    )
    manifest = {"modality": extractor.modality} | dict(extractor.identity())
    table = FeatureTable(entity, name, ids, values_EF, present_E, row_hashes, manifest)
    if extractor.config.hide:
        table = table.hidden(extractor.config.hide, extractor.config.hide_seed)
    present = int(table.present_E.sum())
    first = next(iter(unreadable.values()), None)
    return table, Summary(present, len(ids) - present - len(unreadable), len(unreadable), len(todo), first)


def _read_store(folder: Path) -> dict[str, np.ndarray]:
    known: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.safetensors")):
        known |= load_file(path)
    return known


def _encode_chunk(
    extractor: Extractor, chunk: list[tuple[str, str | Path]], unreadable: dict[str, str]
) -> dict[str, np.ndarray]:
    """Vectors by content hash; contents that cannot be decoded are set aside and named."""
    try:
        vectors = extractor.encode([content for _, content in chunk])
    except UnreadableContent as error:
        bad = set(error.positions)
        unreadable |= {chunk[position][0]: error.reason for position in bad}
        kept = [entry for position, entry in enumerate(chunk) if position not in bad]
        return _encode_chunk(extractor, kept, unreadable) if kept else {}
    return {row_hash: vector for (row_hash, _), vector in zip(chunk, vectors, strict=True)}
