"""What is served equals what was evaluated: requests over loopback to a server that cannot import torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from answers import differences
from loopback import call, serving
from serving_case import requests

TRAINING_ONLY = (
    "torch",
    "transformers",
    "mlflow",
    "sentence_transformers",
    "accelerate",
    "sklearn",
    "pandas",
)
# Looking for a module succeeds, as some libraries look without importing; importing it fails.
_HOOK = f"""
import sys
from importlib.machinery import ModuleSpec

class Refuse:
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name.partition(".")[0] in {TRAINING_ONLY!r} else None

    def create_module(self, spec):
        raise ImportError(spec.name + " may not be imported here")

    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Refuse())
"""


@pytest.fixture(scope="module")
def without_training(tmp_path_factory) -> dict[str, str]:
    """An environment in which importing what only training needs fails."""
    folder = tmp_path_factory.mktemp("hook")
    (folder / "sitecustomize.py").write_text(_HOOK)
    return dict(os.environ) | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}


def server(path: Path) -> list[str]:
    return [str(Path(sys.executable).with_name("recsys")), "serve", str(path), "--port", "0"]


def test_the_hook_refuses(without_training):
    for name in TRAINING_ONLY:
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}"], env=without_training, capture_output=True, text=True
        )
        assert done.returncode == 1 and "may not be imported here" in done.stderr, name


@pytest.mark.parametrize(
    ("name", "count"), [("fmrlrec", 100), ("ease", 20), ("itemknn", 20), ("popularity", 10)]
)
def test_served_scores_are_the_offline_ones(cases, without_training, name, count):
    case = cases(name)
    asked = requests(case, count)
    assert len({entry["path"] for entry in asked}) == 2
    with serving(server(case.path), env=without_training) as url:
        for entry in asked:
            status, answer = call(url + entry["path"], entry["body"])
            assert status == 200, (entry["body"], answer)
            assert differences(entry, answer) == [], entry["body"]
            assert answer["model"]["bundle_id"] == case.bundle.id


def test_requests_cover_what_they_claim(cases):
    asked = [entry["body"] for entry in requests(cases("fmrlrec"), 100)]
    lengths = {len(body["history"]) for body in asked if "history" in body}
    assert min(lengths) == 0 and max(lengths) > 40
    assert {body.get("width") for body in asked} == {None, 8, 16, 32}
    assert sum("candidates" in body for body in asked) == 50
    assert sum("user_id" in body for body in asked) > 30


def test_a_wrong_answer_is_noticed(cases):
    """The comparison itself: a score off by 1e-4, a wrong order, a missing line."""
    entry = requests(cases("fmrlrec"), 2)[1]
    lines = sorted(entry["scores"], key=lambda pair: -pair[1])
    right = {
        "items": [{"item_id": item, "score": score} for item, score in lines],
        "fallback": entry["fallback"],
        "request_id": entry["body"]["request_id"],
    }
    assert differences(entry, right) == []
    off = [{**line, "score": line["score"] + 1e-2} for line in right["items"]]
    assert differences(entry, right | {"items": off})
    assert differences(entry, right | {"items": right["items"][::-1]})
    assert differences(entry, right | {"items": right["items"][:-1]})
    assert differences(entry, right | {"fallback": "other"})
