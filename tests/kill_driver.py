"""Runs `recsys` in forked processes that can be killed at an exact point; everything heavy is imported once.

    kill_driver.py ROOT      then, line by line on standard input: {"argv": [...], "kill": null | [kind, number]}

A point is the number-th write: kind "file" counts files opened for writing, renames, new and removed entries below
ROOT; kind "sql" counts statements that change a SQLite database. The process kills itself with SIGKILL right before
it. Each line is answered by one: exit status (negative = signal), what was printed, and the counts of a run that was
not killed.
"""

import contextlib
import importlib
import json
import os
import sqlite3
import sys
import tempfile
from pathlib import Path

import torch
from kill_points import Points

import recsys.cli
import recsys.pipeline
import recsys.present

# What a run imports late, so that a forked child does not import it again; a saving of time, no more.
for late in (
    "accelerate", "matplotlib.figure", "matplotlib.pyplot", "mlflow.pyfunc", "recsys.models.baselines.ease",
    "mlflow.store.model_registry.sqlalchemy_workspace_store", "mlflow.store.tracking.sqlalchemy_workspace_store",
    "recsys.models.fmrlrec", "recsys.plots", "recsys.report", "sqlalchemy.dialects.sqlite", "torch._dynamo",
):  # fmt: skip
    with contextlib.suppress(ImportError):
        importlib.import_module(late)


def child(argv: list[str], root: str, kill: list | None, result: Path) -> None:
    """One `recsys` command; never returns."""
    torch.set_num_threads(1)
    points = Points(root, kill)
    sys.addaudithook(points.hook)
    sqlite3.connect = sqlite3.dbapi2.connect = points.connect
    sys.argv = ["recsys", *argv]
    code = 1
    try:
        recsys.cli.main()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    result.write_text(json.dumps(points.counts))
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        result, words = Path(folder) / "counts.json", Path(folder) / "words"
        for line in sys.stdin:
            entry = json.loads(line)
            result.unlink(missing_ok=True)
            pid = os.fork()
            if pid == 0:
                stream = os.open(words, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(stream, 1)
                os.dup2(stream, 2)
                child(entry["argv"], sys.argv[1], entry["kill"], result)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            counts = json.loads(result.read_text()) if result.exists() else None
            print(json.dumps({"status": status, "counts": counts, "words": words.read_text()}), flush=True)


if __name__ == "__main__":
    main()
