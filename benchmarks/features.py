"""Do feature tables know what an article is? Neighbours of the same product type, beside a shuffled control.

    python benchmarks/features.py            9,578 H&M articles; several minutes, most of them for the images
    python benchmarks/features.py --quick    1,500 of them, drawn with --seed
    python benchmarks/features.py --check    exit 1 where a target falls short, naming it

Needs hm-items in $RECSYS_DATA (default ../shared/data) and the extras train and encoders. The query is an article's
own vector, ranked against all others by cosine. Colours of one product share product_code: they are neither
candidates nor answers. recall@10 = articles of the same product_type_name among the first ten, of at most ten that
there are; articles without any are no queries. The text is name and description, which often names the type in words;
the columns of type, group and colour are not in it. Control: the same vectors dealt out to the articles at random.
Intervals: 95 %, bootstrap over queries. Target: the lower end of recall is at least 3 times the upper end of its
control.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

import recsys
from recsys.features.duplicates import unit_rows
from recsys.features.table import FeatureTable
from recsys.sources import open_source

FEATURES = {
    "image": {"kind": "image", "encoder": "efficientnet_lite0"},
    "text": {"kind": "text", "encoder": "minilm", "template": "{title}. {text}"},
}
QUICK, K, RESAMPLES, TARGET_RATIO, BLOCK = 1_500, 10, 1_000, 3.0, 1_000


def prepared(folder: Path, size: int | None, seed: int) -> recsys.Dataset:
    """All articles, or `size` of them with the pairs among them."""
    whole = open_source({"kind": "pairs", "name": "hm-items"}).prepare(folder / "whole")
    if size is None:
        return whole
    items = whole.items.sample(size, seed=seed)
    drawn = items["item_id"].implode()
    both = pl.col("item_id").is_in(drawn) & pl.col("other_id").is_in(drawn)
    pairs = whole.scan("pairs").filter(both)
    return recsys.Dataset.from_frames(folder / "drawn", items=items, pairs=pairs, media_root=whole.media_root)


def recalls(table: FeatureTable, items: pl.DataFrame) -> np.ndarray:
    """recall@10 of every query."""
    kind_I, product_I = (
        items[name].rank("dense").to_numpy() for name in ("product_type_name", "product_code")
    )
    unit_IF, _ = unit_rows(np.where(table.present_E[:, None], table.values_EF, 0))
    found = []
    for start in range(0, len(items), BLOCK):
        rows = slice(start, start + BLOCK)
        other = product_I[rows, None] != product_I[None]
        right = other & (kind_I[rows, None] == kind_I[None])
        scores = np.where(other & table.present_E, unit_IF[rows] @ unit_IF.T, -np.inf)
        top = np.argsort(-scores, axis=1, kind="stable")[:, :K]
        hits, answers = np.take_along_axis(right, top, axis=1).sum(1), right.sum(1)
        asked = (answers > 0) & table.present_E[rows]
        found.append(hits[asked] / np.minimum(answers[asked], K))
    return np.concatenate(found)


def shuffled(table: FeatureTable, seed: int) -> FeatureTable:
    order = np.random.default_rng(seed).permutation(len(table.ids))
    return FeatureTable(
        table.entity, table.name, table.ids, tuple(table.hashes_E[row] for row in order), table.manifest,
        table.values_EF[order], table.present_E[order],
    )  # fmt: skip


def interval(values: np.ndarray, seed: int) -> tuple[float, float, float]:
    """(mean, low, high)"""
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK:,} articles")
    parser.add_argument("--items", type=int, default=None, help="number of articles")
    parser.add_argument("--check", action="store_true", help="exit 1 where a target falls short")
    parser.add_argument("--out", type=Path, default=None, help="folder that keeps the tables for a next time")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.setdefault("RECSYS_DATA", str(Path(__file__).parents[1] / "../shared/data"))
    short = []
    with tempfile.TemporaryDirectory() as temporary:
        size = options.items or (QUICK if options.quick else None)
        dataset = prepared(Path(temporary), size, options.seed)
        tables = recsys.extract_features(dataset, FEATURES, out=options.out or Path(temporary) / "tables")
        print(f"| table | encoder | width | articles | queries | recall@{K} | shuffled |")
        print("| --- | --- | ---: | ---: | ---: | --- | --- |")
        for name, table in tables.items():
            values = recalls(table, dataset.items)
            mean, low, high = interval(values, options.seed)
            chance, least, most = interval(
                recalls(shuffled(table, options.seed), dataset.items), options.seed
            )
            print(
                f"| {name} | {table.manifest['encoder']} | {table.width:,} | {len(table.ids):,} | {len(values):,} "
                f"| {mean:.4f} [{low:.4f}, {high:.4f}] | {chance:.4f} [{least:.4f}, {most:.4f}] |"
            )
            if low < TARGET_RATIO * most:
                short.append(f"{name}: recall@{K} {low:.4f}, target {TARGET_RATIO * most:.4f}")
    print("; ".join(short) or f"within the targets: {TARGET_RATIO:.0f} times the shuffled control")
    if options.check and short:
        sys.exit(1)


if __name__ == "__main__":
    main()
