"""SASRec here and in RecBole: training positions a second, and users a second of a full ranking. Beauty, equal width.

    python benchmarks/recbole.py [--quick] [--check] [--steps 20] [--threads 2]

Both: width 64, two blocks, inner width 256, softmax over the whole catalogue, histories of at most 50. RecBole trains
on one row a position, a prefix each (its batch: 2,048); ours on one row a user, all positions of it at once. Its
environment is made if it is not there (minutes). --check: exit 1 below ten times.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# as the command line does; RecBole's process inherits it
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from recsys.config import parse
from recsys.evaluate import evaluate
from recsys.models.base import FitContext
from recsys.models.sasrec import SASRec
from recsys.protocol import Protocol
from recsys.recbole.atomic import write_benchmark
from recsys.recbole.environment import environment, outside
from recsys.recbole.run import DRIVER
from recsys.sources import open_source
from recsys.splits import Split, SplitConfig, make_split

TARGET = 10.0
WINDOW, WARMUP = 50, 3
SETTINGS = {
    "widths": [64], "blocks": 2, "ffn_multiple": 4, "heads": 2, "loss": "full", "window": WINDOW, "dropout": 0.5,
}  # fmt: skip


def of_recbole(split: Split, folder: Path, steps: int, threads: int) -> dict[str, float]:
    """Positions a second of its training loop, users a second of its evaluation."""
    write_benchmark(split, folder / "data", sequential=True, window=WINDOW)
    job = {
        "model": "SASRec", "folder": str(folder / "data"), "sequential": True,
        "columns": ["user_id", "item_id", "item_id_list"], "window": WINDOW, "ks": [10], "seed": 0,
        "out": str(folder), "settings": {}, "steps": steps, "warmup": WARMUP,
    }  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job))
    command = [str(environment()), str(DRIVER), "time", str(folder / "job.json")]
    variables = outside() | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"RecBole failed: {done.stderr.strip().splitlines()[-1]}")
    found = json.loads((folder / "result.json").read_text())
    users = len(split.queries("test"))
    return {"positions": found["positions"] / found["seconds"], "users": users / found["judging"]}


def of_ours(split: Split, steps: int, batch: int) -> dict[str, float]:
    model = SASRec(parse(SASRec.Config, SETTINGS | {"batch_size": batch}, where="benchmark"))
    torch.manual_seed(0)
    model.setup(FitContext(split.fit_log()))
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=1e-3, fused=True)
    model.module.train()
    positions, began = 0, 0.0
    for number, step in enumerate(model.batches(0)):
        if number == WARMUP:
            began = time.perf_counter()
        optimizer.zero_grad()
        model.module(step)[0].backward()
        optimizer.step()
        positions += len(step["labels_P"]) if number >= WARMUP else 0
        if number + 1 == WARMUP + steps:
            break
    training = positions / (time.perf_counter() - began)
    began = time.perf_counter()
    evaluate(model, split, "test", Protocol(ks=(10,), mask="off", slices=(), bootstrap=0), progress=False)
    return {"positions": training, "users": len(split.queries("test")) / (time.perf_counter() - began)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="five steps")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=256, help="users a step of ours")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    steps = 5 if options.quick else options.steps
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        dataset = open_source({"kind": "sequences", "name": "beauty"}).prepare(folder / "beauty")
        split = make_split(dataset, SplitConfig(method="leave_last_out"))
        theirs, own = of_recbole(split, folder, steps, options.threads), of_ours(split, steps, options.batch)
    print(f"SASRec on Beauty, width 64, {options.threads} threads, {steps} steps after {WARMUP}\n")
    print("| what | RecBole | ours | times |\n| --- | ---: | ---: | ---: |")
    short = []
    for name, what in {"positions": "training positions a second", "users": "users ranked a second"}.items():
        ratio = own[name] / theirs[name]
        print(f"| {what} | {theirs[name]:,.0f} | {own[name]:,.0f} | {ratio:.1f} |")
        if ratio < TARGET:
            short.append(f"{what}: {ratio:.1f} times, target {TARGET:g}")
    for line in short:
        print(f"short: {line}", file=sys.stderr)
    sys.exit(1 if options.check and short else 0)


if __name__ == "__main__":
    main()
