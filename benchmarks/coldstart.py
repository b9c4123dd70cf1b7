"""Cold start: the contrastive model beside its rivals, with items or users held out.

    python benchmarks/coldstart.py --quick    the headline table on ml-latest-small: one partition, one seed, six
                                              epochs: a look at all of it, no comparison; minutes
    python benchmarks/coldstart.py            all tables: 5 partitions x 3 seeds, few-shot curve, ablation, learning
                                              rates, controls, gates; hours
    python benchmarks/coldstart.py --only headline,ablation
    python benchmarks/coldstart.py --check    exit 1 where a target falls short, naming it

Fits are kept under --out and not made twice. Data from $RECSYS_DATA (default ../shared/data). Settings of all models
are those of recsys/recipes/coldstart-latest-small.toml and coldstart-ml-1m.toml, found on validation.

Items: a tenth is held out by identity for validation, as many for the test, and a tenth of the other rows each. mixed:
the whole catalogue; cold, warm: only items without, or with, a training row. HR, NDCG, MRR and Recall at 10 and 20 with
95 % user bootstrap over partitions, the mean over seeds of each; sign-flip tests with users as units, Holm-corrected.

Targets: NDCG@20 above every rival, mixed and cold, p < .05; on warm no more than 1 % below the best warm model of the
same size (mf, autorec); at k = 0 above popularity by segment and at every k up to 5 above folded-in MF; shuffled
content no better among cold items than constant content.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from coldstart_runs import Column, FirstShots, Job, Place, against, fitted, judged, prepare
from matplotlib import pyplot as plt

from recsys.evaluate import Evaluation, evaluate
from recsys.protocol import Protocol

OURS, SMALL, LARGE = "coldstart", "coldstart-latest-small", "coldstart-ml-1m"
POOLS = {"mixed": "", "cold": "/pool.cold", "warm": "/pool.warm"}
METRICS = ("hr", "ndcg", "mrr", "recall")
SAME_SIZE = ("mf", "autorec")
SHOTS = (0, 1, 2, 3, 5, 10)
QUICK_EPOCHS = 6
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
SWITCHES: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "without selection": {"selection": False},
    "without fusion gate": {"fusion": False},
    "without contrastive loss": {"contrastive": []},
    "none of them": {"selection": False, "fusion": False, "contrastive": []},
    "without closed-form half": {"linear": None},
    "closed-form half alone": {"linear": {"weight": 1e6}, "train": {"epochs": 1}},
}


class Bench:
    """Partitions and seeds, and where results go. headline_changes: to the settings of all models of that table. short:
    targets that were missed."""

    def __init__(
        self,
        out: Path,
        partitions: Sequence[int],
        seeds: Sequence[int],
        workers: int,
        headline_changes: Mapping[str, Any] | None = None,
    ):
        self.out, self.seeds, self.short, self.workers = out, seeds, [], workers
        self.headline_changes = headline_changes
        self.places = [Place.of(SMALL, out, f"split.seed={number}") for number in partitions]

    def all(
        self, name: str, changes: Mapping[str, Any] | None = None, control: str = ""
    ) -> list[list[Evaluation]]:
        return [
            [judged(place, name, seed, changes, control=control) for seed in self.seeds]
            for place in self.places
        ]

    def prepare(self, *asked: tuple[str, Mapping[str, Any] | None, str]) -> None:
        """(model, changes, control) of what `all` is going to be asked for, fitted several at once."""
        jobs = [
            Job(place, name, seed, changes, "test", control)
            for name, changes, control in asked
            for place in self.places
            for seed in self.seeds
        ]
        prepare(jobs, self.workers)

    def need(self, holds: bool, what: str) -> None:
        if not holds:
            self.short.append(what)

    def headline(self) -> None:
        """Every model of the recipe in every pool."""
        names, changes = list(self.places[0].recipe.models), self.headline_changes
        self.prepare(*((name, changes, "") for name in names))
        found = {name: self.all(name, changes) for name in names}
        for k in (10, 20):
            print(f"\n| at {k} | {' | '.join(f'{pool} {one}' for pool in POOLS for one in METRICS)} |")
            print(f"| --- |{' --- |' * len(POOLS) * len(METRICS)}")
            for name in self._best_first(found):
                cells = [
                    Column.of(found[name], f"test/{one}_at_{k}{key}").shown()
                    for key in POOLS.values()
                    for one in METRICS
                ]
                print(f"| {name} | {' | '.join(cells)} |")
        for pool, key in POOLS.items():
            columns = {name: Column.of(one, f"test/ndcg_at_20{key}") for name, one in found.items()}
            own = columns.pop(OURS)
            print(f"\n{OURS} less others, NDCG@20, {pool}:")
            lines = against(own, columns)
            print("\n".join(f"    {line}" for line in lines))
            if pool == "warm":
                best = max(columns[name].mean for name in SAME_SIZE)
                self.need(
                    own.mean >= 0.99 * best, f"warm NDCG@20 {own.mean:.4f}, best of its size {best:.4f}"
                )
            else:
                behind = [line for line in lines if not _above(line)]
                self.need(not behind, f"{pool}: not clearly above {', '.join(behind)}")
        self._buckets(found)

    def _best_first(self, found: Mapping[str, Any]) -> list[str]:
        return sorted(found, key=lambda name: -Column.of(found[name], "test/ndcg_at_20").mean)

    def _buckets(self, found: Mapping[str, list[list[Evaluation]]]) -> None:
        """Recall@20 by how often training saw the target, the whole catalogue as candidates."""
        keys = [f"count.{label}" for label in ("0", "1-2", "3-5", "6-10", "11-up")]
        print(f"\n| Recall@20, train count | {' | '.join(keys)} |\n| --- |{' --- |' * len(keys)}")
        for name in self._best_first(found):
            cells = [f"{Column.of(found[name], f'test/recall_at_20/{key}').mean:.4f}" for key in keys]
            print(f"| {name} | {' | '.join(cells)} |")

    def ablation(self) -> None:
        self.prepare(*((OURS, changes, "") for changes in SWITCHES.values()))
        print(f"\n| NDCG@20 | {' | '.join(POOLS)} |\n| --- |{' --- |' * len(POOLS)}")
        for label, changes in SWITCHES.items():
            found = self.all(OURS, changes)
            cells = [Column.of(found, f"test/ndcg_at_20{key}").shown() for key in POOLS.values()]
            print(f"| {label} | {' | '.join(cells)} |")

    def controls(self) -> None:
        print(f"\n| NDCG@20 | {' | '.join(POOLS)} |\n| --- |{' --- |' * len(POOLS)}")
        cold, controls = {}, ("", "shuffled", "constant")
        self.prepare(*((OURS, None, control) for control in controls))
        for control in controls:
            found = self.all(OURS, control=control)
            columns = {pool: Column.of(found, f"test/ndcg_at_20{key}") for pool, key in POOLS.items()}
            cold[control] = columns["cold"].mean
            print(f"| {control or 'own'} content | {' | '.join(one.shown() for one in columns.values())} |")
        self.need(
            cold["shuffled"] < 0.25 * cold[""], f"shuffled content reaches {cold['shuffled']:.4f} on cold"
        )

    def rates(self) -> None:
        """Validation NDCG@20 in every pool by learning rate, first partition."""
        place, lines = self.places[0], {pool: [] for pool in POOLS}
        changes = {rate: {"train": {"lr": rate}} for rate in RATES}
        jobs = [Job(place, OURS, seed, one, "valid", "") for one in changes.values() for seed in self.seeds]
        prepare(jobs, self.workers)
        for rate in RATES:
            found = [[judged(place, OURS, seed, changes[rate], part="valid") for seed in self.seeds]]
            for pool, key in POOLS.items():
                lines[pool].append(Column.of(found, f"valid/ndcg_at_20{key}").mean)
        figure, axes = plt.subplots(figsize=(5, 3.2))
        for pool, values in lines.items():
            axes.semilogx(RATES, values, marker="o", label=pool)
            print(
                f"{pool}: {', '.join(f'{rate:g} {value:.4f}' for rate, value in zip(RATES, values, strict=True))}"
            )
        axes.set(xlabel="learning rate", ylabel="validation NDCG@20")
        axes.legend()
        _kept(figure, self.out / "coldstart-rates.png")

    def gates(self) -> None:
        """Mean weight of every field and group, of warm and of cold items."""
        place = self.places[0]
        model = fitted(place, OURS, self.seeds[0], {})
        cold_I = place.split.fit_log().item_counts() == 0
        slices = {"warm items": np.flatnonzero(~cold_I), "cold items": np.flatnonzero(cold_I)}
        found = {label: model.gates(items=rows) for label, rows in slices.items()}
        names = list(found["warm items"])
        figure, axes = plt.subplots(figsize=(7, 3.2))
        for number, (label, weights) in enumerate(found.items()):
            axes.bar(np.arange(len(names)) + 0.4 * number, list(weights.values()), 0.4, label=label)
            print(f"{label}: {', '.join(f'{name} {weight:.3f}' for name, weight in weights.items())}")
        axes.set_xticks(np.arange(len(names)) + 0.2, names, rotation=30, ha="right")
        axes.legend()
        _kept(figure, self.out / "coldstart-gates.png")

    def shots(self) -> None:
        """Users held out but for their first ten events: k of these are shown, and the later ones asked for."""
        place = Place.of(
            LARGE, self.out, "split.method=user_cold", "split.shots=10", "train.monitor.pools=all"
        )
        names = (OURS, "popularity-segment", "mf-folded", "content-knn")
        protocol = Protocol(ks=(20,), slices=(), bootstrap=0)
        rows: dict[str, dict[int, Column]] = {}
        for name in names:
            models = [fitted(place, name, seed, {}) for seed in self.seeds]
            for k in SHOTS:
                found = [
                    evaluate(FirstShots(one, k), place.split, "test", protocol, progress=False)
                    for one in models
                ]
                rows.setdefault(name, {})[k] = Column.of([found], "test/ndcg_at_20")
        print(f"\n| NDCG@20, shown | {' | '.join(map(str, SHOTS))} |\n| --- |{' --- |' * len(SHOTS)}")
        figure, axes = plt.subplots(figsize=(5, 3.2))
        for name, columns in rows.items():
            print(f"| {name} | {' | '.join(columns[k].shown() for k in SHOTS)} |")
            axes.plot(range(len(SHOTS)), [columns[k].mean for k in SHOTS], marker="o", label=name)
        axes.set_xticks(range(len(SHOTS)), map(str, SHOTS))
        axes.set(xlabel="events shown", ylabel="test NDCG@20")
        axes.legend()
        _kept(figure, self.out / "coldstart-shots.png")
        for k, rival in [(0, "popularity-segment"), *((k, "mf-folded") for k in SHOTS if k <= 5)]:
            own, other = rows[OURS][k], rows[rival][k]
            self.need(own.mean > other.mean, f"{k} shots: {own.mean:.4f}, {rival} {other.mean:.4f}")


def _above(line: str) -> bool:
    difference, p = float(line.split(": ")[1].split(" ")[0]), float(line.split("p = ")[1])
    return difference > 0 and p < 0.05


def _kept(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
    print(f"plot: {path}")


STUDIES = ("headline", "ablation", "controls", "rates", "gates", "shots")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"headline alone: a partition, a seed, {QUICK_EPOCHS} epochs"
    )
    parser.add_argument("--only", default=",".join(STUDIES), help="tables, of: " + ", ".join(STUDIES))
    parser.add_argument("--partitions", type=int, default=5, help="item partitions")
    parser.add_argument("--seeds", type=int, default=3, help="model seeds of each partition")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=int, default=cores, help="fits at once, a core each")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of boxes and results")
    parser.add_argument("--check", action="store_true", help="exit 1 where a target falls short")
    options = parser.parse_args()
    partitions, seeds = (1, 1) if options.quick else (options.partitions, options.seeds)
    changes = {"train": {"epochs": QUICK_EPOCHS}} if options.quick else None
    bench = Bench(options.out, range(partitions), range(seeds), options.workers, changes)
    for study in ["headline"] if options.quick else options.only.split(","):
        print(f"\n## {study}: {partitions} partitions, {seeds} seeds")
        getattr(bench, study)()
    print("\n" + ("; ".join(bench.short) or "all targets met"))
    if options.check and bench.short:
        sys.exit(1)


if __name__ == "__main__":
    os.environ.setdefault("RECSYS_DATA", str((Path(__file__).parents[1] / "../shared/data").resolve()))
    main()
