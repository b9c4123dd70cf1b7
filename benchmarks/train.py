"""A training step of fMRLRec: ours beside the form in which the published code computes the same loss.

    python benchmarks/train.py            256 users a step, widths 8 to 256, 20 steps after 3 of warm-up
    python benchmarks/train.py --quick    64 users a step, widths 8 to 64, 5 steps
    python benchmarks/train.py --check    exit 1 where a target falls short, naming it

Data: the train part of Beauty (leave-last-out, from $RECSYS_DATA, default ../shared/data), else generated histories of
as many users and items and of like lengths; every item has a random text vector. A step is all of it: the batch,
forward, backward, clipping, AdamW. Ours is stepped by `recsys.train.fit` itself, the reference (reference_fmrlrec.py)
by a plain loop with the ordinary AdamW. Each form has a process of its own, so that its memory is its own: the largest
resident size, less that before the first step. CPU s counts the work of all threads, page faults included; other
programs on the machine disturb it least. An epoch is extrapolated from the median step. Sampled softmax is another
loss: it stands there for scale, without a target.

Where other programs take some of the cores, OpenMP threads spin at every barrier, and ours has many: there, set
OMP_WAIT_POLICY=passive, which all forms inherit, or take --threads 1.

Targets: the loss of the first batch agrees to 1e-4 and every gradient to 1e-3 (checked always); at least 10 times
faster at no more than a quarter of the memory.
"""

import argparse
import ctypes
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import psutil
import torch
from reference_fmrlrec import PlainFMRLRec, left_padded

from recsys.models.base import FitContext
from recsys.models.fmrlrec import FMRLRec, FMRLRecConfig
from recsys.models.sequence_module import training_batch
from recsys.schema import Dense, Log, Ragged
from recsys.sources import open_source
from recsys.split_config import SplitConfig
from recsys.splits import make_log, make_split
from recsys.train import fit, step_seed
from recsys.train_config import TrainConfig

USERS, ITEMS, MEDIAN_LENGTH, LEAST_LENGTH, SPREAD = 22_363, 12_101, 6, 5, 0.77
"""Of Beauty; SPREAD is that of the logarithm, which gives its mean of 8.9 too."""
FEATURE_WIDTH, WINDOW, BLOCKS, WARM_UP, MB = 384, 50, 2, 3, 1e6
TIMES_FASTER, SHARE_OF_MEMORY, LOSS_APART, GRADIENT_APART = 10.0, 0.25, 1e-4, 1e-3
FULL = {"batch": 256, "widths": "8,16,32,64,128,256", "steps": 20}
QUICK = {"batch": 64, "widths": "8,16,32,64", "steps": 5}
LOGIT_COPIES = 4
"""Of the reference's logits at all widths together, with room to spare: what it is taken to need at its peak."""
FORMS = {
    "reference": "reference",
    "ours": "ours",
    "medium": "ours, matmul medium",
    "no_allocator": "ours, freed memory returned",
    "sampled": "sampled softmax 1,024 (another loss)",
}


def data_root() -> Path:
    return Path(os.environ.get("RECSYS_DATA", Path(__file__).parents[1] / "../shared/data")).resolve()


def beauty() -> Log:
    """Train part; the catalogue is what it holds, so that both forms score the same items."""
    os.environ["RECSYS_DATA"] = str(data_root())
    with tempfile.TemporaryDirectory() as folder:
        dataset = open_source({"kind": "sequences", "name": "beauty"}).prepare(Path(folder) / "data")
        return make_split(dataset, SplitConfig(method="leave_last_out", catalogue="train")).fit_log()


def generated(seed: int = 0) -> Log:
    """Random items in histories of lognormal length, the last two of each left out."""
    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.normal(np.log(MEDIAN_LENGTH), SPREAD, USERS)).round().astype(np.int64)
    lengths = np.maximum(lengths, LEAST_LENGTH) - 2
    item_N = rng.integers(ITEMS, size=lengths.sum())
    item_N[:ITEMS] = np.arange(ITEMS)  # none is left out, and no one minds the order
    user_N = np.repeat(np.arange(USERS), lengths)
    return make_log(user_N, item_N, np.arange(len(item_N)), np.ones(len(item_N), np.float32), USERS, ITEMS)


class Meter:
    """Seconds of every step, on the clock and of all cores; and the resident size in MB, before the first step and the
    largest until the last."""

    def __init__(self):
        self.seconds: list[float] = []
        self.busy: list[float] = []

    def start(self) -> None:
        forget_set_up()
        self.before = psutil.Process().memory_info().rss / MB
        self.began = time.perf_counter(), time.process_time()

    def tick(self) -> None:
        self.seconds.append(time.perf_counter() - self.began[0])
        self.busy.append(time.process_time() - self.began[1])
        self.peak = largest_resident()
        self.began = time.perf_counter(), time.process_time()

    def facts(self) -> dict[str, float]:
        timed = self.seconds[WARM_UP:]
        seconds = {"median": statistics.median(timed), "least": min(timed)}
        memory = {"before": self.before, "peak": self.peak, "above": self.peak - self.before}
        return seconds | {"busy": statistics.median(self.busy[WARM_UP:])} | memory


