"""Which rows a step takes: a new order every epoch, shared out among processes."""

from collections.abc import Iterator

import numpy as np


def steps(rows: int, size: int, world: int = 1) -> int:
    """Steps of an epoch over so many rows, `size` of them a step and process."""
    return -(-rows // (size * world))


def batches_of_rows(
    rows: int, size: int, seed: int, epoch: int, rank: int = 0, world: int = 1
) -> Iterator[tuple[int, np.ndarray]]:
    """(place of the step in the order, rows of this process); the same number of steps on every rank."""
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    if world > 1:  # the last rows are filled up from the front, so that every rank takes as many steps
        order = np.resize(order, steps(rows, size, world) * world * size)
    for start in range(0, len(order), size * world):
        yield start, order[start : start + size * world][rank::world]
