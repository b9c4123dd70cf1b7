"""Smoothing over a graph: our product beside the other sparse forms, its growth, and an epoch of LightGCN.

    python benchmarks/graph.py            the graph of Sports, growth to 1,000,000 nodes, 20 timed steps
    python benchmarks/graph.py --quick    growth to 100,000 nodes, 5 timed steps
    python benchmarks/graph.py --check    exit 1 where a target falls short, naming it

First table: A x of width 64 and its gradient, A = D^-1/2 (0 R; R' 0) D^-1/2 over 35,598 users and 18,357 items with
218,409 generated pairs (436,818 directed edges), as in the train part of Sports. Forms: COO, CSR as torch has it,
gather and scatter as torch-geometric's message passing does it (`LGConv`), and ours (`recsys.models.sparse`), which
goes backward by the same matrix. Second table: ours at the same edges a node. Third: a training step of LightGCN with
two layers and BPR, batch 2,048, on the train part of Sports (leave-last-out, from $RECSYS_DATA, default
../shared/data; generated pairs where it is absent), with ours and with gather and scatter in its place; the epoch is
extrapolated from the median step.

Each row has a process of its own. Peak: the largest resident size, less that before the first step. CPU ms counts the
work of all threads; on a busy machine compare these.

Targets: all forms agree to 1e-5 (checked always); by CPU time, ours takes at most three quarters of a step of CSR's and
a quarter of gather and scatter's; time per edge grows at most fivefold from the smallest graph to the largest, whose
vectors no longer fit a cache; an epoch of LightGCN takes at most a third of that with gather and scatter.
"""

import argparse
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import psutil
import torch
from torch_geometric.nn import LGConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from recsys.models.base import FitContext
from recsys.models.baselines.lightgcn import LightGCN, LightGCNConfig
from recsys.models.sparse import csr, symmetric_product
from recsys.schema import Log
from recsys.sources import open_source
from recsys.split_config import SplitConfig
from recsys.splits import make_log, make_split

USERS, ITEMS, PAIRS, WIDTH, BATCH, MB = 35_598, 18_357, 218_409, 64, 2_048, 1e6
FULL = {"steps": 20, "sizes": "53955,200000,500000,1000000"}
QUICK = {"steps": 5, "sizes": "53955,100000"}
FORMS = {"coo": "COO", "csr": "CSR", "gather": "gather and scatter", "ours": "ours"}
OF_CSR, OF_GATHER, GROWTH, OF_EPOCH, APART, WARM_UP = 0.75, 0.25, 5.0, 1 / 3, 1e-5, 2
Product = Callable[[torch.Tensor], torch.Tensor]


def generated(nodes: int, seed: int = 0) -> Log:
    """Random pairs at Sports' ratios of users, items and pairs; items are taken by a power law."""
    rng = np.random.default_rng(seed)
    scale = nodes / (USERS + ITEMS)
    users, pairs = round(USERS * scale), round(PAIRS * scale)
    items = nodes - users
    found = np.zeros(0, np.int64)
    while len(found) < pairs:  # each pair once
        item_N = (items * rng.random(2 * pairs) ** 2).astype(np.int64)
        found = np.unique(np.concatenate([found, rng.integers(users, size=2 * pairs) * items + item_N]))
    user_N, item_N = np.divmod(rng.permutation(found)[:pairs], items)
    return make_log(user_N, item_N, np.arange(pairs), np.ones(pairs, np.float32), users, items)


def sports() -> tuple[Log, str]:
    root = Path(os.environ.get("RECSYS_DATA", Path(__file__).parents[1] / "../shared/data")).resolve()
    if not (root / "amazon-s3rec/Sports_and_Outdoors.txt").is_file():
        return generated(USERS + ITEMS), "pairs generated as Sports"
    os.environ["RECSYS_DATA"] = str(root)
    with tempfile.TemporaryDirectory() as folder:
        dataset = open_source({"kind": "sequences", "name": "sports"}).prepare(Path(folder) / "data")
        return make_split(
            dataset, SplitConfig(method="leave_last_out", catalogue="train")
        ).fit_log(), "Sports"


