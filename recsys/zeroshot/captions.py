"""Captions of the items that a prompt shows, written once and kept."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from recsys.files import digest, write_json
from recsys.zeroshot.config import CaptionsConfig
from recsys.zeroshot.shelf import Shelf


def is_column(source: str | None) -> bool:
    """The captions stand in the items table."""
    return source is not None and source != "labels" and not source.startswith("transformers:")


def caption_pictures(
    config: CaptionsConfig,
    shelf: Shelf,
    items: Iterable[int],
    ids: Sequence[object],
    dataset: str,
    root: Path,
) -> dict[int, str]:
    """Item index -> what its picture shows, for items that have one; described once for each Dataset (its fingerprint).
    ids: of all items, in catalogue order.

    Raises FeatureError where the model cannot be loaded.
    """
    wanted = sorted({item for item in items if shelf.paths[item] is not None})
    key = digest({"source": config.source, "prompt": config.prompt, "dataset": dataset})
    path = root / "zeroshot-captions" / f"{key[:12]}.json"
    known: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    missing = [item for item in wanted if str(ids[item]) not in known]
    if missing:
        paths = [shelf.paths[item] for item in missing]
        known |= dict(zip([str(ids[item]) for item in missing], _described(config, paths), strict=True))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, known)
    return {item: known[str(ids[item])] for item in wanted}


def _described(config: CaptionsConfig, paths: list[Path | None]) -> list[str]:
    if config.source == "labels":
        from recsys.features.image.labels import label_texts

        return label_texts(paths)
    from recsys.features.image.captions import caption_texts

    return caption_texts(paths, config.source or "", prompt=config.prompt)


def cut(text: str, words: int) -> str:
    """The first so many words, with an ellipsis where there were more."""
    parts = text.split()
    return " ".join(parts[:words]) + (" ..." if len(parts) > words else "")
