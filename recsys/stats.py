"""Intervals and tests: user bootstrap, paired comparison, Holm's correction, spread over seeds."""

from collections.abc import Sequence

import numpy as np

_CHUNK = 64


def _per_group(values_QM: np.ndarray, groups_Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts of the finite values of each group: [G, M] each."""
    _, index_Q = np.unique(groups_Q, return_inverse=True)
    finite_QM = np.isfinite(values_QM)
    shape = (index_Q.max(initial=-1) + 1, values_QM.shape[1])
    sums_GM, counts_GM = np.zeros(shape), np.zeros(shape)
    np.add.at(sums_GM, index_Q, np.where(finite_QM, values_QM, 0))
    np.add.at(counts_GM, index_Q, finite_QM)
    return sums_GM, counts_GM


def bootstrap_intervals(
    values_QM: np.ndarray, groups_Q: np.ndarray, resamples: int, seed: int, level: float = 0.95
) -> np.ndarray:
    """[2, M] lower and upper percentile of the mean of each column when groups (users) are resampled.

    NaN entries are not part of their column. Columns without a finite value give NaN.
    """
    sums_GM, counts_GM = _per_group(values_QM, groups_Q)
    rng = np.random.default_rng(seed)
    groups = len(sums_GM)
    means = []
    for start in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        weights_RG = rng.multinomial(groups, np.full(groups, 1 / groups), size=rows).astype(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            means.append((weights_RG @ sums_GM) / (weights_RG @ counts_GM))
    tails = [50 * (1 - level), 50 * (1 + level)]
    means_RM = np.concatenate(means)
    out_2M = np.full((2, values_QM.shape[1]), np.nan)
    some_M = np.isfinite(means_RM).any(axis=0)
    out_2M[:, some_M] = np.nanpercentile(means_RM[:, some_M], tails, axis=0)
    return out_2M


def paired_test(
    a_Q: np.ndarray, b_Q: np.ndarray, groups_Q: np.ndarray, resamples: int = 2000, seed: int = 0
) -> dict[str, float]:
    """Difference of means a - b over the same queries: bootstrap interval and sign-flip permutation p."""
    (found,) = paired_tests((a_Q - b_Q)[:, None], groups_Q, resamples, seed)
    return found


def paired_tests(
    differences_QP: np.ndarray, groups_Q: np.ndarray, resamples: int = 2000, seed: int = 0
) -> list[dict[str, float]]:
    """`paired_test` of every column of differences over the same queries.

    Users are the unit: a user's queries are resampled, or change sign, together; the same draws serve all columns.
    """
    low_P, high_P = bootstrap_intervals(differences_QP, groups_Q, resamples, seed)
    sums_GP, counts_GP = _per_group(differences_QP, groups_Q)
    observed_P = sums_GP.sum(axis=0) / counts_GP.sum(axis=0)
    rng = np.random.default_rng([seed, 1])
    extreme_P = np.zeros(sums_GP.shape[1], np.int64)
    bar_P = np.abs(sums_GP.sum(axis=0)) - 1e-12
    for start in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        signs_RG = rng.choice([-1.0, 1.0], size=(rows, len(sums_GP)))
        extreme_P += (np.abs(signs_RG @ sums_GP) >= bar_P).sum(axis=0)
    p_P = (extreme_P + 1) / (resamples + 1)
    columns = zip(observed_P.tolist(), low_P.tolist(), high_P.tolist(), p_P.tolist(), strict=True)
    return [{"difference": d, "low": low, "high": high, "p": p} for d, low, high, p in columns]


def average_ranks(values_QK: np.ndarray) -> np.ndarray:
    """[K] mean rank of every column within its rows, 1 = largest; equal values share the mean of their ranks."""
    from scipy.stats import rankdata

    return rankdata(-values_QK, axis=1).mean(axis=0)


def critical_difference(columns: int, rows: int, level: float = 0.05) -> float:
    """By how much average ranks have to differ (Nemenyi test; Demsar, JMLR 7, 2006, section 3.2.2)."""
    from scipy.stats import studentized_range

    quantile = studentized_range.ppf(1 - level, columns, np.inf) / 2**0.5
    return float(quantile * (columns * (columns + 1) / (6 * rows)) ** 0.5)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the given order."""
    order = np.argsort(p_values)
    adjusted = np.empty(len(p_values))
    running = 0.0
    for step, index in enumerate(order):
        running = max(running, (len(p_values) - step) * p_values[index])
        adjusted[index] = min(running, 1.0)
    return adjusted.tolist()


def seed_spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, smallest, largest and standard deviation (n - 1) over seeds."""
    array = np.asarray(values, float)
    deviation = float(array.std(ddof=1)) if len(array) > 1 else float("nan")
    return {
        "mean": float(array.mean()),
        "min": float(array.min()),
        "max": float(array.max()),
        "std": deviation,
    }
