"""What a data source is: settings, the files it reads, and how they become a Dataset."""

import os
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from recsys.config import Config
from recsys.dataset import Dataset
from recsys.errors import DataError
from recsys.files import digest, file_sha256


class Source(Config):
    """Settings of one source. Fields named in `places` say where files lie and are no part of its identity."""

    places: ClassVar[frozenset[str]] = frozenset({"root"})

    @abstractmethod
    def inputs(self) -> list[Path]:
        """Every file that is read. Raises DataError where one is missing."""

    @abstractmethod
    def prepare(self, out: Path) -> Dataset:
        """Write the Dataset folder `out`."""

    def identity(self) -> dict[str, Any]:
        """Kind, settings and the hash of every input: equal identities give equal Datasets."""
        settings = self.model_dump(mode="json", exclude=set(self.places))
        files = sorted((path.name, file_sha256(path)) for path in self.inputs())
        identity = {"kind": type(self).__name__, "settings": settings, "files": files}
        folder = self.image_folder()
        return identity if folder is None else identity | {"images": digest(image_names(folder))}

    def image_folder(self) -> Path | None:
        """The folder whose listing decides which items have an image; None where images come otherwise."""
        return None


def data_root() -> Path | None:
    """$RECSYS_DATA, else ../shared/data where that exists, else None."""
    given = os.environ.get("RECSYS_DATA")
    if given:
        return Path(given)
    beside = Path("../shared/data")
    return beside if beside.is_dir() else None


def cache_root() -> Path:
    """$RECSYS_CACHE, else ~/.cache/recsys."""
    return Path(os.environ.get("RECSYS_CACHE", "~/.cache/recsys")).expanduser()


def find(folder: str, *names: str) -> Path | None:
    """$RECSYS_DATA/folder where it holds all `names`."""
    root = data_root()
    if root is None or not all((root / folder / name).is_file() for name in names):
        return None
    return root / folder


def need(path: Path, what: str) -> Path:
    """The path itself; raises DataError where there is no such file or it is empty."""
    if not path.is_file():
        raise DataError(f"no such file ({what})", where=path, fix="correct the path")
    if path.stat().st_size == 0:
        raise DataError(f"the file is empty ({what})", where=path, expected="at least one row")
    return path


def image_names(folder: Path) -> list[str]:
    """Names of the .jpg files in a folder, sorted; raises DataError where there is none."""
    if not folder.is_dir():
        raise DataError("no such folder (images)", where=folder, fix="correct the path")
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.name.endswith(".jpg"))
    if not names:
        raise DataError("the folder holds no .jpg file", where=folder, expected="ITEM_ID.jpg")
    return names
