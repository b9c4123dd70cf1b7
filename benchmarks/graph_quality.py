"""Do graph recommenders read content, and what do they lose where it is missing?

    python benchmarks/graph_quality.py            graph models of a recipe, every table, 10 to 70 % removed; hours
    python benchmarks/graph_quality.py --quick    one preset, text alone, half of it removed, few epochs; minutes
    python benchmarks/graph_quality.py --check    exit 1 where a target falls short, naming it

Rows of a model (a preset, or the neighbour encoder, whose graph is made again of what is left): as it is; `permuted`,
with the rows of all tables dealt to other items together; and, per table and share of its rows removed at random,
`train` (gone while it is fitted, there when it scores), `test` (there while it is fitted, gone when it scores), each
with the gap left to the model (`missing`) and filled with the mean of the table's other rows (`mean`; the encoder has
none for typed fields, whose values are nodes). Of one draw, larger shares hold the smaller ones. LightGCN is the level
of ids alone.

NDCG@10 of the recipe's validation part, history masked, over all items and among the cold; 95 % intervals, bootstrap
over users, of each query's mean over seeds. Targets, by the lower bounds of paired differences: a permuted preset is
worse than the intact one among cold items, and over all items no better than ids alone; filling with the mean is
nowhere better than the gap.
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("RECSYS_DATA", str((Path(__file__).parents[1] / "../shared/data").resolve()))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np

from recsys.evaluate import evaluate
from recsys.fields import Categorical, Field, Fields, MultiValued, as_vectors
from recsys.fitting import Job, aligned_tables, context, model_config
from recsys.models.base import FitContext, Model
from recsys.models.graph.build import build_graph
from recsys.models.graph.mmgl import MMGL
from recsys.models.graph.mmgl_module import Inputs, MMGLModule
from recsys.models.graph.recommender import GraphRec
from recsys.pipeline import plan
from recsys.protocol import Protocol
from recsys.recipe import Recipe, load_recipe, model_tables
from recsys.registry import MODELS, load_class
from recsys.schema import Dense, Ragged
from recsys.splits import Split
from recsys.stats import bootstrap_intervals, paired_test
from recsys.train import fit

RECIPE, IDS = "graph-latest-small", "lightgcn"
SHARES, QUICK_SHARES, QUICK_EPOCHS, QUICK_MODEL = (0.1, 0.3, 0.5, 0.7), (0.5,), 5, "freedom"
ALL, COLD = "valid/ndcg_at_10", "valid/ndcg_at_10/pool.cold"
Tables = Mapping[str, Dense | Fields]


@dataclass(frozen=True)
class Bench:
    """The split, and the item tables by name."""

    recipe: Recipe
    split: Split
    tables: Tables

    def job(self, name: str, seed: int) -> Job:
        kind, settings, train = model_tables(self.recipe)[name]
        model_class = load_class(kind, MODELS, Model)
        return Job(
            name, kind, model_config(model_class, settings, name, set(self.tables)), train, seed, "cpu"
        )

    def context(self, job: Job, tables: Tables) -> FitContext:
        known = {("item", name): table for name, table in tables.items()}
        graph = None
        if load_class(job.kind, MODELS, Model).uses_graph:
            graph = build_graph(self.recipe.graph, self.split.fit_log(), tables)
        return replace(context(self.split, job, {}), tables=known, graph=graph)

    def fitted(self, name: str, seed: int, tables: Tables) -> Model:
        job = self.job(name, seed)
        model = load_class(job.kind, MODELS, Model)(job.config)
        fit(model, self.context(job, tables), job.train)
        return model

    def judged(self, model: Model) -> tuple[np.ndarray, np.ndarray]:
        """NDCG@10 of every query over all items, and among the cold: NaN where a query has no cold target."""
        protocol = Protocol(ks=(10,), mask="history", slices=("pool",), bootstrap=0)
        found = evaluate(model, self.split, "valid", protocol, progress=False).per_query
        none_Q = np.full(len(found), np.nan)
        return tuple(found[key].to_numpy() if key in found.columns else none_Q for key in (ALL, COLD))

    def scoring_with(self, model: GraphRec | MMGL, seed: int, name: str, tables: Tables) -> GraphRec | MMGL:
        """The fitted model where these tables are what it has of the items: its weights and whitening, other rows."""
        other, module, log = type(model)(model.config), model.module, self.split.fit_log()
        other.setup(self.context(self.job(name, seed), tables))
        known = model.content if isinstance(model, MMGL) else module.known
        content = {table: one.read(as_vectors(tables[table])) for table, one in known.items()}
        if isinstance(other, MMGL):
            other.content = content
            other.module = MMGLModule(model.config, log, Inputs(content, other.read))
        else:
            other.module = type(module)(model.config, log, content)
        other.module.load_state_dict(module.state_dict())
        return other


def bench_of(recipe: Recipe, root: Path) -> Bench:
    """Makes what is not there yet of data, split and tables."""
    line = plan(recipe, root)
    names = [name for name in line.boxes if name in ("data", "split") or name.startswith("features.")]
    line.run(lambda box: print(f"... {box.name}", file=sys.stderr), lambda box, cached: None, until=names[-1])
    split = Split.load(line.boxes["split"].folder)
    boxes = {name: line.boxes[f"features.{name}"] for name in recipe.features}
    return Bench(recipe, split, {name: table for (_, name), table in aligned_tables(split, boxes).items()})


def without(
    tables: Tables, name: str, share: float, trained_I: np.ndarray, *, filled: bool
) -> dict[str, Dense | Fields]:
    """The tables where this share of one's rows are gone, or the mean of its other trained rows."""
    table = tables[name]
    there = np.flatnonzero(table.present_E)
    gone = np.random.default_rng(0).permutation(there)[: round(share * len(there))]
    if isinstance(table, Fields) and not filled:
        return dict(tables) | {name: Fields({key: cleared(one, gone) for key, one in table.fields.items()})}
    table = as_vectors(table)
    values_EF, present_E = table.values_EF.copy(), table.present_E.copy()
    present_E[gone], values_EF[gone] = False, np.nan
    if filled:
        values_EF[gone] = values_EF[present_E & trained_I].mean(axis=0)
        present_E[gone] = True
    return dict(tables) | {name: Dense(values_EF, present_E)}


