"""Picture files to the uint8 pixels that an encoder takes, with Pillow and NumPy alone.

The geometry repeats to the pixel what torchvision, open_clip, timm and transformers do, so that none of them is needed
here. Whatever a file holds, `decode` returns: pixels, or the reason why there are none.
"""

import math
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

VERSION = 1
"""Part of every image table's identity: raise it where the same file would give other pixels."""
MAX_PIXELS = 80_000_000
"""Width times height; a larger picture is unreadable. It is told by the header, before anything is decoded."""
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""What is opened. Pillow's other readers are rare, old, or start a program of their own (EPS)."""
_DRAFT = 2
"""A JPEG is decoded at a half, a quarter or an eighth where that leaves this many times the pixels wanted."""
_STRIP = 20
"""A picture this many times longer than wide is cut to its middle before it is resized, which would enlarge it."""
Kind = Literal["cover", "squash", "contain", "patches"]


@dataclass(frozen=True)
class Geometry:
    """How a picture becomes the encoder's pixels; heights before widths.

    fit: "cover" and "contain" resize to `resize` keeping the ratio, so that the picture fills it or lies within it;
    "squash" resizes to it whatever the ratio; then the centre `crop` is cut out, or padded with `fill`. "patches"
    keeps the ratio, with sides that are multiples of `patch` and at most `max_patches` patches.
    half: where the surplus is odd, the crop starts at the rounded half (as torchvision does) or at the lower one.
    """

    resize: tuple[int, int]
    crop: tuple[int, int]
    fit: Kind = "cover"
    resample: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] = "bicubic"
    fill: tuple[int, int, int] = (0, 0, 0)
    half: Literal["round", "floor"] = "round"
    patch: int = 0
    max_patches: int = 0

    def facts(self) -> dict[str, Any]:
        """For a manifest."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }


def decode(path: Path, geometry: Geometry) -> np.ndarray | str:
    """uint8 [H, W, 3], upright, alpha on white, the first frame of several; or why the file cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow finds odd but reads all the same
            return _fitted(_upright(path, _DRAFT * max(geometry.resize)), geometry)
    except Exception as error:  # Pillow's readers raise nearly anything for a damaged file
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        return f"{path.name}: {reason.replace(str(path), path.name)}"


def _upright(path: Path, enough: int) -> Image.Image:
    """The picture in RGB, as its header says it is to be held. enough: a JPEG's short side may shrink to this."""
    with Image.open(path, formats=_known_formats()) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise ValueError(f"{opened.width} x {opened.height} pixels, at most {MAX_PIXELS:,} are decoded")
        opened.draft(None, (enough, enough))
        return _rgb(ImageOps.exif_transpose(opened))


def _known_formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating point pixels, whose range is not known")
    if image.mode.startswith("I"):  # 16 bits of grey; Pillow would cut off what is above 255
        grey = np.asarray(image).astype(np.int64)
        image = Image.fromarray(np.clip(grey >> 8, 0, 255).astype(np.uint8))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    return image.convert("RGB")


def _fitted(image: Image.Image, geometry: Geometry) -> np.ndarray:
    resample = Image.Resampling[geometry.resample.upper()]
    if geometry.fit == "patches":
        return np.asarray(image.resize(_patched(image.size, geometry), resample))
    if geometry.fit == "cover":
        image = _middle(image)
    image = image.resize(_resized(image.size, geometry), resample)
    height, width = geometry.crop
    left, top = _start(image.width, width, geometry), _start(image.height, height, geometry)
    if left < 0 or top < 0:
        padded = Image.new("RGB", (max(width, image.width), max(height, image.height)), geometry.fill)
        padded.paste(image, (max(0, -left), max(0, -top)))
        image, left, top = padded, max(0, left), max(0, top)
    return np.asarray(image.crop((left, top, left + width, top + height)))


def _start(side: int, crop: int, geometry: Geometry) -> int:
    """Where the crop starts; negative where the picture is smaller than the crop, and that many pixels are added."""
    surplus = side - crop
    if geometry.half == "floor":
        return surplus // 2
    return round(surplus / 2) if surplus >= 0 else -(-surplus // 2)


def _resized(size: tuple[int, int], geometry: Geometry) -> tuple[int, int]:
    """(width, height) after resizing."""
    (width, height), (rows, columns) = size, geometry.resize
    if geometry.fit == "squash":
        return columns, rows
    if (
        geometry.fit == "cover" and rows == columns
    ):  # torchvision's Resize cuts the long side to a whole number
        short = min(size)
        return (rows, int(rows * height / short)) if width <= height else (int(rows * width / short), rows)
    choose = min if geometry.fit == "cover" else max
    ratio = choose(height / rows, width / columns)
    return max(1, round(width / ratio)), max(1, round(height / ratio))


def _middle(image: Image.Image) -> Image.Image:
    """A strip of a picture without the ends that the crop would throw away."""
    short, long = sorted(image.size)
    if long <= _STRIP * short:
        return image
    start = (long - _STRIP * short) // 2
    end = start + _STRIP * short
    return image.crop((start, 0, end, short) if image.width == long else (0, start, short, end))


def _patched(size: tuple[int, int], geometry: Geometry) -> tuple[int, int]:
    """(width, height): the largest scale at which the patches are not too many, by bisection as in SigLIP2."""

    def sides(scale: float) -> tuple[int, int]:
        first, second = (max(1, math.ceil(side * scale / geometry.patch)) * geometry.patch for side in size)
        return first, second

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        scale = (low + high) / 2
        width, height = sides(scale)
        if width * height <= geometry.max_patches * geometry.patch**2:
            low = scale
        else:
            high = scale
    return sides(low)
