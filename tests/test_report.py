"""The report: seeds, intervals and comparisons by hand, and a page that holds everything and runs nothing."""

import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.evaluate import Evaluation, evaluate
from recsys.plots import draw
from recsys.protocol import Protocol
from recsys.report import Report, interval

FACTS = {
    "recipe": "tiny",
    "selected": "good",
    "valid": {"good": 0.9, "bad": 0.1},
    "seeds": [0, 1],
    "look": 3,
    "split": {"id": "abc", "method": "leave_last_out", "rows": {"train": 1000, "valid": 4, "test": 4}},
    "bundle_id": "b" * 64,
    "data": {"source": "planted", "licence": "CC0"},
    "protocol": {"ks": [5, 10]},
}


def by_hand(
    name: str, ndcg: list[float], *, bootstrap: int = 100, ks: tuple[int, ...] = (5, 10)
) -> Evaluation:
    """One query a user; the metrics at both cut-offs are the same, hr is 1 where ndcg is above 0."""
    ndcg = [float(value) for value in ndcg]
    columns = {"ndcg": ndcg, "hr": [float(value > 0) for value in ndcg]}
    columns |= {"recall": columns["hr"], "mrr": ndcg}
    per_query = {f"test/{metric}_at_{k}": values for metric, values in columns.items() for k in ks}
    bounds = (0.0, 1.0) if bootstrap else (None, None)
    values = {
        key: {"value": float(np.mean(column)), "low": bounds[0], "high": bounds[1], "n": len(ndcg)}
        for key, column in per_query.items()
    }
    values["test/coverage_at_5"] = {"value": 0.5, "low": None, "high": None, "n": len(ndcg)}
    facts = {
        "name": name,
        "queries": len(ndcg),
        "targets": len(ndcg),
        "catalogue": 40,
        "split_method": "leave_last_out",
        "protocol": Protocol(ks=ks, bootstrap=bootstrap).model_dump(mode="json"),
        "fit_parts": ["train"],
        "targets_outside": 0,
        "targets_repeated": 1,
        "empty_histories": 0,
        "empty_slices": [],
        "width": None,
    }
    users = {"query_id": range(len(ndcg)), "user": range(len(ndcg))}
    return Evaluation(values, pl.DataFrame(users | per_query), facts)


@pytest.fixture(scope="module")
def real(cases, chain_split) -> Report:
    """Three fitted models, judged with intervals, slices and widths."""
    protocol = Protocol(ks=(5, 10), bootstrap=50, widths="all")
    names = ("fmrlrec", "ease", "popularity")
    found = [
        evaluate(cases(name).model, chain_split, "test", protocol, name=name, progress=False)
        for name in names
    ]
    return Report.of(found, FACTS | {"selected": "fmrlrec", "valid": {}})


# Numbers by hand


def test_seeds_are_averaged_and_their_spread_stands_apart():
    report = Report.of([by_hand("good", [1, 0, 1, 0]), by_hand("good", [1, 1, 1, 0.6])], FACTS)
    entry = report.models["good"]["values"]["test/ndcg_at_5"]
    assert entry["value"] == pytest.approx((0.5 + 0.9) / 2)
    assert entry["seeds"] == {
        "mean": pytest.approx(0.7),
        "min": pytest.approx(0.5),
        "max": pytest.approx(0.9),
        "std": pytest.approx(0.4 / math.sqrt(2)),  # n - 1
    }
    assert report.models["good"]["values"]["test/coverage_at_5"]["low"] is None


def test_the_interval_is_that_of_the_mean_over_seeds():
    """Seeds that disagree on every user, and agree on none: their mean is 0.5 for everybody, so nothing is left to
    resample, although each seed alone is as uncertain as can be."""
    report = Report.of([by_hand("good", [1, 0, 1, 0]), by_hand("good", [0, 1, 0, 1])], FACTS)
    entry = report.models["good"]["values"]["test/ndcg_at_5"]
    assert (entry["value"], entry["low"], entry["high"]) == (0.5, 0.5, 0.5)
    apart = Report.of([by_hand("good", [1, 0, 1, 0]), by_hand("good", [1, 0, 1, 0])], FACTS)
    entry = apart.models["good"]["values"]["test/ndcg_at_5"]
    assert entry["low"] < 0.5 < entry["high"] and entry["seeds"]["std"] == 0


