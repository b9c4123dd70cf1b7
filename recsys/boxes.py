"""Boxes: steps of a run whose results lie on disk under a key, and are skipped while the key is unchanged.

Key = the box's resolved settings, the keys it stands on, and the box's version. Device, workers and
places are not in it. A box appears whole or not at all, so a killed run resumes where it stood.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys.files import digest


@dataclass(frozen=True)
class Box:
    """name: e.g. "fit.ease.seed0". make(folder) writes the result to `folder` atomically.

    scratch: a folder that survives a kill (checkpoints), removed once the box is made.
    """

    name: str
    key: str
    root: Path
    make: Callable[["Box"], None]

    @property
    def folder(self) -> Path:
        return self.root / "boxes" / f"{self.name}-{self.key[:12]}"

    @property
    def scratch(self) -> Path:
        return self.root / "scratch" / f"{self.name}-{self.key[:12]}"

    @property
    def done(self) -> bool:
        return self.folder.exists()


class Line:
    """The boxes of a run in order. `add` only computes keys; `run` makes what is missing."""

    def __init__(self, root: Path):
        self.root = root
        self.boxes: dict[str, Box] = {}

    def add(
        self,
        name: str,
        make: Callable[[Box], None],
        settings: Any,
        upstream: Mapping[str, Box],
        *,
        version: int | str = 1,
    ) -> Box:
        """A box standing on `upstream` boxes; settings are anything JSON."""
        keys = {label: box.key for label, box in sorted(upstream.items())}
        key = digest({"box": name.split(".")[0], "settings": settings, "upstream": keys, "version": version})
        box = Box(name, key, self.root, make)
        self.boxes[name] = box
        return box

    def run(
        self,
        started: Callable[[Box], None],
        finished: Callable[[Box, bool], None],
        *,
        until: str | None = None,
    ) -> list[Box]:
        """Make every missing box, up to and including the one named `until`; returns those that were made.

        The callbacks are told of each box.
        """
        made = []
        names = list(self.boxes)
        for name in names[: None if until is None else names.index(until) + 1]:
            box = self.boxes[name]
            cached = box.done
            if not cached:
                started(box)
                box.make(box)
                made.append(box)
            shutil.rmtree(box.scratch, ignore_errors=True)
            finished(box, cached)
        return made


def sweep(root: Path) -> None:
    """Remove what a killed run left half-written. Call under the folder's lock."""
    for leftover in (root / "boxes").glob(".*"):
        shutil.rmtree(leftover, ignore_errors=True)
