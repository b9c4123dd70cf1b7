"""What is selected: the best of the models whose validation figures are of one kind."""

import json
from types import SimpleNamespace

import pytest

from recsys.fitting import make_selection
from recsys.train_config import MonitorConfig, TrainConfig


def fit(name: str, valid: float, **monitor) -> SimpleNamespace:
    train = TrainConfig(monitor=MonitorConfig(**monitor))
    return SimpleNamespace(job=SimpleNamespace(name=name, train=train), facts=lambda: {"valid": valid})


@pytest.mark.parametrize(
    "others, chosen",
    [
        ({"pools": "harmonic"}, "c"),  # one kind: the best
        ({"pools": "harmonic", "queries": 50}, "c"),  # over fewer queries, of the same kind
        ({"pools": "all"}, "a"),  # the higher figure is of another kind
        ({"pools": "harmonic", "metric": "recall_at_20"}, "a"),
    ],
)
def test_figures_of_one_kind_are_compared(tmp_path, others, chosen):
    fits = [fit("a", 0.2, pools="harmonic"), fit("b", 0.1, pools="harmonic"), fit("c", 0.3, **others)]
    make_selection(SimpleNamespace(folder=tmp_path / "box"), fits, MonitorConfig(pools="harmonic"))
    found = json.loads((tmp_path / "box" / "selected.json").read_text())
    assert found["model"] == chosen and found["valid"] == {"a": 0.2, "b": 0.1, "c": 0.3}


def test_where_all_have_a_monitor_of_their_own_all_compete(tmp_path):
    fits = [fit("a", 0.2, metric="recall_at_20"), fit("b", 0.3, metric="recall_at_20")]
    make_selection(SimpleNamespace(folder=tmp_path / "box"), fits, MonitorConfig())
    assert json.loads((tmp_path / "box" / "selected.json").read_text())["model"] == "b"