def edges(log: Log) -> tuple[torch.Tensor, torch.Tensor]:
    pairs_2N = np.stack([log.user_N, log.item_N + log.num_users])
    places_2N = torch.from_numpy(np.concatenate([pairs_2N, pairs_2N[::-1]], axis=1))
    return gcn_norm(places_2N, num_nodes=log.num_users + log.num_items, add_self_loops=False)


def product(form: str, log: Log) -> Product:
    places_2N, values_N = edges(log)
    size = log.num_users + log.num_items
    if form == "coo":
        coo = torch.sparse_coo_tensor(places_2N, values_N, (size, size), check_invariants=False).coalesce()
        return lambda x: torch.sparse.mm(coo, x)
    if form == "gather":
        layer = LGConv(normalize=False)
        return lambda x: layer(x, places_2N, values_N)
    matrix = csr(places_2N, values_N, size)
    return (lambda x: matrix @ x) if form == "csr" else (lambda x: symmetric_product(matrix, x))


class Meter:
    """Median milliseconds of named parts of a step, on the clock and of all threads; memory above that before."""

    def __init__(self):
        gc.collect()
        if sys.platform.startswith("linux"):
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self.before = psutil.Process().memory_info().rss
        self.parts: dict[str, list[tuple[float, float]]] = {}

    def timed(self, name: str, work: Callable[[], object]) -> object:
        began = time.perf_counter(), time.process_time()
        found = work()
        self.parts.setdefault(name, []).append(
            (time.perf_counter() - began[0], time.process_time() - began[1])
        )
        return found

    def facts(self) -> dict[str, float]:
        unit = 1024 if sys.platform.startswith("linux") else 1
        facts = {"peak": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - self.before) / MB}
        for name, pairs in self.parts.items():
            clock, busy = (1e3 * statistics.median(values) for values in zip(*pairs[WARM_UP:], strict=True))
            facts |= {name: clock, f"{name} busy": busy}
        return facts