def test_one_seed_is_left_as_it_was_judged():
    evaluation = by_hand("good", [1, 0, 1, 0])
    assert Report.of([evaluation], FACTS).models["good"]["values"] == evaluation.values


def test_without_bootstrap_there_is_no_interval():
    report = Report.of([by_hand("good", [1, 0], bootstrap=0), by_hand("good", [1, 1], bootstrap=0)], FACTS)
    assert all(entry["low"] is None for entry in report.models["good"]["values"].values())


def test_every_model_is_compared_with_the_selected_one():
    good, bad = [1.0] * 30, [0.0, 1.0] * 15
    same = [1.0] * 30
    report = Report.of([by_hand("good", good), by_hand("bad", bad), by_hand("same", same)], FACTS)
    assert "versus" not in report.models["good"]
    test = report.models["bad"]["versus"]
    assert test["difference"] == pytest.approx(-0.5) and test["low"] < -0.5 < test["high"] < 0
    assert test["against"] == "good" and test["metric"] == "test/ndcg_at_5"
    assert test["p"] < 0.01 and test["p_holm"] == pytest.approx(2 * test["p"])  # the smaller of two
    assert report.models["same"]["versus"]["difference"] == 0
    assert report.models["same"]["versus"]["p_holm"] == 1


def test_the_first_cut_off_is_the_headline():
    report = Report.of([by_hand("good", [1, 0], ks=(10, 5)), by_hand("bad", [0, 0], ks=(10, 5))], FACTS)
    assert [(key.metric, key.k) for key in report.columns()][:3] == [("ndcg", 10), ("ndcg", 5), ("hr", 10)]
    assert report.models["bad"]["versus"]["metric"] == str(report.columns()[0]) == "test/ndcg_at_10"


def test_metrics_for_a_tracker():
    report = Report.of([by_hand("good", [1, 0, 1, 0]), by_hand("bad", [0, 0, 1, 0])], FACTS)
    flat = report.metrics()
    assert flat["test/ndcg_at_5"] == flat["test/model.good/ndcg_at_5"] == 0.5
    assert flat["test/model.bad/ndcg_at_5"] == 0.25
    assert (flat["test/ndcg_at_5/low"], flat["test/ndcg_at_5/high"]) == (0.0, 1.0)
    assert "test/coverage_at_5" in flat and "test/coverage_at_5/low" not in flat


def test_interval_text():
    assert interval({"value": 0.03531, "low": 0.031, "high": 0.0391}) == "0.0353 [0.0310, 0.0391]"
    assert interval({"value": 0.5, "low": None, "high": None}) == "0.5000"


# The terminal table and JSON


def test_table_has_every_model_and_fits_a_terminal(real):
    import io

    from rich.console import Console

    stream = io.StringIO()
    Console(file=stream, width=80).print(real.table())
    shown = stream.getvalue()
    for name in real.models:
        assert name in shown
    assert "(selected)" in shown and "look 3 at this test set" in shown and "…" not in shown
    assert f"{real.models['ease']['values']['test/ndcg_at_5']['value']:.4f}".removeprefix("0") in shown


def test_json_round_trip(real, tmp_path):
    real.save(tmp_path)
    again = Report.load(tmp_path)
    assert again.models == json.loads(json.dumps(real.models)) and again.facts == real.facts
    assert again.metrics() == real.metrics()
    assert again.columns() == real.columns()
    before = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    again.save(tmp_path)
    after = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert sorted(after.rows[1:4]) == sorted(before.rows[1:4])


# The page


class Page(HTMLParser):
    """Tags, attributes, rows of cells and texts of a page; refuses tags that do not match."""

    VOID = ("meta", "br", "link", "img", "circle", "polyline")

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.rows, self.texts, self.open = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.rows and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def page(report: Report, folder: Path) -> tuple[Page, str]:
    report.save(folder)
    text = (folder / "report.html").read_text(encoding="utf-8")
    return Page(text), text


