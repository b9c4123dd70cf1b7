"""The ONNX graphs against the NumPy network, run by onnxruntime."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from recsys.errors import BundleError, ModelError
from recsys.models.trunk import Trunk, TrunkConfig
from recsys.schema import Form, Ragged
from recsys.serving.export import export_bundle, export_onnx
from recsys.serving.forms import open_form
from recsys.serving.network import Network
from recsys.serving.onnx_graph import encode_model, step_model

onnx = pytest.importorskip("onnx", reason="extra `onnx` is not installed")
runtime = pytest.importorskip("onnxruntime", reason="extra `onnx` is not installed")

ITEMS, WIDTHS = 30, (4, 8, 16)
NETWORKS = {
    "post": {},
    "pre, wide feed-forward": {"norm": "pre", "ffn_multiple": 3},
    "gelu": {"ffn": "gelu", "ffn_multiple": 2},
    "relu, pre": {"ffn": "relu", "norm": "pre"},
    "no input norm": {"input_norm": False},
    "three blocks": {"blocks": 3},
    "one width": {"widths": (6,), "blocks": 1},
}


def form_of(**settings) -> Form:
    """A network whose every weight is away from its initial value, so that no term is a zero or a one."""
    torch.manual_seed(0)
    config = TrunkConfig(**{"widths": WIDTHS, "radius": (0.5, 0.95)} | settings)
    trunk = Trunk(config)
    with torch.no_grad():
        for weight in trunk.parameters():
            weight += 0.2 * torch.randn_like(weight)
        arrays = {name: np.ascontiguousarray(value.numpy()) for name, value in trunk.arrays().items()}
    rng = np.random.default_rng(0)
    vectors_ID = rng.normal(size=(ITEMS, config.widths[-1])).astype(np.float32)
    return Form(
        "lru",
        arrays | {"scales": np.ones(len(config.widths), np.float32)},
        {"blocks": config.blocks, "ffn_multiple": config.ffn_multiple, "norm": config.norm, "eps": 1e-5,
         "window": None},
        vectors_ID,
        np.zeros(ITEMS, np.float32),
        config.widths,
    )  # fmt: skip


def histories(lengths=(3, 0, 150, 1, 7, 3)) -> Ragged:
    rng = np.random.default_rng(1)
    return Ragged.of([rng.integers(ITEMS, size=length) for length in lengths])


def session(model) -> "runtime.InferenceSession":
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def encoded(running, rows: Ragged, length: int | None = None) -> np.ndarray:
    (vectors,) = running.run(None, {"items": rows.padded(length), "lengths": rows.lengths})
    return vectors


@pytest.mark.parametrize("settings", NETWORKS.values(), ids=NETWORKS)
def test_whole_histories(settings):
    form, rows = form_of(**settings), histories()
    for width in form.widths:
        expected = Network(form, width).encode(rows)
        found = encoded(session(encode_model(onnx, open_form(form).cut(width))), rows)
        assert found.dtype == np.float32 and expected.std() > 0.1
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", NETWORKS.values(), ids=NETWORKS)
def test_event_by_event(settings):
    """States too: they go in and come out for 20 events, from zeros and item -1 on."""
    form = form_of(**settings)
    for width in form.widths:
        network = Network(form, width)
        running = session(step_model(onnx, open_form(form).cut(width)))
        states = {entry.name: np.zeros((3, width), np.float32) for entry in running.get_inputs()[1:]}
        names = [entry.name for entry in running.get_outputs()]
        expected = network.initial(3)
        for items_B in [np.full(3, -1), *np.random.default_rng(2).integers(ITEMS, size=(20, 3))]:
            found = dict(zip(names, running.run(None, {"item": items_B, **states}), strict=True))
            if items_B[0] >= 0:
                expected = network.step(expected, items_B)
            np.testing.assert_allclose(found["vector"], expected.vectors_BD, rtol=1e-5, atol=1e-5)
            states = {name: found[f"next_{name}"] for name in states}
        for number, (state_BD,) in enumerate(expected.per_block):
            np.testing.assert_allclose(states[f"re_{number}"], state_BD.real, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(states[f"im_{number}"], state_BD.imag, rtol=1e-5, atol=1e-5)


def test_padding_and_company_change_nothing():
    running, rows = session(encode_model(onnx, form_of())), histories()
    together = encoded(running, rows)
    np.testing.assert_allclose(encoded(running, rows, 200), together, rtol=1e-6, atol=1e-6)
    for row in range(len(rows)):
        alone = encoded(running, rows.take(slice(row, row + 1)))
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-5, atol=1e-6)


def test_a_padded_place_is_not_read():
    """What stands behind a row's length does not count, whatever it is."""
    running, rows = session(encode_model(onnx, form_of())), histories((2, 0))
    filled = np.where(rows.padded(5) < 0, 7, rows.padded(5))
    (found,) = running.run(None, {"items": filled, "lengths": rows.lengths})
    np.testing.assert_array_equal(found, encoded(running, rows, 5))


