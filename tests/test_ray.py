"""The Ray engine: the local engine's table to the byte, resumable, and its mistakes in one line."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hash_file import BAD, HashFile, HashFileConfig
from hash_text import HashText, HashTextConfig

from recsys.dataset import Dataset
from recsys.errors import ConfigError, FeatureError
from recsys.features.extract import extract
from recsys.features.store import Store

TESTS = str(Path(__file__).parent)
ODD = {0: "/etc/hosts", 1: "ünïcode \u2028 line", 2: 'quo"te', 3: "a" * 5000, 4: "two\nlines"}
"""Texts that look like paths stay texts, odd characters stay what they are."""


class NotANumber(HashText):
    """Faulty: its vectors hold NaN."""

    def encode(self, contents: list) -> np.ndarray:
        return np.full((len(contents), 3), np.nan)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray on this machine, which a caller may have started before us; started once for all tests here."""
    ray = pytest.importorskip("ray", reason="the extra `scale` is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", TESTS)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
        yield
        ray.shutdown()


def dataset_of(folder: Path, rows: int = 60) -> Dataset:
    """Titles of which some repeat and some are missing; files of which some repeat, are missing or unreadable."""
    folder.mkdir()
    for number in range(rows):
        data = BAD + bytes([number]) if number % 13 == 5 else f"picture {number % 50}".encode()
        (folder / f"{number}.jpg").write_bytes(data)
    items = pl.DataFrame(
        {
            "item_id": range(rows),
            "title": [
                None if number % 10 == 9 else ODD.get(number, f"title {number % 45} of several")
                for number in range(rows)
            ],
            "image_path": [None if number % 7 == 3 else f"{number}.jpg" for number in range(rows)],
        }
    )
    log = pl.DataFrame({"user_id": [0], "item_id": [0], "timestamp": [0]})
    return Dataset.from_frames(folder / "data", log, items, media_root=folder)


def chunks(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.rglob("*.safetensors")}


def saved(table, folder: Path) -> dict[str, bytes]:
    table.save(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "extractor",
    [
        pytest.param(HashText(HashTextConfig()), id="texts", marks=pytest.mark.slow),
        pytest.param(HashFile(HashFileConfig()), id="files"),
    ],
)
def test_both_engines_make_the_same_table(cluster, tmp_path, extractor):
    dataset = dataset_of(tmp_path / "world")
    given = {"dataset": dataset, "extractor": extractor, "name": "it", "progress": False}
    here, here_summary = extract(store=tmp_path / "here", **given)
    there, summary = extract(store=tmp_path / "there", engine="ray", workers=2, **given)
    assert saved(there, tmp_path / "a") == saved(here, tmp_path / "b")
    counts = ("rows", "present", "missing", "unreadable", "encoded", "offenders")
    assert [getattr(summary, name) for name in counts] == [getattr(here_summary, name) for name in counts]
    assert summary.encoded > 3 * extractor.chunk_rows
    again, summary = extract(store=tmp_path / "there", **given)  # what one engine kept, the other finds
    assert summary.encoded == 0 and again.fingerprint == here.fingerprint
    assert chunks(tmp_path / "here") == chunks(tmp_path / "there")


@pytest.mark.slow
def test_a_mistake_comes_back_in_one_line(cluster, tmp_path):
    dataset = dataset_of(tmp_path / "world")
    with pytest.raises(FeatureError, match=r"^NotANumber\.encode: NaN or infinity for '/etc/hosts'"):
        extract(dataset, NotANumber(HashTextConfig()), "it", tmp_path / "store", engine="ray", progress=False)


@pytest.mark.parametrize("workers", [0, 3])
def test_no_more_workers_than_processors(cluster, tmp_path, workers):
    dataset = dataset_of(tmp_path / "world")
    with pytest.raises(ConfigError, match=f"{workers} workers; expected 1 to 2"):
        extract(
            dataset, HashText(HashTextConfig()), "it", tmp_path / "store", engine="ray", workers=workers,
            progress=False,
        )  # fmt: skip


def test_nothing_to_do_starts_nothing(tmp_path, monkeypatch):
    """Where the store holds everything, no cluster is started."""
    ray = pytest.importorskip("ray", reason="the extra `scale` is not installed")
    dataset, extractor = dataset_of(tmp_path / "world"), HashText(HashTextConfig())
    extract(dataset, extractor, "it", tmp_path / "store", progress=False)
    monkeypatch.setattr(ray, "init", lambda **settings: pytest.fail("a cluster is started"))
    extract(dataset, extractor, "it", tmp_path / "store", engine="ray", progress=False)


KILLED = """
import os, signal, sys
from recsys.features import store
commit, count = store.Store.commit, 0

def commits(self, *given, **settings):
    global count
    commit(self, *given, **settings)
    count += 1
    if count == 3:
        os.kill(os.getpid(), signal.SIGKILL)

store.Store.commit = commits
from recsys.cli import main
sys.argv = ["recsys", *sys.argv[1:]]
main()
"""


@pytest.mark.slow
def test_a_killed_extraction_goes_on(tmp_path):
    """Killed at the third chunk with a cluster of its own, taken up by the local engine."""
    pytest.importorskip("ray", reason="the extra `scale` is not installed")
    dataset, extractor = dataset_of(tmp_path / "world"), HashText(HashTextConfig())
    whole, _ = extract(dataset, extractor, "words", tmp_path / "whole", progress=False)
    command = [
        sys.executable, "-c", KILLED, "features", "extract", str(dataset.path), "--out", "out",
        "--set", "words.kind=hash_text:HashText", "--engine", "ray", "--workers", "1",
    ]  # fmt: skip
    surroundings = os.environ | {"PYTHONPATH": TESTS, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=surroundings, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    (folder,) = [path for path in (tmp_path / "out" / "_store").iterdir() if path.is_dir()]
    kept = len(Store(folder))
    assert kept == 3 * extractor.chunk_rows
    table, summary = extract(dataset, extractor, "words", tmp_path / "out" / "_store", progress=False)
    assert summary.encoded == len(set(table.hashes_E) - {""}) - kept
    assert saved(table, tmp_path / "a") == saved(whole, tmp_path / "b")