def test_the_page_shows_every_model_and_interval(real, tmp_path):
    shown, _ = page(real, tmp_path)
    for name, model in real.models.items():
        [row] = [row for row in shown.rows if row and row[0] == name and len(row) == 1 + len(real.columns())]
        for cell, key in zip(row[1:], real.columns(), strict=True):
            entry = model["values"][str(key)]
            assert cell == f"{entry['value']:.4f}{entry['low']:.4f} - {entry['high']:.4f}"
        if "versus" in model:
            assert any(f"{model['versus']['p_holm']:.4f}" in row for row in shown.rows if row[0] == name)
    whole = " ".join(shown.texts)
    for fact in ("planted", "CC0", "b" * 64, "look 3", "150 queries", "40 items", "abc"):
        assert fact in whole


def test_the_page_draws_every_width(real, tmp_path):
    shown, _ = page(real, tmp_path)
    values = real.models["fmrlrec"]["values"]
    points = {8: "test/ndcg_at_5/width.8", 16: "test/ndcg_at_5/width.16", 32: "test/ndcg_at_5"}
    assert shown.tags.count("circle") == 3
    for width, key in points.items():
        assert str(width) in shown.texts and f"{values[key]['value']:.4f}" in shown.texts


def test_the_page_stands_alone(real, tmp_path):
    shown, text = page(real, tmp_path)
    for tag in ("script", "link", "iframe", "object", "embed", "img", "form", "base"):
        assert tag not in shown.tags
    for name, value in shown.attributes:
        assert name not in ("src", "href", "srcset", "action") and not name.startswith("on")
        assert "javascript:" not in (value or "") and "url(" not in (value or "")
    assert "@import" not in text and "url(" not in text and "http" not in text
    assert ("charset", "utf-8") in shown.attributes and ("name", "viewport") in shown.attributes


HOSTILE = "<script>alert(\"1\")</script><img src=http://x onerror='y'>&amp;"


def test_hostile_names_are_text(tmp_path):
    facts = FACTS | {
        "recipe": HOSTILE,
        "selected": HOSTILE,
        "data": {"source": HOSTILE, "licence": f"</dd>{HOSTILE}"},
        "split": FACTS["split"] | {"id": HOSTILE},
        "bundle_id": HOSTILE,
    }
    first, second = by_hand(HOSTILE, [1, 0, 1, 0]), by_hand("</table>", [1, 0, 0, 0])
    first.facts |= {"empty_slices": [HOSTILE], "split_method": HOSTILE, "fit_parts": [HOSTILE], "width": 8}
    first.values["test/ndcg_at_5/width.4"] = first.values["test/ndcg_at_5"]
    shown, _ = page(Report.of([first, second], facts), tmp_path)
    for tag in ("script", "img"):
        assert tag not in shown.tags
    assert not any(name.startswith("on") or name == "src" for name, _ in shown.attributes)
    texts = " ".join(shown.texts)
    assert texts.count(HOSTILE) >= 8 and "</table>" in texts


# Pictures


BROKEN = r"$\frac{ and $"
"""Between dollars, a formula that cannot be drawn."""


def test_pictures_take_any_name(tmp_path):
    """A dollar sign is no formula; nothing is measured on validation."""
    evaluations = [by_hand(BROKEN, [1, 0, 1, 0]), by_hand("<b>", [1, 0, 0, 0], bootstrap=0)]
    report = Report.of(evaluations, FACTS | {"selected": BROKEN})
    fits = [
        {
            "name": BROKEN,
            "seed": 0,
            "progress": {"history": [{"loss": 3.0}, {"loss": 2.0}], "best_epoch": 1},
            "monitor": {"metric": "ndcg_at_10"},
        }
    ]
    written = draw(report, fits, tmp_path)
    assert [path.name for path in written] == ["training.png", "metrics.png"]
    for path in written:
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000


def test_pictures_follow_no_style_of_the_user(real, tmp_path):
    import matplotlib

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    draw(real, [], tmp_path / "a")
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9}):
        draw(real, [], tmp_path / "b")
        assert matplotlib.rcParams["font.size"] == 30
    for name in ("metrics.png", "widths.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_single_model_has_no_rival(tmp_path):
    shown, _ = page(Report.of([by_hand("good", [1, 0])], FACTS), tmp_path)
    assert "There is only one model." in shown.texts


def test_report_of_models_is_not_changed_by_saving(real, tmp_path):
    before = json.dumps(real.models)
    replace(real).save(tmp_path)
    assert json.dumps(real.models) == before
