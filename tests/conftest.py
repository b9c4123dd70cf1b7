"""Shared fixtures. Data is planted, so that the right answer is known by construction."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

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
