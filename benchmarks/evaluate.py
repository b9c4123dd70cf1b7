"""Full ranking over the whole catalogue: users a second, beside a plain sort of every user's scores.

    python benchmarks/evaluate.py            6,040 x 3,416 and 22,363 x 12,101 (users x items)
    python benchmarks/evaluate.py --quick    a tenth of the users
    python benchmarks/evaluate.py --check    exit 1 where a target falls short, naming it

Both take the same scores (a dot product of width 64), mask the same histories and give the same metrics; the
reference is timed on 500 of the users. Target: the metrics agree to 1e-12 and ours is at least 3 times as quick.
"""

import argparse
import os
import sys
import time

import numpy as np
import polars as pl

from recsys.evaluate import evaluate
from recsys.protocol import Protocol
from recsys.schema import Queries
from recsys.split_config import SplitConfig
from recsys.splits import Split, make_log

SIZES = {"ml-1m": (6_040, 3_416, 165), "Beauty": (22_363, 12_101, 9)}  # users, items, mean history
WIDTH, K, REFERENCE_USERS, TARGET_RATIO = 64, 10, 500, 3.0


class DotProduct:
    """A trained two-tower model as far as its cost goes."""

    widths = ()

    def __init__(self, users: int, items: int, rng: np.random.Generator):
        self.users_UD = rng.normal(size=(users, WIDTH)).astype(np.float32)
        self.items_ID = rng.normal(size=(items, WIDTH)).astype(np.float32)

    def score(self, queries: Queries, candidates=None, width=None) -> np.ndarray:
        return self.users_UD[queries.user_Q] @ self.items_ID.T


def generated(users: int, items: int, mean_length: int, rng: np.random.Generator) -> Split:
    """A leave-last-out split over random histories without repeats."""
    lengths = np.clip(rng.geometric(1 / mean_length, users) + 2, 3, items // 2)
    user_N = np.repeat(np.arange(users), lengths)
    item_N = np.concatenate([rng.choice(items, length, replace=False) for length in lengths])
    log = make_log(user_N, item_N, np.arange(len(user_N)), np.ones(len(user_N), np.float32), users, items)
    from_end_N = log.indptr_U1[user_N + 1] - 1 - np.arange(len(user_N))
    part_N = np.select([from_end_N == 0, from_end_N == 1], [2, 1], 0).astype(np.int8)
    ids = pl.Series(np.arange(users)), pl.Series(np.arange(items))
    return Split(SplitConfig(method="leave_last_out"), "generated", *ids, log, part_N, {})


def reference(scorer: DotProduct, split: Split, users: int) -> list[float]:
    """NDCG@10 of the first `users` queries: mask, sort everything, look for the target."""
    asked = split.queries("test")
    values = []
    for row in range(users):
        scores = scorer.score(asked.queries.take(slice(row, row + 1)))[0]
        scores[asked.queries.history[row]] = -np.inf
        place = int(np.flatnonzero(np.argsort(-scores) == asked.targets[row][0])[0]) + 1
        values.append(1 / np.log2(place + 1) if place <= K else 0.0)
    return values


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the users")
    parser.add_argument("--check", action="store_true", help="exit 1 where a target falls short")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    protocol = Protocol(ks=(K,), mask="history", slices=(), bootstrap=0)
    print("| catalogue | users | items | users a second | reference | ratio | metrics differ by | cores |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    short = []
    for name, (users, items, mean_length) in SIZES.items():
        rng = np.random.default_rng(options.seed)
        users = users // 10 if options.quick else users
        split, scorer = generated(users, items, mean_length, rng), DotProduct(users, items, rng)
        began = time.perf_counter()
        found = evaluate(scorer, split, "test", protocol, progress=False)
        rate = users / (time.perf_counter() - began)
        few = min(REFERENCE_USERS, users)
        began = time.perf_counter()
        slow = reference(scorer, split, few)
        slow_rate = few / (time.perf_counter() - began)
        apart = float(np.abs(found.per_query[f"test/ndcg_at_{K}"].to_numpy()[:few] - slow).max())
        print(
            f"| {name} | {users:,} | {items:,} | {rate:,.0f} | {slow_rate:,.0f} | {rate / slow_rate:.1f} "
            f"| {apart:.1g} | {os.cpu_count()} |"
        )
        if apart > 1e-12:
            short.append(f"{name}: metrics differ by {apart:.2g}, target 1e-12")
        if rate / slow_rate < TARGET_RATIO:
            short.append(f"{name}: {rate / slow_rate:.1f} times the reference, target {TARGET_RATIO:.0f}")
    print("; ".join(short) or f"within the targets: equal metrics, {TARGET_RATIO:.0f} times the reference")
    if options.check and short:
        sys.exit(1)


if __name__ == "__main__":
    main()