def largest_resident() -> float:
    unit = 1024 if sys.platform.startswith("linux") else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MB


def forget_set_up() -> None:
    """Give back what building the data and the model left in the heap, or steps would use it unseen; and begin the
    peak anew. Elsewhere than on Linux nothing happens: the figures are rougher there."""
    gc.collect()
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def step_rows(model: FMRLRec, steps: int) -> Iterator[Ragged]:
    """The same rows for every form."""
    size = model.config.batch_size
    order = np.random.default_rng([model.seed, 0]).permutation(len(model.rows))
    for start in range(0, steps * size, size):
        yield model.rows.take(np.take(order, np.arange(start, start + size), mode="wrap"))


class Metered(FMRLRec):
    """The loop asks for a batch a step; the meter is read whenever it does."""

    def __init__(self, config: FMRLRecConfig, steps: int, meter: Meter):
        super().__init__(config)
        self.steps, self.meter = steps, meter

    def steps_per_epoch(self, world: int = 1) -> int:
        return self.steps

    def batches(self, epoch: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, torch.Tensor]]:
        self.meter.start()
        for rows in step_rows(self, self.steps):
            yield training_batch(rows)
            self.meter.tick()


def step_ours(model: Metered, ctx: FitContext, form: str) -> float:
    """Mean loss of the steps."""
    config = TrainConfig(epochs=1, matmul="medium" if form == "medium" else "highest")
    if form == "no_allocator":
        with mock.patch("recsys.train.keep_freed_memory"):
            progress = fit(model, ctx, config)
    else:
        progress = fit(model, ctx, config)
    return progress.history[0]["loss"]


def seeded(model: FMRLRec, ctx: FitContext) -> None:
    """Initial weights as `fit` makes them."""
    torch.manual_seed(step_seed(ctx.seed, 0, 0, 0))
    model.setup(ctx)


