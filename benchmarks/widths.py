"""What nesting costs and gains: slices of one training beside models trained at each width, and beside PCA.

    recsys train benchmarks/fmrlrec_widths.toml --out runs/widths
    python benchmarks/widths.py --out runs/widths            validation part; --seeds as given to train
    python benchmarks/widths.py --out runs/widths --check    exit 1 where a target falls short, naming it

Rows: the nested model cut to a width; a model trained at that width alone; the un-nested model of the full width with
query and item vectors turned into the principal axes of the items and cut there. NDCG@10, history masked.

Targets, of the nested model's own full width: 97 % at 128, 92 % at 64, 75 % at 32; and no loss at the full width
against the same model trained without nesting (the lower bound of the paired difference is not above zero).
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np

from recsys.evaluate import evaluate
from recsys.fitting import Fit, Job, model_config
from recsys.models.base import Model
from recsys.models.sequence import SequenceModel
from recsys.pipeline import plan
from recsys.protocol import Protocol
from recsys.recipe import Recipe, load_recipe, model_tables
from recsys.registry import MODELS, load_class
from recsys.schema import Queries, legal_width
from recsys.scoring import dot_scores
from recsys.splits import Split
from recsys.stats import bootstrap_intervals, paired_test

RECIPE = Path(__file__).with_name("fmrlrec_widths.toml")
TARGETS = {128: 0.97, 64: 0.92, 32: 0.75}
METRIC = "valid/ndcg_at_10"


class Principal:
    """A model of one width whose scores read the first m principal axes of its item vectors."""

    def __init__(self, model: SequenceModel, widths: tuple[int, ...]):
        self.model, self.widths = model, widths
        self.items_ID, self.bias_I = model.item_table()
        _, axes_DD = np.linalg.eigh(self.items_ID.T @ self.items_ID)
        self.axes_DD = axes_DD[:, ::-1]

    def score(
        self, queries: Queries, candidates: np.ndarray | None = None, width: int | None = None
    ) -> np.ndarray:
        axes_DM = self.axes_DD[:, : legal_width(width, self.widths)]
        repeat = self.model.module.repeat
        return dot_scores(
            self.model.query_vectors(queries) @ axes_DM,
            self.items_ID @ axes_DM,
            self.bias_I,
            candidates,
            history=queries.history,
            repeat=None if repeat is None else repeat.detach().numpy(),
        )


def by_width(scorer: SequenceModel | Principal, split: Split) -> dict[int, np.ndarray]:
    """NDCG@10 of every query at every width."""
    protocol = Protocol(ks=(10,), mask="history", widths="all", slices=(), bootstrap=0)
    table = evaluate(scorer, split, "valid", protocol, progress=False).per_query
    full = scorer.widths[-1]
    return {
        width: table[METRIC if width == full else f"{METRIC}/width.{width}"].to_numpy()
        for width in scorer.widths
    }


def fitted(recipe: Recipe, root: Path, seed: int) -> tuple[Split, dict[str, SequenceModel]]:
    """The split, and the models that `recsys train` has left."""
    boxes = plan(recipe, root).boxes
    split = Split.load(boxes["split"].folder)
    models = {}
    for name, (kind, settings, train) in model_tables(recipe).items():
        model_class = load_class(kind, MODELS, Model)
        config = model_config(model_class, settings, name, set(recipe.features))
        box = boxes[f"fit.{name}.seed{seed}"]
        if not box.folder.exists():
            sys.exit(f"{box.folder} is not there: run recsys train {RECIPE} --out {root} first")
        models[name] = Fit(Job(name, kind, config, train, seed, "cpu"), box).model()
    return split, models


def seed_rows(recipe: Recipe, root: Path, seed: int) -> tuple[np.ndarray, dict[str, dict[int, np.ndarray]]]:
    """(user of every query, row of the table -> width -> NDCG of every query) of one seed."""
    split, models = fitted(recipe, root, seed)
    nested = models.pop("nested")
    rows = {"nested, cut": by_width(nested, split), "trained at the width": {}}
    for model in models.values():
        rows["trained at the width"] |= by_width(model, split)
    full = nested.widths[-1]
    largest = next(model for model in models.values() if model.widths == (full,))
    rows["PCA of the full width"] = by_width(Principal(largest, nested.widths), split)
    return split.queries("valid").queries.user_Q, rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder given to recsys train")
    parser.add_argument("--seeds", default="0", help="as given to recsys train")
    parser.add_argument("--check", action="store_true", help="exit 1 where a target falls short")
    options = parser.parse_args()
    seeds = tuple(map(int, options.seeds.split(",")))
    recipe = load_recipe(str(RECIPE), seeds=seeds)
    found = [seed_rows(recipe, options.out, seed) for seed in seeds]
    user_Q = found[0][0]
    # a query's mean over the seeds: intervals are over users, as everywhere
    rows = {
        name: {width: np.mean([one[1][name][width] for one in found], axis=0) for width in found[0][1][name]}
        for name in found[0][1]
    }
    nested = rows["nested, cut"]
    widths, full = sorted(nested), max(nested)
    print(
        f"valid NDCG@10, history masked; seeds {list(seeds)}; {len(user_Q):,} queries; share of the nested full width\n"
    )
    print(f"| | {' | '.join(map(str, widths))} |\n| --- |{' --- |' * len(widths)}")
    reference = nested[full].mean()
    for name, values in rows.items():
        cells = []
        for width in widths:
            low, high = bootstrap_intervals(values[width][:, None], user_Q, 1000, 0)[:, 0]
            mean = values[width].mean()
            cells.append(f"{mean:.4f} [{low:.4f}, {high:.4f}] {mean / reference:.0%}")
        print(f"| {name} | {' | '.join(cells)} |")
    cost = paired_test(rows["trained at the width"][full], nested[full], user_Q)
    print(
        f"\nun-nested less nested at {full}: {cost['difference']:+.4f} [{cost['low']:+.4f}, {cost['high']:+.4f}]"
    )
    short = [
        f"{nested[width].mean() / reference:.1%} at {width}, target {share:.0%}"
        for width, share in TARGETS.items()
        if width in nested and nested[width].mean() < share * reference
    ]
    if cost["low"] > 0:
        short.append(f"nesting costs {cost['difference']:.4f} at the full width")
    print("; ".join(short) or "within the targets")
    if options.check and short:
        sys.exit(1)


if __name__ == "__main__":
    os.environ.setdefault("RECSYS_DATA", str((Path(__file__).parents[1] / "../shared/data").resolve()))
    main()
