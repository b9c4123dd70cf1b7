"""How each split method assigns the rows of a log to parts."""

import numpy as np

from recsys.errors import SplitError
from recsys.schema import Log
from recsys.split_config import SplitConfig

_DEFAULT_CUTS = {"staged": (0.7, 0.8, 0.9)}


def assign_parts(
    log: Log, time_hi_N: np.ndarray | None, config: SplitConfig, *, has_time: bool
) -> tuple[np.ndarray, dict]:
    """(part number of every row as int8, -1 = dropped; facts to store with the split)."""
    cuts = config.cuts or _DEFAULT_CUTS.get(config.method, (0.8, 0.9))
    rng = np.random.default_rng(config.seed)
    match config.method:
        case "leave_last_out":
            return _leave_last_out(log), {}
        case "global_time" | "staged":
            if not has_time:
                raise SplitError(
                    f"method {config.method} needs timestamps, this Dataset has only an order",
                    fix='use method = "leave_last_out" or "user_ratio"',
                )
            return _by_time(log, time_hi_N, config.parts, cuts)
        case "user_ratio":
            return _user_ratio(log, cuts), {}
        case "random":
            return np.searchsorted(np.asarray(cuts), rng.random(len(log)), side="right").astype(np.int8), {}
        case "item_cold":
            return _item_cold(log, config.holdout, config.warm_holdout, rng)
        case "user_cold":
            return _user_cold(log, config.holdout, config.shots, rng)


def _position_from_end(log: Log) -> np.ndarray:
    """0 for a user's last row, 1 for the one before, ..."""
    return log.indptr_U1[log.user_N + 1] - 1 - np.arange(len(log))


def _leave_last_out(log: Log) -> np.ndarray:
    """Users with fewer than three rows stay in train: they have no row to spare."""
    from_end_N = _position_from_end(log)
    enough_N = np.diff(log.indptr_U1)[log.user_N] >= 3
    part_N = np.zeros(len(log), np.int8)
    part_N[enough_N & (from_end_N == 1)] = 1
    part_N[enough_N & (from_end_N == 0)] = 2
    return part_N


def _by_time(
    log: Log, time_hi_N: np.ndarray | None, parts: tuple[str, ...], cuts: tuple[float | int, ...]
) -> tuple[np.ndarray, dict]:
    """Rows at or after a cut belong to the later part; rows whose time is only known within bounds
    that straddle a cut could lie on either side and are dropped."""
    ordered = np.sort(log.time_N)
    moments = [int(ordered[int(cut * len(ordered))]) if cut < 1 else int(cut) for cut in cuts]
    part_N = np.searchsorted(moments, log.time_N, side="right").astype(np.int8)
    straddling = 0
    if time_hi_N is not None:
        known = np.where(np.isnan(time_hi_N.astype(float)), np.inf, time_hi_N.astype(float))
        late_N = np.searchsorted(np.asarray(moments, float), known, side="right")
        straddles_N = late_N != part_N
        straddling = int(straddles_N.sum())
        part_N[straddles_N] = -1
    return part_N, {"cut_times": dict(zip(parts[1:], moments, strict=True)), "straddling": straddling}


def _user_ratio(log: Log, cuts: tuple[float | int, ...]) -> np.ndarray:
    """A user's first share is train, the last share test; each user keeps at least one train row."""
    lengths_N = np.diff(log.indptr_U1)[log.user_N]
    position_N = np.arange(len(log)) - log.indptr_U1[log.user_N]
    borders_NP = np.maximum(np.ceil(np.outer(lengths_N, cuts) - 1e-9), 1)
    return (position_N[:, None] >= borders_NP).sum(axis=1).astype(np.int8)


def _held_out(count: int, share: float, rng: np.random.Generator, what: str) -> tuple[np.ndarray, np.ndarray]:
    size = round(count * share)
    if size == 0 or 2 * size >= count:
        raise SplitError(f"cannot hold out 2 x {share:g} of {count} {what}", fix="change split.holdout")
    chosen = rng.permutation(count)[: 2 * size]
    return chosen[:size], chosen[size:]


def _item_cold(
    log: Log, share: float, warm_share: float, rng: np.random.Generator
) -> tuple[np.ndarray, dict]:
    valid_items, test_items = _held_out(log.num_items, share, rng, "items")
    draw_N = rng.random(len(log))
    part_N = np.select([draw_N < warm_share, draw_N < 2 * warm_share], [1, 2], 0).astype(np.int8)
    part_N[np.isin(log.item_N, valid_items)] = 1
    part_N[np.isin(log.item_N, test_items)] = 2
    return part_N, {"cold_items": {"valid": len(valid_items), "test": len(test_items)}}


def _user_cold(log: Log, share: float, shots: int, rng: np.random.Generator) -> tuple[np.ndarray, dict]:
    valid_users, test_users = _held_out(log.num_users, share, rng, "users")
    part_N = np.zeros(len(log), np.int8)
    for code, users in ((2, valid_users), (3, test_users)):
        part_N[np.isin(log.user_N, users)] = code
    position_N = np.arange(len(log)) - log.indptr_U1[log.user_N]
    part_N[(part_N > 0) & (position_N < shots)] = 1
    return part_N, {"cold_users": {"valid": len(valid_users), "test": len(test_users)}}
