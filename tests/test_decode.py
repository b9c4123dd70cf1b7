"""Picture files to pixels: every kind of file is read or refused with a reason, and none is fatal."""

import contextlib
import io
import os
import struct
import subprocess
import sys
import threading
import time
import zlib
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from recsys.features.image import decode as module
from recsys.features.image.decode import MAX_PIXELS, Geometry, decode
from recsys.features.image.prefetch import decoded

SMALL = Geometry((32, 32), (32, 32))
AS_IS = Geometry((40, 60), (40, 60), "squash", "nearest")
"""A picture of 60 x 40 comes out as it is."""


def noise(seed: int = 0, size: tuple[int, int] = (60, 40), channels: int = 3) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], channels), np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def png_header(width: int, height: int) -> bytes:
    """A PNG of that size with hardly any pixels in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("end", ["png", "jpg", "webp"])
def test_upright(tmp_path, orientation, end):
    """However a camera was held, its picture comes out as the same picture that lay upright."""
    upright, header = noise(0, (6, 4)).resize((60, 40), Image.Resampling.BICUBIC), Image.Exif()
    header[0x0112] = orientation
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    turned = upright.transpose(turn[orientation]) if orientation > 1 else upright
    exact = {"webp": {"lossless": True}, "jpg": {"quality": 95}}.get(end, {})
    pixels = decode(saved(tmp_path / f"turned.{end}", turned, exif=header, **exact), AS_IS)
    difference = np.abs(pixels.astype(int) - np.asarray(upright)).mean()
    assert difference <= (3 if end == "jpg" else 0)


def test_kinds_of_pixels_by_hand(tmp_path):
    """Alpha lies on white; grey, palette, CMYK and 16 bits come out as the colours that they show."""
    grey = noise(1, channels=1)
    shown = {
        "grey.png": (grey, np.repeat(np.asarray(grey)[..., None], 3, axis=2)),
        "bits.png": (grey.convert("1"), np.asarray(grey.convert("1").convert("RGB"))),
        "deep.png": (
            Image.fromarray(np.asarray(grey).astype(np.uint16) * 257),
            np.repeat(np.asarray(grey)[..., None], 3, axis=2),
        ),
        "palette.png": (noise().quantize(16), np.asarray(noise().quantize(16).convert("RGB"))),
        "plain.bmp": (noise(), np.asarray(noise())),
        "plain.tiff": (noise(), np.asarray(noise())),
    }
    for name, (image, expected) in shown.items():
        np.testing.assert_array_equal(decode(saved(tmp_path / name, image), AS_IS), expected, err_msg=name)

    clear = noise().convert("RGBA")
    clear.putalpha(Image.fromarray(np.tile(np.array([0, 128, 255], np.uint8), (40, 20))))
    expected = np.asarray(noise()).astype(float)
    alpha = np.tile(np.array([0, 128, 255]) / 255, (40, 20))[..., None]
    expected = expected * alpha + 255 * (1 - alpha)
    for name in ("clear.png", "clear.tiff"):
        found = decode(saved(tmp_path / name, clear), AS_IS)
        np.testing.assert_allclose(found, expected, atol=1, err_msg=name)
    two = Image.merge("LA", [grey, Image.new("L", grey.size, 0)])
    assert (decode(saved(tmp_path / "two.png", two), AS_IS) == 255).all()
    holes = noise().quantize(4)
    where = np.asarray(holes) == 2
    found = decode(saved(tmp_path / "holes.png", holes, transparency=2), AS_IS)
    assert (found[where] == 255).all()
    np.testing.assert_array_equal(found[~where], np.asarray(holes.convert("RGB"))[~where])

    flat = Image.new("RGB", (60, 40), (200, 40, 90))
    ink = decode(saved(tmp_path / "ink.jpg", flat.convert("CMYK"), quality=95), AS_IS)
    np.testing.assert_allclose(ink, np.asarray(flat), atol=6)


@pytest.mark.parametrize("end", ["gif", "webp", "png", "tiff"])
def test_the_first_of_several_frames(tmp_path, end):
    frames = [Image.new("RGB", (60, 40), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / f"moving.{end}"
    exact = {"lossless": True} if end == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **exact)
    np.testing.assert_array_equal(decode(path, AS_IS), np.asarray(frames[0]))


def test_what_cannot_be_read_says_why(tmp_path):
    whole = io.BytesIO()
    noise(size=(200, 200)).save(whole, "JPEG")
    png = saved(tmp_path / "whole.png", noise(size=(200, 200))).read_bytes()
    drawing = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    floats = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(floats, "TIFF")
    files = {
        "empty.jpg": (b"", "cannot identify"),
        "words.jpg": (b"these are words", "cannot identify"),
        "cut.jpg": (whole.getvalue()[:2000], "truncated"),
        "cut.png": (png[: len(png) // 2], "truncated"),
        "headless.png": (png[100:], "cannot identify"),
        "drawing.eps": (drawing, "cannot identify"),
        "floats.tiff": (floats.getvalue(), "floating point"),
        "bomb.png": (png_header(40_000, 40_000), "1600000000 pixels"),
        "large.png": (png_header(10_000, 9_000), f"10000 x 9000 pixels, at most {MAX_PIXELS:,}"),
    }
    for name, (content, reason) in files.items():
        path = tmp_path / name
        path.write_bytes(content)
        found = decode(path, SMALL)
        assert isinstance(found, str), name
        assert found.startswith(f"{name}: ") and reason in found and "\n" not in found, found
        assert str(tmp_path) not in found  # an id and a file name say enough
    (tmp_path / "folder.jpg").mkdir()
    for name in ("folder.jpg", "absent.jpg"):
        assert decode(tmp_path / name, SMALL).startswith(f"{name}: ")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    end=st.sampled_from(["jpeg", "png", "gif", "webp", "tiff", "bmp"]),
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
)
def test_a_damaged_file_is_never_fatal(tmp_path, end, cut, flips):
    stream = io.BytesIO()
    noise(3, (24, 16)).save(stream, end)
    data = bytearray(stream.getvalue())
    for place, value in flips:
        data[int(place * len(data))] = value
    path = tmp_path / f"damaged.{end}"
    path.write_bytes(data[: round(cut * len(data))])
    found = decode(path, SMALL)
    assert isinstance(found, str) or (found.shape == (32, 32, 3) and found.dtype == np.uint8)


@pytest.mark.parametrize("fit", ["cover", "squash", "contain", "patches"])
@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1), (3, 7), (4000, 30)])
def test_any_shape_fits(tmp_path, fit, size):
    """A line of pixels does not become a strip of gigabytes on its way to the crop."""
    path = saved(tmp_path / "odd.png", Image.new("RGB", size, (10, 200, 30)))
    geometry = Geometry((36, 36), (32, 32), fit, patch=16, max_patches=9)
    pixels = decode(path, geometry)
    if fit == "patches":
        assert pixels.shape[0] % 16 == pixels.shape[1] % 16 == 0
        assert 1 <= pixels.shape[0] * pixels.shape[1] // 256 <= 9
    else:
        assert pixels.shape == (32, 32, 3)
    colours = {tuple(pixel) for pixel in pixels.reshape(-1, 3).tolist()}
    assert colours <= {(10, 200, 30), (0, 0, 0)} and (10, 200, 30) in colours
    assert fit == "contain" or len(colours) == 1


def test_the_middle_of_a_strip_is_the_middle(tmp_path):
    line = np.zeros((8, 800, 3), np.uint8)
    line[:, :400, 0] = line[:, 400:, 2] = 255
    pixels = decode(saved(tmp_path / "strip.png", Image.fromarray(line)), SMALL)
    assert (pixels[:, :14, 0] > 250).all() and (pixels[:, 18:, 2] > 250).all()


def test_a_large_jpeg_is_decoded_at_a_fraction(tmp_path, monkeypatch):
    """The pixels hardly differ from those of a full decoding."""
    photo = noise(5, (30, 20)).resize((1200, 800), Image.Resampling.BICUBIC)
    path, sizes = saved(tmp_path / "photo.jpg", photo, quality=92), []
    fitted = module._fitted
    monkeypatch.setattr(
        module, "_fitted", lambda image, geometry: sizes.append(image.size) or fitted(image, geometry)
    )
    quick = decode(path, SMALL).astype(int)
    monkeypatch.setattr(module, "_DRAFT", 10**6)
    slow = decode(path, SMALL).astype(int)
    assert sizes == [(150, 100), (1200, 800)]
    assert np.abs(quick - slow).mean() < 1.5


@pytest.fixture
def files(tmp_path) -> list[Path]:
    paths = [saved(tmp_path / f"{number}.png", noise(number)) for number in range(10)]
    paths[3].write_bytes(b"")
    return paths


def test_workers_give_what_this_process_gives(files):
    batches = [files[:4], files[4:5], files[5:]]
    here, there, two = (list(decoded(batches, SMALL, workers)) for workers in (0, 1, 2))
    for other in (there, two):
        assert [len(batch) for batch in other] == [4, 1, 5]
        for ours, theirs in zip(chain(*here), chain(*other), strict=True):
            assert isinstance(ours, str) == isinstance(theirs, str)
            assert ours == theirs if isinstance(ours, str) else np.array_equal(ours, theirs)
    assert here[0][3].startswith("3.png: ")


def children() -> set[int]:
    """Process ids of this process's living children."""
    return {
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _parent(entry) == os.getpid() and entry.name != str(os.getpid())
    }


