"""Small pictures of items, for people who look at what is recommended."""

import io
import logging

import polars as pl
from PIL import Image

from recsys import schema
from recsys.dataset import Dataset
from recsys.progress import track

logger = logging.getLogger("recsys")
_QUALITY = 80


def thumbnails(dataset: Dataset, item_ids: pl.Series, side: int) -> dict[int, bytes]:
    """Position in item_ids -> JPEG of at most side x side pixels; nothing where side is 0 or there are no pictures.

    A file that is missing or cannot be read is left out, and counted in the log.
    """
    if side == 0 or dataset.media_root is None or schema.IMAGE not in dataset.items.columns:
        return {}
    path_of = dict(dataset.items.select(schema.ITEM, schema.IMAGE).iter_rows())
    found: dict[int, bytes] = {}
    unreadable = 0
    for index, item_id in enumerate(track(item_ids.to_list(), "thumbnails")):
        name = path_of.get(item_id)
        if not name or not (dataset.media_root / name).is_file():
            continue
        try:
            with Image.open(dataset.media_root / name) as picture:
                picture.draft("RGB", (side, side))
                small = picture.convert("RGB")
                small.thumbnail((side, side))
        except (OSError, ValueError, Image.DecompressionBombError):
            unreadable += 1
            continue
        out = io.BytesIO()
        small.save(out, "JPEG", quality=_QUALITY)
        found[index] = out.getvalue()
    if unreadable:
        logger.warning("%d pictures cannot be read and have no thumbnail", unreadable)
    return found
