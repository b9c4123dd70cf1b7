"""Hard negatives that are no positives in disguise, mined once with a teacher's vectors.

They are mined before training, not with the model as it stands in each epoch: a run that is resumed in the middle of an
epoch then sees the very batches of one that was not interrupted. To mine again with a better teacher is another run.
"""

import numpy as np

from recsys.models.embedders.config import PairLossConfig

_BLOCK = 512


def hard_negatives(
    teacher_ID: np.ndarray, pairs_P2: np.ndarray, codes: np.ndarray, config: PairLossConfig
) -> np.ndarray:
    """[P, H] items for each pair, -1 where there are fewer: those nearest to the left item among the ranks
    `hard_ranks` (1 = the nearest other item), whose cosine is at most that of the pair plus `hard_margin` and that are
    paired with neither side. codes: left * I + right of all known pairs, both ways, ascending."""
    size, (first, last) = len(teacher_ID), config.hard_ranks
    unit_ID = teacher_ID / np.maximum(np.linalg.norm(teacher_ID, axis=1, keepdims=True), 1e-12)
    found_PH = np.full((len(pairs_P2), config.hard_negatives), -1, np.int64)
    for start in range(0, len(pairs_P2), _BLOCK):
        left_B, right_B = pairs_P2[start : start + _BLOCK].T
        cosines_BI = unit_ID[left_B] @ unit_ID.T
        own_B = cosines_BI[np.arange(len(left_B)), right_B]
        cosines_BI[np.arange(len(left_B)), left_B] = -np.inf
        order_BC = np.argsort(-cosines_BI, axis=1, kind="stable")[:, first - 1 : min(last, size - 1)]
        near_BC = np.take_along_axis(cosines_BI, order_BC, 1)
        fits_BC = near_BC <= own_B[:, None] + config.hard_margin
        for side_B in (left_B, right_B):
            fits_BC &= (order_BC != side_B[:, None]) & ~_known(side_B[:, None] * size + order_BC, codes)
        for row, fits_C in enumerate(fits_BC):
            chosen = order_BC[row, fits_C][: config.hard_negatives]
            found_PH[start + row, : len(chosen)] = chosen
    return found_PH


def _known(asked: np.ndarray, codes: np.ndarray) -> np.ndarray:
    at = np.searchsorted(codes, asked).clip(max=len(codes) - 1)
    return codes[at] == asked
