"""Shared fixtures. Data is planted, so that the right answer is known by construction."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.pop("MLFLOW_TRACKING_URI", None)  # a test must never write into somebody's store

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import planted
import pytest

from recsys.dataset import Dataset
from recsys.splits import Split, SplitConfig, make_split


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Equal results need an equal number of threads."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def chain(tmp_path_factory) -> Dataset:
    """Order planted: most items have one likely successor."""
    return planted.order(tmp_path_factory.mktemp("chain") / "data")


@pytest.fixture(scope="session")
def chain_split(chain) -> Split:
    return make_split(chain, SplitConfig(method="leave_last_out", catalogue="listed"))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The real data; tests marked `realdata` skip where it is absent."""
    root = Path(os.environ.get("RECSYS_DATA", Path(__file__).parents[1] / "../shared/data"))
    if not root.is_dir():
        pytest.skip(f"no data at {root}: set RECSYS_DATA")
    return root.resolve()


@pytest.fixture(scope="session")
def cases(chain, chain_split, tmp_path_factory):
    """name -> a model fitted on the planted chain, with its bundle; fitted once."""
    from functools import cache

    from serving_case import Case, make_case

    folder = tmp_path_factory.mktemp("cases")

    @cache
    def case(name: str) -> Case:
        return make_case(name, chain_split, chain.items, folder / name)

    return case


@pytest.fixture(scope="session")
def text_case(chain, chain_split, tmp_path_factory):
    """EASE over ids that are text."""
    import polars as pl
    from serving_case import make_case, with_text_ids

    items = chain.items.with_columns(pl.col("item_id").cast(pl.String).str.zfill(4))
    return make_case("ease", with_text_ids(chain_split), items, tmp_path_factory.mktemp("text") / "ease")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """An MLflow database with nothing in it: making one takes seconds, copying it does not."""
    from recsys.tracking import new_database

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    new_database(f"sqlite:///{path}")
    return path


@pytest.fixture
def files(tmp_path):
    """write(name=text, ...) puts files with an ending for `_`: log_csv -> log.csv."""

    def write(**texts) -> None:
        for name, text in texts.items():
            path = tmp_path / name.replace("_", ".")
            path.write_bytes(text if isinstance(text, bytes) else text.encode())

    write.folder = tmp_path
    return write


@pytest.fixture
def recsys(monkeypatch, capsys, tmp_path) -> Callable:
    """Run a command in an empty folder: (exit code, stdout, stderr). A bug's exception comes through."""
    from recsys import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["recsys", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def refused(recsys, tmp_path) -> Callable:
    """Run a command that is a mistake: the one line it leaves; nothing else may be left."""

    def contents() -> dict[str, bytes]:
        """Every file, but for the lock, which is meant to stay."""
        found = (path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock")
        return {str(path): path.read_bytes() for path in found}

    def run(*arguments) -> str:
        before = contents()
        code, out, err = recsys(*arguments)
        assert (code, out) == (2, ""), (code, out, err)
        assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err, err
        assert contents() == before
        return err

    return run


@pytest.fixture(scope="session")
def tracked_root(tmp_path_factory, empty_store) -> Path:
    """An output folder with an MLflow store of its own."""
    folder = tmp_path_factory.mktemp("tracked")
    shutil.copyfile(empty_store, folder / "mlflow.db")
    return folder


@pytest.fixture(scope="session")
def tiny_recipe(chain, tmp_path_factory) -> Path:
    from tiny_run import write_recipe

    return write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.toml", chain.path, epochs=10)


@pytest.fixture(scope="session")
def tracked(tracked_root, tiny_recipe):
    """The tiny recipe, run once into that store as version 1; tests of the registry add later versions."""
    from recsys.pipeline import run
    from recsys.recipe import load_recipe

    return run(load_recipe(str(tiny_recipe)), tracked_root)