def cleared(field: Field, gone: np.ndarray) -> Field:
    """Nothing known of these rows."""
    present_E = field.present_E.copy()
    present_E[gone] = False
    if isinstance(field, Categorical):
        return replace(field, codes_E=np.where(present_E, field.codes_E, 0), present_E=present_E)
    if isinstance(field, MultiValued):
        codes = field.codes
        ends = np.where(present_E, codes.ends, codes.starts)
        return replace(field, codes=Ragged(codes.values, codes.starts, ends), present_E=present_E)
    return replace(field, values_E=np.where(present_E, field.values_E, np.nan), present_E=present_E)


def permuted(tables: Tables) -> dict[str, Dense | Fields]:
    """All tables, dealt to other items together."""
    order = np.random.default_rng(0).permutation(len(next(iter(tables.values())).present_E))
    return {name: table.take(order) for name, table in tables.items()}


def rows_of(
    bench: Bench, name: str, seed: int, removed: tuple[str, ...], shares: tuple[float, ...]
) -> Iterator:
    """((model, what was done), what `judged` says) of one model and seed."""
    tables, trained_I = bench.tables, bench.split.fit_log().item_counts() > 0
    intact = bench.fitted(name, seed, tables)
    yield (name, "intact"), bench.judged(intact)
    yield (name, "permuted"), bench.judged(bench.fitted(name, seed, permuted(tables)))
    for table in removed:
        for share in shares:
            for how in ("missing", "mean"):
                if how == "mean" and isinstance(intact, MMGL) and isinstance(tables[table], Fields):
                    continue  # values are nodes there
                cut = without(tables, table, share, trained_I, filled=how == "mean")
                where = f"{table} -{share:.0%}"
                learnt = bench.scoring_with(bench.fitted(name, seed, cut), seed, name, tables)
                yield (name, f"{where} train, {how}"), bench.judged(learnt)
                yield (
                    (name, f"{where} test, {how}"),
                    bench.judged(bench.scoring_with(intact, seed, name, cut)),
                )


