"""What every engine does with chunks of contents: encode them, and look at what came out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from recsys.errors import FeatureError
from recsys.features.base import Content, Extractor


@dataclass(frozen=True)
class Encoded:
    """number: the chunk's place in the list. vectors: float32 [n, F] of its readable contents, in their order.
    unreadable: position in the chunk -> why."""

    number: int
    vectors: np.ndarray
    unreadable: dict[int, str]


def encode_here(extractor: Extractor, chunks: Sequence[Sequence[Content]]) -> Iterator[Encoded]:
    """One chunk after the other, in this process. Raises FeatureError for vectors that are none."""
    for number, (vectors, unreadable) in enumerate(extractor.encode_chunks(chunks)):
        yield Encoded(number, _checked(extractor, vectors, chunks[number], unreadable), unreadable)


def _checked(
    extractor: Extractor, vectors: np.ndarray, contents: Sequence[Content], unreadable: dict[int, str]
) -> np.ndarray:
    """As float32; a wrong vector must not get into the store, where every later run would find it."""
    readable = [content for position, content in enumerate(contents) if position not in unreadable]
    where = f"{type(extractor).__name__}.encode"
    if vectors.ndim != 2 or len(vectors) != len(readable):
        raise FeatureError(f"an array {vectors.shape}", where=where, expected=f"[{len(readable)}, F]")
    vectors = vectors.astype(np.float32, copy=False)
    wrong = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(wrong):
        raise FeatureError(
            f"NaN or infinity for {str(readable[wrong[0]])[:80]!r}", where=where, fix="check the extractor"
        )
    return vectors
