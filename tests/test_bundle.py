"""Bundles: what is written comes back, what is damaged is named, and the id covers what is shipped."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from serving_case import WIDTHS, content_of

from recsys import bundle_writing
from recsys.bundle import FORMAT_VERSION, Bundle
from recsys.bundle_writing import user_histories, write_bundle
from recsys.errors import BundleError, ModelError
from recsys.schema import Queries
from recsys.serving.forms import open_form
from recsys.splits import make_log

FILES = ["LICENCE.txt", "items.bin", "items.parquet", "users.parquet", "weights.safetensors"]


@pytest.fixture
def content(cases, chain):
    case = cases("fmrlrec")
    return content_of("fmrlrec", case.model, case.split, chain.items)


@pytest.fixture
def copy(cases, tmp_path) -> Path:
    """A bundle that a test may damage."""
    return Path(shutil.copytree(cases("fmrlrec").path, tmp_path / "bundle"))


def refusal(folder: Path, **options) -> str:
    with pytest.raises(BundleError) as error:
        Bundle.open(folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def edit(folder: Path, **changes) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))


# What comes back


@pytest.mark.parametrize("name", ["fmrlrec", "ease", "itemknn", "popularity"])
def test_round_trip(cases, chain, name):
    case = cases(name)
    content, bundle = content_of(name, case.model, case.split, chain.items), case.bundle
    assert bundle.items.equals(content.items)
    assert bundle.users.equals(content.users)
    assert bundle.item_counts_I.tolist() == content.item_counts_I.tolist()
    assert bundle.form.program == content.form.program and bundle.form.widths == content.form.widths
    assert set(bundle.form.arrays) == set(content.form.arrays)
    for array, value in content.form.arrays.items():
        assert bundle.form.arrays[array].dtype == value.dtype
        np.testing.assert_array_equal(bundle.form.arrays[array], value)
    if content.form.item_vectors_ID is not None:
        np.testing.assert_array_equal(bundle.form.item_vectors_ID, content.form.item_vectors_ID)
        np.testing.assert_array_equal(bundle.form.item_bias_I, content.form.item_bias_I)
    for key in ("split_id", "last_event", "source", "licence", "recipe", "fingerprints", "flags", "id_type"):
        assert bundle.manifest[key] == getattr(content, key), key
    assert (bundle.path / "LICENCE.txt").read_text() == "Do as you like."
    assert json.loads((bundle.path / "reports" / "fit.json").read_text()) == {"seconds": 1.0}
    asked = Queries.of([[3, 1, 4], []])
    np.testing.assert_allclose(bundle.scorer().score(asked), case.model.score(asked), atol=1e-5, rtol=1e-5)


def test_ids_keep_their_type(text_case, cases):
    assert text_case.bundle.items["item_id"].to_list()[:2] == ["0000", "0001"]
    assert text_case.bundle.id_type == {"user": "str", "item": "str"}
    assert cases("ease").bundle.id_type == {"user": "int", "item": "int"}


def test_histories_are_the_newest_events_in_time_order(cases):
    case = cases("ease")
    for user, items in enumerate(case.bundle.users["items"].to_list()):
        assert items == case.history(user)
        assert case.bundle.histories[user].tolist() == items
    times = case.bundle.users["times"].to_list()
    assert all(row == sorted(row) for row in times)


def test_user_histories_with_empty_rows_and_a_limit():
    # users 0 and 3 did nothing; user 1 did five things
    user_N, item_N = np.array([1, 1, 1, 1, 1, 2]), np.array([4, 2, 4, 0, 3, 1])
    log = make_log(user_N, item_N, np.arange(6) * 10, np.ones(6, np.float32), 4, 5)
    frame = user_histories(log, pl.Series("user_id", ["a", "b", "c", "d"]), 3)
    assert frame["user_id"].to_list() == ["a", "b", "c", "d"]
    assert frame["items"].to_list() == [[], [4, 0, 3], [1], []]
    assert frame["times"].to_list() == [[], [20, 30, 40], [50], []]
    assert user_histories(log, pl.Series("user_id", ["a", "b", "c", "d"]), 0) is None


def test_no_history_at_all_still_has_lists():
    log = make_log(*(np.zeros(0, np.int64) for _ in range(3)), np.zeros(0, np.float32), 2, 5)
    frame = user_histories(log, pl.Series("user_id", [7, 8]), 3)
    assert frame["items"].to_list() == [[], []]


def test_without_histories_nobody_is_shipped(content, tmp_path):
    bundle = write_bundle(tmp_path / "bundle", replace(content, users=None))
    assert bundle.users is None and len(bundle.histories) == 0
    assert not (tmp_path / "bundle" / "users.parquet").exists()
    assert bundle.manifest["counts"] == {"items": 40, "users": 0}


def test_empty_histories_survive_the_file(content, tmp_path):
    users = pl.DataFrame(
        {"user_id": [1, 2, 3], "items": [[], [5, 6], []], "times": [[], [10, 20], []]},
        schema={"user_id": pl.Int64, "items": pl.List(pl.Int64), "times": pl.List(pl.Int64)},
    )
    bundle = write_bundle(tmp_path / "bundle", replace(content, users=users))
    assert [row.tolist() for row in (bundle.histories[0], bundle.histories[1], bundle.histories[2])] == [
        [],
        [5, 6],
        [],
    ]


# The head of items.bin


def test_head_of_items_bin_is_the_narrower_model(cases, copy):
    case, asked = cases("fmrlrec"), Queries.of([[3, 1, 4], [], [7] * 30])
    whole = (copy / "items.bin").read_bytes()
    for width in WIDTHS:
        head = len(case.item_ids) * width * 4
        (copy / "items.bin").write_bytes(whole[:head])  # nothing behind the head can be read
        bundle = Bundle(copy, json.loads((copy / "manifest.json").read_text()))
        form = bundle.form_of(width)
        assert form.widths == tuple(w for w in WIDTHS if w <= width)
        assert form.item_vectors_ID.shape == (40, width)
        served = open_form(form).score(asked, None, width)
        np.testing.assert_allclose(served, case.model.score(asked, None, width), atol=1e-5, rtol=1e-5)


def test_blocks_say_where_they_lie(cases):
    case, manifest = cases("fmrlrec"), cases("fmrlrec").bundle.manifest
    raw = (case.path / "items.bin").read_bytes()
    start = 0
    for block, width in zip(manifest["blocks"], WIDTHS, strict=True):
        rows, columns = block["shape"]
        assert block["width"] == width and columns == width - start
        part = np.frombuffer(raw, block["dtype"], rows * columns, block["offset"]).reshape(rows, columns)
        np.testing.assert_array_equal(part, case.model.item_vectors()[:, start:width])
        start = width


def test_an_unknown_width_is_refused(cases):
    for width in (4, 9, 64):
        with pytest.raises(ModelError, match="8, 16, 32"):
            cases("fmrlrec").bundle.form_of(width)


# What is refused


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_changed_byte_is_named(copy, name, where):
    data = bytearray((copy / name).read_bytes())
    data[{"first": 0, "middle": len(data) // 2, "last": -1}[where]] ^= 1
    (copy / name).write_bytes(data)
    assert name in refusal(copy) and "was changed" in refusal(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_shortened_file_is_named(copy, name):
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[:-1])
    assert name in refusal(copy)
    (copy / name).unlink()
    assert name in refusal(copy) and "missing" in refusal(copy)


def test_every_file_is_covered(copy):
    files = {path.name for path in copy.iterdir() if path.is_file()}
    assert files == {*FILES, "manifest.json"}
    assert set(Bundle.open(copy).manifest["files"]) == set(FILES)


def test_swapped_vectors_of_the_right_length(copy):
    size = (copy / "items.bin").stat().st_size
    (copy / "items.bin").write_bytes(np.zeros(size // 4, "<f4").tobytes())
    assert "items.bin" in refusal(copy)


@pytest.mark.parametrize(
    "change",
    [
        {"widths": [8, 16]}, {"split_id": "0" * 64}, {"id_type": {"user": "str", "item": "int"}},
        {"meta": {"blocks": 1, "ffn_multiple": 1, "eps": 1e-5}}, {"last_event": 0}, {"bundle_id": "0" * 64},
        {"counts": {"items": 41, "users": 150}}, {"recipe": {"train": {"epochs": 1}}},
    ],
)  # fmt: skip
def test_a_changed_manifest_does_not_fit_its_id(copy, change):
    edit(copy, **change)
    assert "manifest.json" in refusal(copy)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '"x"', "{}", '{"format_version": 2}', '{"format_version": 2, "files": []}',
     '{"format_version": "2", "files": {}}', "\xff", '{"format_version": null, "files": {}}'],
)  # fmt: skip
@pytest.mark.parametrize("verify", [True, False])
def test_damaged_manifest(copy, text, verify):
    (copy / "manifest.json").write_bytes(text.encode("latin-1"))
    assert "manifest.json is damaged" in refusal(copy, verify=verify)


def test_older_format(copy):
    edit(copy, format_version=FORMAT_VERSION - 1)
    assert "manifest.json" in refusal(copy) and "make it again" in refusal(copy)


def test_newer_format(copy):
    edit(copy, format_version=FORMAT_VERSION + 1)
    assert "manifest.json" in refusal(copy) and "upgrade recsys" in refusal(copy)
    (copy / "manifest.json").write_text(json.dumps({"format_version": 99}))  # whatever else it holds by then
    assert "upgrade recsys" in refusal(copy)


def test_unknown_program(content, tmp_path):
    bundle = write_bundle(tmp_path / "b", replace(content, form=replace(content.form, program="telepathy")))
    with pytest.raises(BundleError, match=r"telepathy.*upgrade recsys"):
        bundle.scorer()


@pytest.mark.parametrize("counts", [{"items": 39, "users": 150}, {"items": 40, "users": 151}, {}])
def test_wrong_row_counts(copy, counts):
    """Verification off, as for a bundle that was verified before: the shapes are still looked at."""
    edit(copy, counts=counts)
    expected = "users.parquet" if counts.get("items") == 40 else "items.parquet"
    assert expected in refusal(copy, verify=False)


@pytest.mark.parametrize("name", ["items.parquet", "users.parquet", "weights.safetensors", "items.bin"])
def test_unreadable_files_without_verification(copy, name):
    (copy / name).write_bytes(b"not what it was")
    assert name in refusal(copy, verify=False)


def test_not_a_bundle(tmp_path, copy):
    assert "not a bundle" in refusal(tmp_path / "absent")
    assert "not a bundle" in refusal(tmp_path)
    assert "not a bundle" in refusal(copy / "items.bin")


def test_parts_that_do_not_fit_are_not_written(content, tmp_path):
    with pytest.raises(BundleError, match="differ in length"):
        write_bundle(tmp_path / "bundle", replace(content, item_counts_I=content.item_counts_I[:-1]))
    with pytest.raises(BundleError, match="differ in length"):
        write_bundle(tmp_path / "bundle", replace(content, items=content.items[:-1]))
    assert list(tmp_path.iterdir()) == []


# The id


def test_id_rests_on_content_alone(content, tmp_path):
    first = write_bundle(tmp_path / "a", content)
    told = replace(content, reports={"other": {"x": 2}}, mlflow_run_id="run", source="elsewhere")
    assert write_bundle(tmp_path / "b", told).id == first.id
    arrays = dict(reversed(content.form.arrays.items()))
    assert (
        write_bundle(tmp_path / "c", replace(content, form=replace(content.form, arrays=arrays))).id
        == first.id
    )
    places = {
        "name": "another",
        "data": {"kind": "dataset", "path": "/elsewhere"},
        "evaluate": {"ks": [10]},
        "track": {"uri": "http://somewhere"},
    }
    assert write_bundle(tmp_path / "d", replace(content, recipe=content.recipe | places)).id == first.id
    (tmp_path / "a" / "reports" / "late.json").write_text("{}")
    assert Bundle.open(tmp_path / "a").id == first.id


def changed_forms(form):
    for name, array in form.arrays.items():
        other = array.copy()
        other.reshape(-1)[-1] += 1
        yield name, replace(form, arrays=dict(form.arrays) | {name: other})
    vectors, bias = form.item_vectors_ID.copy(), form.item_bias_I.copy()
    vectors[3, 5] += 1e-3
    bias[2] += 1e-3
    yield "item_vectors_ID", replace(form, item_vectors_ID=vectors)
    yield "item_bias_I", replace(form, item_bias_I=bias)
    yield "meta", replace(form, meta=dict(form.meta) | {"eps": 1e-6})


def test_any_weight_changes_the_id(content, tmp_path):
    first = write_bundle(tmp_path / "first", content).id
    changes = dict(changed_forms(content.form))
    assert len(changes) > 40
    for name, form in changes.items():
        assert write_bundle(tmp_path / "other", replace(content, form=form)).id != first, name


def test_ids_users_and_settings_change_the_id(content, tmp_path):
    ids = {write_bundle(tmp_path / "first", content).id}
    others = [
        {"items": content.items.with_columns(pl.col("title") + "!")},
        {"items": content.items.with_columns(pl.col("item_id") + 100)},
        {"users": content.users.with_columns(pl.col("user_id") + 1)},
        {"users": None},
        {"item_counts_I": content.item_counts_I + 1},
        {"split_id": "0" * 64},
        {"fingerprints": {"dataset": "another"}},
        {"recipe": content.recipe | {"train": {"epochs": 3}}},
        {"id_type": {"user": "str", "item": "int"}},
        {"licence_text": None},
    ]
    for change in others:
        ids.add(write_bundle(tmp_path / "other", replace(content, **change)).id)
    assert len(ids) == 1 + len(others)


# How it is written


def test_nothing_is_pickled(cases):
    heads = {".parquet": b"PAR1", ".json": b"{", ".txt": b"Do", ".bin": None, ".safetensors": None}
    for name in ("fmrlrec", "ease", "itemknn", "popularity"):
        for path in cases(name).path.rglob("*"):
            if path.is_dir():
                continue
            data = path.read_bytes()
            assert path.suffix in heads, path
            assert not data.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK")), path
            head = heads[path.suffix]
            assert head is None or data.startswith(head), path
            if path.suffix == ".safetensors":
                length = int.from_bytes(data[:8], "little")
                assert json.loads(data[8 : 8 + length])


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("step", ["save", "write_vectors", "file_sha256", "write_json"])
def test_a_failure_midway_leaves_what_was_there(content, tmp_path, monkeypatch, step):
    def fail(*arguments, **options):
        raise Interrupted

    before = write_bundle(tmp_path / "bundle", content).id
    monkeypatch.setattr(bundle_writing, step, fail)
    for name in ("bundle", "another"):
        with pytest.raises(Interrupted):
            write_bundle(tmp_path / name, replace(content, split_id="0" * 64))
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert Bundle.open(tmp_path / "bundle").id == before


def test_writing_again_replaces(content, tmp_path):
    first = write_bundle(tmp_path / "bundle", content).id
    second = write_bundle(tmp_path / "bundle", replace(content, users=None)).id
    assert first != second == Bundle.open(tmp_path / "bundle").id
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert not (tmp_path / "bundle" / "users.parquet").exists()
