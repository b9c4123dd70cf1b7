"""`recsys run` killed at any write and started again gives what an uninterrupted run gives, and nothing twice."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pytest
from tiny_run import write_recipe

from recsys.bundle import Bundle
from recsys.features.table import FeatureTable
from recsys.splits import Split
from recsys.tracking import Tracking


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    dataset = planted.order(folder / "data", users=60, items=20)
    return write_recipe(folder / "tiny.toml", dataset.path)


class Driver:
    """Walks the recipe in folders of its own, killed at given points; one process imports everything once."""

    def __init__(self, folder: Path, recipe: Path, empty_store: Path):
        self.folder, self.recipe, self.empty_store = folder, recipe, empty_store
        tests = str(Path(__file__).parent)
        self.process = subprocess.Popen(
            [sys.executable, f"{tests}/kill_driver.py", str(folder)],
            env=dict(os.environ) | {"PYTHONPATH": tests, "OMP_NUM_THREADS": "1"},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def out(self, name: str) -> Path:
        """A new output folder with an empty MLflow store."""
        path = self.folder / name
        path.mkdir()
        shutil.copyfile(self.empty_store, path / "mlflow.db")
        return path

    def drive(self, out: Path, kill: list | None) -> dict[str, Any]:
        argv = ["run", str(self.recipe), "--seeds", "0", "--out", str(out)]
        self.process.stdin.write(json.dumps({"argv": argv, "kill": kill}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def driver(tmp_path_factory, recipe, empty_store) -> Iterator[Driver]:
    made = Driver(tmp_path_factory.mktemp("runs"), recipe, empty_store)
    yield made
    made.process.stdin.close()
    made.process.wait(timeout=60)


@pytest.fixture(scope="module")
def whole(driver) -> tuple[dict, dict[str, int]]:
    """What an uninterrupted run leaves, and how many writes of each kind it makes."""
    out = driver.out("whole")
    answer = driver.drive(out, None)
    assert answer["status"] == 0, answer["words"]
    return left(out), answer["counts"]


def left(out: Path) -> dict[str, Any]:
    """All that must not depend on how often the run was killed."""
    boxes = {path.name.rsplit("-", 1)[0]: path for path in (out / "boxes").iterdir()}
    report = json.loads((boxes["report"] / "report.json").read_text())
    tracking = Tracking(None, out, "recsys")
    runs = tracking.client.search_runs([tracking.experiment_id])
    versions = tracking.client.search_model_versions("name = 'tiny'")
    timed = ("seconds",)
    return {
        "boxes": sorted(path.name for path in boxes.values()),
        "bundle": Bundle.open(out / "tiny" / "bundle").id,
        "report": report,
        "split": Split.load(boxes["split"]).id,
        "table": FeatureTable.load(boxes["features.words"]).fingerprint,
        "states": {
            name: digest(path / "state.safetensors") for name, path in boxes.items() if name[:3] == "fit"
        },
        "pictures": {path.name: digest(path) for path in boxes["report"].glob("*.png")},
        "ledger": (out / "ledger.jsonl").read_text(),
        "runs": [
            {
                "status": run.info.status,
                "name": run.info.run_name,
                "params": run.data.params,
                "metrics": {k: v for k, v in run.data.metrics.items() if not k.endswith(timed)},
                "bundle": run.data.tags["recsys.bundle"],
            }
            for run in runs
        ],
        "versions": [str(version.version) for version in versions],
        "aliases": {k: str(v) for k, v in tracking.client.get_registered_model("tiny").aliases.items()},
        "links": {name: (out / "tiny" / name).resolve().name for name in ("bundle", "report")},
    }


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def points(counts: dict[str, int], files: int, statements: int, seed: int) -> list[list]:
    """Seeded points, one in each of equal stretches of the run, so that no part of it is left out."""
    rng = np.random.default_rng(seed)
    made = []
    for kind, wanted in (("file", files), ("sql", statements)):
        borders = np.linspace(1, counts[kind] + 1, wanted + 1).astype(int)
        made += [[kind, int(rng.integers(a, max(b, a + 1)))] for a, b in pairwise(borders)]
    return made


def check(driver: Driver, whole, kills: list[list], label: str) -> None:
    for number, kill in enumerate(kills):
        out = driver.out(f"{label}{number}")
        killed = driver.drive(out, kill)
        assert killed["status"] == -9, (kill, killed["words"])
        resumed(driver, out, whole, f"a kill at {kill}")


def resumed(driver: Driver, out: Path, whole, after: str) -> None:
    answer = driver.drive(out, None)
    assert answer["status"] == 0, (after, answer["words"])
    found = left(out)
    for part, value in whole[0].items():
        assert found[part] == value, f"{part} differs after {after}"
    assert not list((out / "boxes").glob(".*")), f"half-written boxes are left after {after}"


def test_the_points_cover_the_run(whole):
    _, counts = whole
    assert counts["file"] > 100 and counts["sql"] > 20
    assert whole[0]["runs"][0]["status"] == "FINISHED" and len(whole[0]["runs"]) == 1


def test_killed_at_three_points(driver, whole):
    check(driver, whole, points(whole[1], 2, 1, seed=3), "few")


@pytest.mark.slow
def test_killed_twice(driver, whole):
    """The second kill hits the resumed run."""
    out = driver.out("twice")
    first, second = points(whole[1], 2, 0, seed=5)
    again = ["file", second[1] - first[1]]
    assert [driver.drive(out, kill)["status"] for kill in (first, again)] == [-9, -9]
    resumed(driver, out, whole, f"kills at {first} and {again}")


@pytest.mark.slow
def test_killed_at_twenty_points(driver, whole):
    check(driver, whole, points(whole[1], 12, 8, seed=7), "many")


@pytest.mark.slow
def test_killed_while_the_store_is_made(driver, whole):
    """MLflow fills a new database in hundreds of statements."""
    out = driver.out("store")
    (out / "mlflow.db").unlink()
    assert driver.drive(out, ["sql", 200])["status"] == -9
    assert not (out / "mlflow.db").exists()
    resumed(driver, out, whole, "a kill in the making of the store")