def _parent(entry: Path) -> int:
    try:
        status = (entry / "stat").read_text().rpartition(") ")[2].split()
    except OSError:  # it ended meanwhile
        return 0
    return 0 if status[0] == "Z" else int(status[1])


def waited(condition, seconds: float = 60.0) -> bool:
    """Whether it comes true; the limit is there for a test that would fail anyway."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")


@needs_proc
def test_workers_end_with_the_work(files):
    before = children()
    stopped = decoded([files] * 5, SMALL, 2)
    next(stopped)
    assert len(children() - before) == 2
    stopped.close()
    assert children() == before
    assert len(list(decoded([files], SMALL, 2))) == 1 and children() == before


@needs_proc
def test_a_file_that_ends_its_process_is_unreadable(files, tmp_path):
    """A pipe without a writer stands for it: whoever reads it waits, and is killed meanwhile."""
    trap = tmp_path / "trap.png"
    os.mkfifo(trap)
    batch, before, found, killed = [*files[:2], trap, *files[4:6]], children(), [], 0
    thread = threading.Thread(target=lambda: found.extend(decoded([batch, files[6:8]], SMALL, 1)))
    thread.start()
    while thread.is_alive():
        with contextlib.suppress(OSError):  # nobody reads it yet
            writer = os.open(trap, os.O_WRONLY | os.O_NONBLOCK)
            (worker,) = children() - before
            os.kill(worker, 9)
            killed += waited(lambda worker=worker: not _parent(Path(f"/proc/{worker}")))
            os.close(writer)
        thread.join(0.02)
    assert [isinstance(pixels, str) for pixels in found[0]] == [False, False, True, False, False]
    assert "trap.png: ends the process that decodes it" in found[0][2]
    assert not any(isinstance(pixels, str) for pixels in found[1])
    assert killed == 2 and children() == before  # with its batch, then alone


PARENT = """
import sys
from pathlib import Path
from recsys.features.image.decode import Geometry
from recsys.features.image.prefetch import decoded
paths = [Path(name) for name in sys.argv[1:]]
for batch in decoded([paths] * 10_000, Geometry((32, 32), (32, 32)), 2):
    print("batch", flush=True)
"""


@needs_proc
@pytest.mark.parametrize("signal_number", [9, 2], ids=["killed", "interrupted"])
def test_workers_end_with_their_parent(files, signal_number):
    """Killed, it can tell them nothing; on Ctrl-C it ends them, and nothing hangs."""
    command = [sys.executable, "-c", PARENT, *map(str, files)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout.readline() == b"batch\n"
        workers = {
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and _parent(entry) == parent.pid
        }
        assert len(workers) == 2
        parent.send_signal(signal_number)
        parent.stdout.close()
        assert parent.wait(60) != 0
    assert waited(lambda: not any(_parent(Path(f"/proc/{pid}")) for pid in workers))