def test_only_empty_histories():
    form = form_of()
    found = encoded(session(encode_model(onnx, form)), Ragged.empty(2))
    np.testing.assert_allclose(found, Network(form, WIDTHS[-1]).initial(2).vectors_BD, rtol=1e-5, atol=1e-5)


def test_the_folder(cases, tmp_path):
    """A fitted model, from disk: what the graph and the files beside it say is the bundle's own score."""
    case = cases("fmrlrec")
    bundle, folder = case.bundle, tmp_path / "onnx"
    export_onnx(onnx, bundle, folder, 16)
    files = {"encode.onnx", "step.onnx", "ids.parquet", "index.json"}
    assert {path.name for path in folder.iterdir()} == files
    index = json.loads((folder / "index.json").read_text())
    assert index["bundle_id"] == bundle.id and index["width"] == 16 and index["blocks"] == 2
    assert pl.read_parquet(folder / "ids.parquet")["item_id"].to_list() == case.item_ids
    rows = Ragged.of([[3, 1, 4], [], [5] * 40])
    found = encoded(session(onnx.load(folder / "encode.onnx")), rows)
    np.testing.assert_allclose(found, Network(bundle.form, 16).encode(rows), rtol=1e-5, atol=1e-5)


def test_what_has_no_graph(cases, tmp_path):
    with pytest.raises(BundleError, match="'ease' has no item vectors"):
        export_onnx(onnx, cases("ease").bundle, tmp_path / "x", None)
    with pytest.raises(ModelError, match=r"no ONNX graph of a 'gru' program; expected lru"):
        step_model(onnx, replace(form_of(), program="gru"))
    attention = form_of(trunk="attention", widths=(8,), heads=2, positions="input", ffn="gelu")
    for build in (step_model, encode_model):
        with pytest.raises(ModelError, match=r"no ONNX graph of a 'attention' program; expected lru"):
            build(onnx, replace(attention, program="attention"))
    assert list(tmp_path.iterdir()) == []


def test_too_large_for_the_format():
    """A table of 4 GiB that takes no memory."""
    table_ID = np.broadcast_to(np.float32(0), (2**26, WIDTHS[-1]))
    with pytest.raises(ModelError, match=r"4\.0 GiB of weights; expected less than 2 GiB"):
        encode_model(onnx, replace(form_of(), item_vectors_ID=table_ID))


def test_an_older_form_without_norm_is_post():
    form = form_of()
    meta = {name: value for name, value in form.meta.items() if name != "norm"}
    assert step_model(onnx, replace(form, meta=meta)) == step_model(onnx, form)


def test_from_a_written_bundle_of_int8(cases, tmp_path):
    """The graph holds the vectors as they are served: rounded."""
    small = export_bundle(cases("fmrlrec").bundle, tmp_path / "int8", 8, "int8")
    rows = Ragged.of([[3, 1, 4], [2]])
    found = encoded(session(encode_model(onnx, small.form)), rows)
    np.testing.assert_allclose(found, Network(small.form, 8).encode(rows), rtol=1e-5, atol=1e-5)