def step_reference(model: Metered, ctx: FitContext) -> float:
    """Mean loss of the steps."""
    seeded(model, ctx)
    plain, config, total = PlainFMRLRec(model.module), TrainConfig(), 0.0
    optimizer = torch.optim.AdamW(plain.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    model.meter.start()
    for rows in step_rows(model, model.steps):
        loss = plain(*left_padded(rows, WINDOW))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad()
        total += loss.item()
        model.meter.tick()
    return total / model.steps


def differences(model: Metered, ctx: FitContext) -> dict:
    """Of the two forms on the first batch: loss, relatively; the gradient that is furthest off, by its norm."""
    seeded(model, ctx)
    rows = next(step_rows(model, 1))
    plain = PlainFMRLRec(model.module)
    loss, _ = model.module(training_batch(rows))
    known = plain(*left_padded(rows, WINDOW))
    loss.backward()
    known.backward()
    apart = {}
    for name, gradient in plain.gradients().items():
        difference = model.module.get_parameter(name).grad - gradient
        apart[name] = (difference.norm() / gradient.norm().clamp_min(1e-30)).item()
    worst = max(apart, key=apart.get)
    tokens = int(rows.lengths.sum())
    return {
        "loss": abs(loss.item() / known.item() - 1), "gradient": apart[worst], "worst": worst,
        "gradients": len(apart), "labels": tokens, "positions": len(rows) * WINDOW,
    }  # fmt: skip


def measured(form: str, options: argparse.Namespace) -> dict:
    """What a process of its own says of one form."""
    torch.set_num_threads(options.threads)
    log = generated() if options.generated else beauty()
    values_IF = np.random.default_rng(1).normal(size=(log.num_items, FEATURE_WIDTH)).astype(np.float32)
    table = Dense(values_IF, np.ones(log.num_items, bool))
    ctx = FitContext(log, {("item", "text"): table})
    config = FMRLRecConfig(
        tables=("text",), widths=tuple(map(int, options.widths.split(","))), window=WINDOW, blocks=BLOCKS,
        batch_size=options.batch, loss="sampled" if form == "sampled" else "full", negatives=1024,
        dropout=0, id_dropout=0,
    )  # fmt: skip
    model = Metered(config, WARM_UP + options.steps, Meter())
    if form == "equality":
        return differences(model, ctx)
    loss = step_reference(model, ctx) if form == "reference" else step_ours(model, ctx, form)
    per_epoch = -(-len(model.rows) // options.batch)
    return model.meter.facts() | {"loss": loss, "steps_per_epoch": per_epoch, "items": log.num_items}


def asked(form: str, options: argparse.Namespace) -> dict:
    """`measured`, in a process of its own."""
    command = [sys.executable, __file__, "--form", form]
    for name in ("batch", "widths", "steps", "threads"):
        command += [f"--{name}", str(getattr(options, name))]
    command += ["--generated"] if options.generated else []
    threads = {name: str(options.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | threads)
    if done.returncode:
        sys.exit(f"{form}: the process ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def fitting_batch(options: argparse.Namespace) -> int:
    """The batch, halved until the reference fits the memory that is free."""
    batch, widths = options.batch, len(options.widths.split(","))
    while (
        batch > 1 and LOGIT_COPIES * 4 * widths * batch * WINDOW * ITEMS > psutil.virtual_memory().available
    ):
        batch //= 2
    if batch < options.batch:
        print(f"{options.batch} users a step do not fit the reference into memory: {batch} for all forms\n")
    return batch


def verdict(same: dict, reference: dict, ours: dict) -> tuple[list[str], list[str]]:
    """(what is wrong: the two forms are not the same; which targets are missed)."""
    wrong, short = [], []
    if not same["loss"] <= LOSS_APART:
        wrong.append(f"the losses are {same['loss']:.1g} apart, at most {LOSS_APART}")
    if not same["gradient"] <= GRADIENT_APART:
        wrong.append(
            f"the gradients of {same['worst']} are {same['gradient']:.1g} apart, at most {GRADIENT_APART}"
        )
    faster, share = reference["median"] / ours["median"], ours["above"] / reference["above"]
    if not faster >= TIMES_FASTER:
        short.append(f"{faster:.1f} times faster, target {TIMES_FASTER:.0f}")
    if not share <= SHARE_OF_MEMORY:
        short.append(f"{share:.2f} of the memory, target {SHARE_OF_MEMORY}")
    return wrong, short


def report(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Prints the table; returns the verdict."""
    same = asked("equality", options)
    waiting = os.environ.get("OMP_WAIT_POLICY", "default")
    print(
        f"{'generated as Beauty' if options.generated else 'Beauty'}, {options.batch} users a step, widths "
        f"{options.widths}; threads: {options.threads}, OMP_WAIT_POLICY {waiting}, load {os.getloadavg()[0]:.1f} on "
        f"{os.cpu_count()} cores; {options.steps} steps after {WARM_UP}\n"
        f"first batch: {same['labels']:,} labels on {same['positions']:,} padded positions; loss apart "
        f"{same['loss']:.1g}, {same['gradients']} gradients at most {same['gradient']:.1g} ({same['worst']})\n"
    )
    columns = "form|s a step, median|least|CPU s|steps an epoch|epoch, extrapolated|MB before|MB at the peak|MB above"
    names = f"{columns}|times faster: median, least, CPU|share of memory|mean loss".split("|")
    print(f"| {' | '.join(names)} |\n| --- |{' ---: |' * (len(names) - 1)}", flush=True)
    found = {}
    for form, title in FORMS.items():
        found[form] = facts = asked(form, options)
        known = found["reference"]
        faster = ", ".join(f"{known[name] / facts[name]:.1f}" for name in ("median", "least", "busy"))
        print(
            f"| {title} | {facts['median']:.3f} | {facts['least']:.3f} | {facts['busy']:.3f} "
            f"| {facts['steps_per_epoch']} | {facts['median'] * facts['steps_per_epoch']:,.0f} s "
            f"| {facts['before']:,.0f} | {facts['peak']:,.0f} | {facts['above']:,.0f} "
            f"| {faster} | {facts['above'] / known['above']:.3f} | {facts['loss']:.5f} |",
            flush=True,
        )
    return verdict(same, found["reference"], found["ours"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small batch, few widths, few steps")
    parser.add_argument("--check", action="store_true", help="exit 1 where a target falls short")
    parser.add_argument(
        "--generated", action="store_true", help="generated histories where Beauty is at hand too"
    )
    parser.add_argument("--batch", type=int, help="users a step")
    parser.add_argument("--widths", help="nested widths, ascending, with commas")
    parser.add_argument("--steps", type=int, help="timed steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--form", choices=["equality", *FORMS], help="one form alone, in this process, as JSON"
    )
    options = parser.parse_args()
    for name, value in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.generated = options.generated or not (data_root() / "amazon-s3rec/Beauty.txt").is_file()
    if options.form is not None:
        print(json.dumps(measured(options.form, options)))
        return
    options.batch = fitting_batch(options)
    wrong, short = report(options)
    print("; ".join(wrong + short) or "within the targets")
    if wrong or (options.check and short):
        sys.exit(1)


if __name__ == "__main__":
    main()