def step_of_product(form: str, nodes: int, steps: int) -> dict[str, float]:
    log = generated(nodes)
    multiply = product(form, log)
    size = log.num_users + log.num_items
    x_ND = torch.randn(size, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()
    d_ND = torch.randn(size, WIDTH, generator=torch.Generator().manual_seed(1))
    meter = Meter()
    for _ in range(WARM_UP + steps):
        x_ND.grad = None
        out_ND = meter.timed("forward", lambda: multiply(x_ND))
        meter.timed("backward", lambda out_ND=out_ND: out_ND.backward(d_ND))
    checks = [*out_ND[::97, 0].tolist(), *x_ND.grad[::97, 0].tolist()]
    return meter.facts() | {"checks": checks, "edges": 2 * len(log)}


def step_of_lightgcn(form: str, steps: int) -> dict[str, float]:
    log, name = sports()
    model = LightGCN(LightGCNConfig(widths=(WIDTH,), layers=2, batch_size=BATCH))
    torch.manual_seed(0)
    model.setup(FitContext(log))
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=1e-3, fused=True)
    multiply = product("gather", log)
    smooth = mock.patch("recsys.models.graph.propagation.symmetric_product", lambda _, x_ND: multiply(x_ND))
    if form == "gather":
        smooth.start()
    meter, losses = Meter(), []

    def step(batch) -> None:
        loss, _ = model.module(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    for number, batch in zip(range(WARM_UP + steps), model.batches(0), strict=False):
        torch.manual_seed(number)
        meter.timed("step", lambda batch=batch: step(batch))
    return meter.facts() | {"checks": losses[:WARM_UP], "per_epoch": model.steps_per_epoch(), "data": name}


def measured(options: argparse.Namespace) -> dict:
    torch.set_num_threads(options.threads)
    if options.task == "epoch":
        return step_of_lightgcn(options.form, options.steps)
    return step_of_product(options.form, options.nodes, options.steps)


def asked(task: str, form: str, options: argparse.Namespace, nodes: int = USERS + ITEMS) -> dict:
    """`measured`, in a process of its own."""
    command = [sys.executable, __file__, "--task", task, "--form", form, "--nodes", str(nodes)]
    command += ["--steps", str(options.steps), "--threads", str(options.threads)]
    threads = {name: str(options.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | threads)
    if done.returncode:
        sys.exit(f"{task}, {form}: the process ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def same(one: dict, other: dict) -> bool:
    return np.allclose(one["checks"], other["checks"], rtol=APART, atol=APART)


def report(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Prints the tables. (what is wrong: two forms are not the same; which targets are missed)."""
    wrong, short = [], []
    print(
        f"threads: {options.threads}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; {options.steps} steps "
        f"after {WARM_UP}\n\n| form | forward ms | backward ms | CPU ms a step | times ours | MB at the peak |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    found = {form: asked("product", form, options) for form in FORMS}
    busy = {form: facts["forward busy"] + facts["backward busy"] for form, facts in found.items()}
    for form, facts in found.items():
        print(
            f"| {FORMS[form]} | {facts['forward']:.0f} | {facts['backward']:.0f} | {busy[form]:.0f} "
            f"| {busy[form] / busy['ours']:.1f} | {facts['peak']:,.0f} |"
        )
        if not same(facts, found["ours"]):
            wrong.append(f"{FORMS[form]} and ours are not the same product to {APART}")
    for form, share in {"csr": OF_CSR, "gather": OF_GATHER}.items():
        if busy["ours"] > share * busy[form]:
            short.append(f"ours takes {busy['ours'] / busy[form]:.2f} of {FORMS[form]}, target {share}")
    print("\n| nodes | directed edges | forward ms | backward ms | CPU ns an edge | MB at the peak |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    costs = []
    for nodes in map(int, options.sizes.split(",")):
        facts = asked("product", "ours", options, nodes)
        costs.append(1e6 * (facts["forward busy"] + facts["backward busy"]) / facts["edges"])
        print(
            f"| {nodes:,} | {facts['edges']:,} | {facts['forward']:.0f} | {facts['backward']:.0f} | {costs[-1]:.0f} "
            f"| {facts['peak']:,.0f} |",
            flush=True,
        )
    if costs[-1] > GROWTH * costs[0]:
        short.append(f"{costs[-1] / costs[0]:.1f} times the time per edge, target {GROWTH:.0f}")
    print(
        "\n| LightGCN-2 with | data | ms a step | CPU ms | steps an epoch | epoch, extrapolated | MB at the peak |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    epochs = {form: asked("epoch", form, options) for form in ("ours", "gather")}
    for form, facts in epochs.items():
        print(
            f"| {FORMS[form]} | {facts['data']} | {facts['step']:.0f} | {facts['step busy']:.0f} "
            f"| {facts['per_epoch']} | {facts['step'] * facts['per_epoch'] / 1e3:.0f} s | {facts['peak']:,.0f} |"
        )
    if not same(epochs["gather"], epochs["ours"]):
        wrong.append(f"losses of LightGCN differ: {epochs['gather']['checks']}, {epochs['ours']['checks']}")
    share = epochs["ours"]["step busy"] / epochs["gather"]["step busy"]
    if share > OF_EPOCH:
        short.append(f"an epoch takes {share:.2f} of that with gather and scatter, target {OF_EPOCH:.2f}")
    return wrong, short


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer steps, growth to 100,000 nodes")
    parser.add_argument("--check", action="store_true", help="exit 1 where a target falls short")
    parser.add_argument("--steps", type=int, help="timed steps")
    parser.add_argument("--sizes", help="nodes of the second table, with commas")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--task", choices=["product", "epoch"], help="one row alone, in this process, as JSON"
    )
    parser.add_argument("--form", choices=list(FORMS))
    parser.add_argument("--nodes", type=int)
    options = parser.parse_args()
    for name, value in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.task is not None:
        print(json.dumps(measured(options)))
        return
    wrong, short = report(options)
    print("\n" + ("; ".join(wrong + short) or "within the targets"))
    if wrong or (options.check and short):
        sys.exit(1)


if __name__ == "__main__":
    main()