def shown(values_Q: np.ndarray, user_Q: np.ndarray) -> str:
    asked = np.isfinite(values_Q)
    if not asked.any():
        return "none asked"
    low, high = bootstrap_intervals(values_Q[asked][:, None], user_Q[asked], 1000, 0)[:, 0]
    return f"{values_Q[asked].mean():.4f} [{low:.4f}, {high:.4f}]"


def short_of(found: Mapping[tuple[str, str], tuple[np.ndarray, np.ndarray]], user_Q: np.ndarray) -> list[str]:
    """Targets that were missed."""
    short = []
    for (name, done), (all_Q, cold_Q) in found.items():
        asked = np.isfinite(cold_Q)
        if done == "permuted" and asked.any():
            loss = paired_test(found[name, "intact"][1][asked], cold_Q[asked], user_Q[asked])
            if loss["low"] <= 0:
                short.append(f"{name}: permuted content loses {loss['difference']:.4f} among cold items")
        if done == "permuted":
            gain = paired_test(all_Q, found[IDS, "ids alone"][0], user_Q)
            if gain["low"] > 0:
                short.append(f"{name}: permuted content is {gain['difference']:.4f} above ids alone")
        if done.endswith(", mean"):
            gain = paired_test(all_Q, found[name, done.replace(", mean", ", missing")][0], user_Q)
            if gain["low"] > 0:
                short.append(f"{name}, {done}: {gain['difference']:.4f} better than the gap")
    return short


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_MODEL}, text, {QUICK_EPOCHS} epochs")
    parser.add_argument("--check", action="store_true", help="exit 1 where a target falls short")
    parser.add_argument("--recipe", default=RECIPE, help="shipped recipe or TOML file")
    parser.add_argument("--set", action="append", default=[], dest="assignments", help="as of recsys run")
    parser.add_argument("--models", default=None, help="names of graph models in the recipe; default: all")
    parser.add_argument("--seeds", default="0", help="e.g. 0,1,2")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder that keeps data and tables")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    assignments = [*options.assignments, *([f"train.epochs={QUICK_EPOCHS}"] if options.quick else [])]
    recipe = load_recipe(options.recipe, assignments)
    models = [
        name
        for name, (kind, _, _) in model_tables(recipe).items()
        if issubclass(load_class(kind, MODELS, Model), GraphRec | MMGL)
    ]
    names = options.models.split(",") if options.models else [QUICK_MODEL] if options.quick else models
    if others := sorted(set(names) - set(models)):
        parser.error(f"--models {','.join(others)}: those of the recipe are {', '.join(models)}")
    bench = bench_of(recipe, options.out)
    removed = ("text",) if options.quick else tuple(recipe.features)
    shares = QUICK_SHARES if options.quick else SHARES
    sums: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]] = {}
    for seed in map(int, options.seeds.split(",")):
        sums.setdefault((IDS, "ids alone"), []).append(bench.judged(bench.fitted(IDS, seed, bench.tables)))
        for name in names:
            for row, values in rows_of(bench, name, seed, removed, shares):
                sums.setdefault(row, []).append(values)
                means = " ".join(f"{np.nanmean(side):.4f}" for side in values if np.isfinite(side).any())
                print(f"    {row[0]}, {row[1]}, seed {seed}: {means}", file=sys.stderr, flush=True)
    found = {
        row: tuple(np.mean(side, axis=0) for side in zip(*seeds, strict=True)) for row, seeds in sums.items()
    }
    user_Q = bench.split.queries("valid").queries.user_Q
    print(
        f"{recipe.name}, split {bench.split.id}, valid NDCG@10, seeds {options.seeds}; {len(user_Q):,} queries\n"
    )
    print("| model | content | all items | among cold items |\n| --- | --- | --- | --- |")
    for (name, done), sides in found.items():
        print(f"| {name} | {done} | {' | '.join(shown(side, user_Q) for side in sides)} |")
    short = short_of(found, user_Q)
    print("\n" + ("; ".join(short) or "within the targets"))
    if options.check and short:
        sys.exit(1)


if __name__ == "__main__":
    main()
