"""The table of published figures: what is set beside what, and what is said where it falls short."""

import importlib.util
import json
import tomllib
from pathlib import Path

import pytest

from recsys.config import shipped
from recsys.recipe import load_recipe

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def published():
    spec = importlib.util.spec_from_file_location("published", BENCHMARKS / "published.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def report(folder: Path, mask: str, **values: float) -> None:
    entries = {
        key: {"value": value, "low": value - 0.01, "high": value + 0.01} for key, value in values.items()
    }
    stored = {
        "models": {
            "good": {
                "values": {f"test/{key.replace('__', '/mask.')}": entry for key, entry in entries.items()}
            }
        },
        "facts": {"protocol": {"mask": mask}, "seeds": [0]},
    }
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(stored))


def row(mask: str, recipe: str = "r") -> dict:
    return {
        "data": "Set", "mask": mask, "hr": 0.1, "ndcg": 0.05, "model": "Theirs", "source": "paper",
        "ours": [recipe, "good"], "note": "none",
    }  # fmt: skip


def test_each_figure_stands_beside_ours_under_the_same_mask(published, tmp_path):
    report(
        tmp_path / "r" / "report",
        "history",
        hr_at_10=0.2,
        ndcg_at_10=0.06,
        hr_at_10__off=0.15,
        ndcg_at_10__off=0.04,
    )
    known = published.reports([tmp_path])
    lines, short = published.table([row("history"), row("off"), row("window"), row("off", "absent")], known)
    assert ".2000 [.1900, .2100]" in lines[2] and ".0600" in lines[2]
    assert ".1500" in lines[3] and ".0400" in lines[3]
    assert "not run" in lines[4] and "not run" in lines[5]
    assert short == ["Set, Theirs: ndcg@10 .0400 < .0500"]


def test_every_row_names_a_model_of_a_recipe_that_is_shipped():
    rows = tomllib.loads((BENCHMARKS / "published.toml").read_text())["rows"]
    same = {
        "fmrlrec-sports": "fmrlrec-amazon",
        "baselines-sports": "baselines-beauty",
        "baselines-yelp": "baselines-beauty",
    }
    for entry in rows:
        recipe, model = entry["ours"]
        name = same.get(recipe, recipe)
        assert name in shipped() and model in load_recipe(name).models
        assert 0 < entry["ndcg"] < entry["hr"] < 1 and entry["mask"] in ("off", "history", "window")
