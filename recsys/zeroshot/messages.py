"""What is said to a model: messages of text and pictures, with a canonical form that cache keys rest on."""

import base64
import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from PIL import Image, ImageDraw

QUALITY = 85
"""Of every picture's JPEG: fixed, so that the same file and side give the same bytes and the same key."""
_LABEL_HEIGHT = 16


@dataclass(frozen=True)
class Picture:
    """A picture as it is sent: JPEG bytes."""

    jpeg: bytes = field(repr=False)

    @classmethod
    def of(cls, image: Image.Image, side: int) -> "Picture":
        """Shrunk to at most side x side pixels and encoded anew."""
        small = image.convert("RGB")
        small.thumbnail((side, side))
        out = io.BytesIO()
        small.save(out, "JPEG", quality=QUALITY)
        return cls(out.getvalue())

    @classmethod
    def open(cls, path: Path, side: int) -> "Picture | None":
        """None where the file is missing or cannot be read as a picture."""
        try:
            with Image.open(path) as image:
                image.draft("RGB", (side, side))
                return cls.of(image, side)
        except (OSError, ValueError, Image.DecompressionBombError):
            return None

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.jpeg).hexdigest()

    @property
    def data_uri(self) -> str:
        return f"data:image/jpeg;base64,{base64.b64encode(self.jpeg).decode()}"

    @property
    def image(self) -> Image.Image:
        return Image.open(io.BytesIO(self.jpeg)).convert("RGB")


@dataclass(frozen=True)
class Message:
    """One turn: text and pictures in reading order."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[str | Picture, ...]

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def pictures(self) -> list[Picture]:
        return [part for part in self.parts if isinstance(part, Picture)]


def canonical(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """JSON of the messages with every picture replaced by its hash."""
    return [
        {
            "role": message.role,
            "parts": [part if isinstance(part, str) else {"image": part.sha256} for part in message.parts],
        }
        for message in messages
    ]


def contact_sheet(pictures: Sequence[tuple[str, Picture | None]], side: int, columns: int = 5) -> Picture:
    """All pictures in one, in rows of `columns`, each under its label; a missing one leaves its place grey.

    side: pixels of a place.
    """
    rows = math.ceil(len(pictures) / columns)
    width, height = columns * side, rows * (side + _LABEL_HEIGHT)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (label, picture) in enumerate(pictures):
        left, top = number % columns * side, number // columns * (side + _LABEL_HEIGHT)
        draw.text((left + 3, top + 2), label, fill="black")
        top += _LABEL_HEIGHT
        if picture is None:
            draw.rectangle((left + 2, top, left + side - 3, top + side - 3), fill="lightgrey")
            continue
        small = picture.image
        small.thumbnail((side - 4, side - 4))
        sheet.paste(small, (left + 2 + (side - 4 - small.width) // 2, top))
    return Picture.of(sheet, max(width, height))
