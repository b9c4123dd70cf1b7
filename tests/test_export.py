"""Exports: narrower bundles, int8, vectors, coarse-to-fine retrieval, the width report, and the command."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from serving_case import WIDTHS, content_of

from recsys import errors
from recsys.bundle import Bundle
from recsys.bundle_writing import write_bundle
from recsys.errors import BundleError, ModelError
from recsys.item_blocks import quantise
from recsys.schema import Queries
from recsys.serving.engine import Query, RankingEngine
from recsys.serving.export import export_bundle, export_vectors
from recsys.splits import SplitConfig, make_split

ASKED = Queries.of([[3, 1, 4], [], [7] * 30])


# A narrower bundle


@pytest.mark.parametrize("width", WIDTHS)
def test_a_narrower_bundle_is_the_model_at_that_width(cases, tmp_path, width):
    case = cases("fmrlrec")
    narrow = export_bundle(case.bundle, tmp_path / "narrow", width)
    inside = WIDTHS[: WIDTHS.index(width) + 1]
    assert narrow.scorer().widths == inside and narrow.form.item_vectors_ID.shape == (40, width)
    for each in inside:
        expected = case.model.score(ASKED, None, each)
        np.testing.assert_allclose(narrow.scorer().score(ASKED, None, each), expected, atol=1e-5, rtol=1e-5)
    assert narrow.manifest["exported_from"] == {"bundle_id": case.bundle.id, "width": width}
    whole, rows = (case.path / "items.bin").read_bytes(), len(case.item_ids)
    assert (narrow.path / "items.bin").read_bytes() == whole[: rows * width * 4]
    assert narrow.users.equals(case.bundle.users) and narrow.items.equals(case.bundle.items)
    assert (narrow.path / "LICENCE.txt").read_text() == "Do as you like."
    assert list((narrow.path / "reports").iterdir()) == []


def test_a_narrower_bundle_is_smaller_and_another(cases, tmp_path):
    case = cases("fmrlrec")
    ids, sizes = [], []
    for width in WIDTHS:
        narrow = export_bundle(case.bundle, tmp_path / str(width), width)
        ids.append(narrow.id)
        sizes.append((narrow.path / "weights.safetensors").stat().st_size)
    assert ids[-1] == case.bundle.id, "the full width in float32 is the bundle itself"
    assert len(set(ids)) == 3 and sizes[0] < sizes[1] < sizes[2]


def test_no_array_is_left_at_the_full_width(cases):
    form = cases("fmrlrec").bundle.scorer().cut(8)
    for name, value in form.arrays.items():
        assert max(value.shape) <= 8, name


def test_a_narrower_bundle_is_served(cases, tmp_path):
    case = cases("fmrlrec")
    engine = RankingEngine(export_bundle(case.bundle, tmp_path / "narrow", 16))
    whole = RankingEngine(case.bundle)
    for user in case.user_ids[:5]:
        found = engine.recommend(Query(user), 5).items
        expected = whole.recommend(Query(user, width=16), 5).items
        assert [item.item_id for item in found] == [item.item_id for item in expected]
    with pytest.raises(errors.RequestError, match="expected one of: 8, 16"):
        engine.recommend(Query(case.user_ids[0], width=32), 5)


def test_a_model_of_one_width_is_exported_whole(cases, tmp_path):
    case = cases("ease")
    copy = export_bundle(case.bundle, tmp_path / "copy", None)
    assert copy.id == case.bundle.id
    for name in ("ease", "popularity"):
        with pytest.raises(ModelError, match="one width"):
            export_bundle(cases(name).bundle, tmp_path / "narrow", 8)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


@pytest.mark.parametrize("width", [4, 9, 64])
def test_an_unknown_width(cases, tmp_path, width):
    with pytest.raises(ModelError, match="8, 16, 32"):
        export_bundle(cases("fmrlrec").bundle, tmp_path / "x", width)


# int8


def test_quantise_keeps_to_its_bound():
    rng = np.random.default_rng(0)
    part_ID = (rng.normal(size=(200, 24)) * 10.0 ** rng.integers(-6, 6, size=(200, 1))).astype(np.float32)
    part_ID[7] = 0
    part_ID[8], part_ID[8, 3] = 0, -5.0
    scales_I, codes_ID = quantise(part_ID)
    assert scales_I.dtype == np.float32 and codes_ID.dtype == np.int8
    error_ID = np.abs(scales_I[:, None] * codes_ID.astype(np.float64) - part_ID)
    assert (error_ID <= scales_I[:, None] * (0.5 + 1e-4)).all()
    assert (np.abs(codes_ID).max(axis=1)[np.arange(200) != 7] == 127).all(), (
        "the scale is no larger than it must"
    )
    assert scales_I[7] == 0 and (codes_ID[7] == 0).all() and codes_ID[8, 3] == -127


def test_large_late_columns_cost_the_early_ones_nothing(cases, chain, tmp_path):
    case = cases("fmrlrec")
    content = content_of("fmrlrec", case.model, case.split, chain.items)
    form = replace(content.form, item_vectors_ID=content.form.item_vectors_ID * np.repeat([1, 1000], 16))
    small = write_bundle(tmp_path / "small", replace(content, form=form, vectors="int8"))
    start = 0
    for end in WIDTHS:
        own, stored = form.item_vectors_ID[:, start:end], small.form.item_vectors_ID[:, start:end]
        bound = np.abs(own).max(axis=1, keepdims=True) / 127 / 2
        assert (np.abs(stored - own) <= bound * (1 + 1e-4)).all()
        start = end


def test_int8_scores_lie_within_the_bound(cases, tmp_path):
    """At the same query vectors: off by at most the sum over increments of scale / 2 times |q|_1."""
    case = cases("fmrlrec")
    small = export_bundle(case.bundle, tmp_path / "small", None, "int8")
    queries_QD = case.bundle.scorer().query_vectors(ASKED)
    exact_ID, rounded_ID = case.bundle.form.item_vectors_ID, small.form.item_vectors_ID
    bound_QI, start = 0.0, 0
    for end in WIDTHS:
        halves_I = np.abs(exact_ID[:, start:end]).max(axis=1) / 127 / 2
        bound_QI = bound_QI + np.abs(queries_QD[:, start:end]).sum(axis=1, keepdims=True) * halves_I
        start = end
    error_QI = np.abs(queries_QD @ rounded_ID.T - queries_QD @ exact_ID.T)
    assert (error_QI <= bound_QI + 1e-5).all() and error_QI.max() > 0
    np.testing.assert_allclose(small.scorer().score(ASKED), case.model.score(ASKED), atol=0.3)


def test_int8_file(cases, tmp_path):
    case = cases("fmrlrec")
    whole = export_bundle(case.bundle, tmp_path / "whole", None, "int8")
    rows = len(case.item_ids)
    assert (whole.path / "items.bin").stat().st_size == rows * (32 + 3 * 4)
    assert whole.id != case.bundle.id and whole.form.item_vectors_ID.dtype == np.float32
    raw, start = (whole.path / "items.bin").read_bytes(), 0
    for block, end in zip(whole.manifest["blocks"], WIDTHS, strict=True):
        assert (block["dtype"], block["shape"]) == ("|i1", [rows, end - start])
        scales_I = np.frombuffer(raw, block["scales"]["dtype"], rows, block["scales"]["offset"])
        codes = np.frombuffer(raw, block["dtype"], rows * (end - start), block["offset"])
        expected = scales_I[:, None] * codes.reshape(block["shape"])
        np.testing.assert_array_equal(whole.form.item_vectors_ID[:, start:end], expected)
        start = end
    narrow = export_bundle(case.bundle, tmp_path / "narrow", 16, "int8")
    head = (narrow.path / "items.bin").read_bytes()
    assert head == raw[: len(head)], "the head of the file is the narrower model, scales and all"
    np.testing.assert_array_equal(whole.form_of(16).item_vectors_ID, narrow.form.item_vectors_ID)


@pytest.mark.parametrize("place", ["scale", "code", "last"])
def test_a_flipped_byte_of_an_int8_block(cases, tmp_path, place):
    folder = export_bundle(cases("fmrlrec").bundle, tmp_path / "small", None, "int8").path
    block = Bundle.open(folder).manifest["blocks"][1]
    data = bytearray((folder / "items.bin").read_bytes())
    data[{"scale": block["scales"]["offset"], "code": block["offset"], "last": -1}[place]] ^= 1
    (folder / "items.bin").write_bytes(data)
    with pytest.raises(BundleError, match=r"items\.bin: the file was changed"):
        Bundle.open(folder)
    (folder / "items.bin").write_bytes(data[:-1])
    with pytest.raises(BundleError, match=r"items\.bin: the file has another size"):
        Bundle.open(folder, verify=False)


def test_what_int8_cannot_be(cases, chain, tmp_path):
    with pytest.raises(BundleError, match="'ease' has no item vectors"):
        export_bundle(cases("ease").bundle, tmp_path / "x", None, "int8")
    case = cases("fmrlrec")
    content = content_of("fmrlrec", case.model, case.split, chain.items)
    with pytest.raises(BundleError, match="'int4'; expected float32 or int8"):
        write_bundle(tmp_path / "x", replace(content, vectors="int4"))
    assert list(tmp_path.iterdir()) == []


# Vectors


def test_vectors_for_an_index(cases, tmp_path):
    case = cases("fmrlrec")
    export_vectors(case.bundle, tmp_path / "v", 16)
    vectors_ID, bias_I = np.load(tmp_path / "v" / "vectors-16.npy"), np.load(tmp_path / "v" / "biases.npy")
    assert vectors_ID.dtype == bias_I.dtype == np.float32 and vectors_ID.flags.c_contiguous
    assert pl.read_parquet(tmp_path / "v" / "ids.parquet")["item_id"].to_list() == case.item_ids
    index = json.loads((tmp_path / "v" / "index.json").read_text())
    assert (index["width"], index["metric"], index["items"]) == (16, "inner_product", 40)
    assert set(index["files"]) == {"vectors-16.npy", "biases.npy", "ids.parquet"}
    asked = Queries.of([[], []])
    query_QD = case.bundle.scorer().query_vectors(asked, 16)
    scores = index["scale"] * query_QD @ vectors_ID.T + bias_I
    np.testing.assert_allclose(scores, case.model.score(asked, None, 16), atol=1e-5, rtol=1e-5)
    # as one inner product: the bias is one more column
    scale = np.full((2, 1), 1 / index["scale"], np.float32)
    joined = np.hstack([query_QD, scale]) @ np.hstack([vectors_ID, bias_I[:, None]]).T
    np.testing.assert_allclose(index["scale"] * joined, scores, atol=1e-5, rtol=1e-5)
    with pytest.raises(BundleError, match="no item vectors"):
        export_vectors(cases("ease").bundle, tmp_path / "x", None)


# The command


def test_command(recsys, cases, tmp_path):
    source = cases("fmrlrec").path
    code, out, _ = recsys("export", source, "--width", "full,8,32", "--out", "a")
    assert code == 0 and "recsys serve a/width-8" in out
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["width-32", "width-8"]
    assert Bundle.open(tmp_path / "a" / "width-8").scorer().widths == (8,)
    assert recsys("export", source, "--width", "8", "--format", "int8", "--out", "b")[0] == 0
    assert Bundle.open(tmp_path / "b" / "width-8").manifest["blocks"][0]["dtype"] == "|i1"
    assert recsys("export", source, "--format", "vectors")[0] == 0
    assert (tmp_path / "exports" / "width-32" / "vectors-32.npy").is_file()
    assert recsys("export", cases("ease").path, "--out", "c")[0] == 0
    assert Bundle.open(tmp_path / "c" / "width-full").manifest["model"] == "ease"


def test_command_onnx(recsys, cases, tmp_path):
    pytest.importorskip("onnx", reason="extra `onnx` is not installed")
    code, _, _ = recsys("export", cases("fmrlrec").path, "--width", "8", "--format", "onnx", "--out", "o")
    assert code == 0 and (tmp_path / "o" / "width-8" / "encode.onnx").is_file()


def test_mistakes(refused, cases, chain_split, monkeypatch, tmp_path):
    source, ease = cases("fmrlrec").path, cases("ease").path
    assert "width 7; expected one of: 8, 16, 32" in refused("export", source, "--width", "8,7")
    for wrong in ("eight", "8,,16", "-8", "8.0", "", "٨"):
        assert "widths separated by commas" in refused("export", source, f"--width={wrong}")
    assert "this model has one width" in refused("export", ease, "--width", 8)
    assert "expected bundle or int8 or vectors or onnx" in refused("export", source, "--format", "npz")
    assert "not a bundle" in refused("export", "absent")
    for kind in ("int8", "vectors"):
        assert "no item vectors" in refused("export", ease, "--format", kind)
    (tmp_path / "exports" / "width-16").mkdir(parents=True, exist_ok=True)
    assert "exports/width-16: is there already" in refused("export", source, "--width", "8,16")
    (tmp_path / "taken").write_text("a file")
    assert "cannot write here" in refused("export", source, "--out", "taken")
    chain_split.save(tmp_path / "split")
    assert "not a split folder" in refused("export", source, "--split", "absent")
    assert "no part 'tset'" in refused("export", source, "--split", "split", "--part", "tset")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "width-report.json").write_text("{}")
    assert "is there already" in refused("export", source, "--split", "split", "--out", "old")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "pip install 'recsys[onnx]'" in refused("export", source, "--format", "onnx")


# The width report


def test_width_report(recsys, cases, chain_split, tmp_path):
    pytest.importorskip("matplotlib", reason="extra `train` is not installed")
    case = cases("fmrlrec")
    chain_split.save(tmp_path / "split")
    code, out, _ = recsys(
        "export", case.path, "--width", "8,full", "--split", "split", "--pool", 30, "--out", "x"
    )
    assert code == 0 and "8 → 32" in out and "pool of 30" in out and not (tmp_path / "runs").exists()
    assert (tmp_path / "x" / "width-report.png").read_bytes().startswith(b"\x89PNG")
    names = {path.name for path in (tmp_path / "x").iterdir()}
    assert names == {"width-8", "width-32", "width-report.json", "width-report.png"}
    report = json.loads((tmp_path / "x" / "width-report.json").read_text())
    lines = {(line["format"], line["width"]): line for line in report["lines"]}
    both = {(name, width) for name in ("float32", "int8") for width in (8, 32)}
    assert set(lines) == both | {("coarse-to-fine", 32)}
    for line in lines.values():
        assert line["milliseconds"] > 0
        for metric in ("ndcg_at_10", "hr_at_10"):
            assert line[metric]["low"] <= line[metric]["value"] <= line[metric]["high"]
    full, coarse = lines["float32", 32], lines["coarse-to-fine", 32]
    size = sum((case.path / name).stat().st_size for name in ("items.bin", "weights.safetensors"))
    assert full["bytes"] == size > lines["int8", 32]["bytes"] > lines["int8", 8]["bytes"]
    assert coarse["bytes"] == size and (coarse["coarse"], coarse["pool"]) == (8, 30)
    assert abs(coarse["ndcg_at_10"]["value"] - full["ndcg_at_10"]["value"]) < 0.05
    judged = recsys("evaluate", case.path, "split", "--set", "ks=[10]", "--set", "slices=[]")[1]
    assert f"{full['ndcg_at_10']['value']:.4f}" in judged, "what recsys evaluate says"


def test_a_look_at_test_is_written_down(recsys, cases, chain_split, tmp_path):
    pytest.importorskip("matplotlib", reason="extra `train` is not installed")
    chain_split.save(tmp_path / "split")
    for place, name in enumerate(("fmrlrec", "ease"), start=1):
        code, out, _ = recsys("export", cases(name).path, "--split", "split", "--part", "test", "--out", name)
        assert code == 0 and f"look {place} at this test set" in out
    entries = [json.loads(line) for line in (tmp_path / "runs" / "ledger.jsonl").read_text().splitlines()]
    assert [entry["bundle"] for entry in entries] == [cases(name).bundle.id for name in ("fmrlrec", "ease")]
    report = json.loads((tmp_path / "ease" / "width-report.json").read_text())
    assert [(line["format"], line["width"]) for line in report["lines"]] == [("float32", None)]


def test_a_split_of_something_else(refused, chain, cases, tmp_path):
    make_split(chain, SplitConfig(method="random", catalogue="listed")).save(tmp_path / "other")
    assert "not the one this was made under" in refused("export", cases("fmrlrec").path, "--split", "other")
    assert not Path("exports").exists()
