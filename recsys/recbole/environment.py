"""An environment of RecBole's own, made once in the cache: it needs packages too old to live beside ours."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

from recsys.errors import RecsysError
from recsys.files import digest, locked

logger = logging.getLogger("recsys")

TORCH = "torch>=2.6"
PINS = ("setuptools<81", "numpy==1.26.4", "pandas==2.3.3", "ray==2.6.3", "recbole==1.2.1")
"""What works together (RecBole 1.2.1 with current torch); ray 2.6.3 has no wheels past Python 3.11."""
_LATEST = (3, 11)
_READY = "recsys-ready"


def environment(cache: Path | None = None) -> Path:
    """The environment's Python, after making it where there is none: some minutes and 1.6 GB, once.

    Raises RecsysError where there is no Python that RecBole runs on, or pip fails.
    """
    root = cache or _cache()
    folder = root / f"recbole-{digest([TORCH, *PINS])[:8]}"
    python = folder / "bin" / "python"
    if (folder / _READY).is_file():
        return python
    interpreter = _interpreter()
    root.mkdir(parents=True, exist_ok=True)
    with locked(root):
        if (folder / _READY).is_file():
            return python
        shutil.rmtree(folder, ignore_errors=True)
        logger.info("making RecBole's environment in %s: some minutes, once", folder)
        _call([interpreter, "-m", "venv", str(folder)], "cannot make an environment", folder)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _call([*pip, TORCH, PINS[0]], "cannot install torch for RecBole", folder)
        _call([*pip, TORCH, *PINS], "cannot install RecBole", folder)
        (folder / _READY).write_text("\n".join([TORCH, *PINS]) + "\n")
    return python


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "recsys"


def _interpreter() -> str:
    """This Python, or another on the path, of at most 3.11."""
    if sys.version_info[:2] <= _LATEST:
        return sys.executable
    for minor in (11, 10, 9):
        found = shutil.which(f"python3.{minor}")
        if found:
            return found
    raise RecsysError(
        f"RecBole needs Python 3.11 or older, this is {sys.version_info[0]}.{sys.version_info[1]}",
        expected="python3.11 on the path",
        fix="install it, or run recsys recbole from an environment of Python 3.11",
    )


def outside() -> dict[str, str]:
    """Variables for a process of that environment: none that lead to our packages, and what RecBole 1.2.1 needs to read
    its own checkpoints, which pickle its settings."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return kept | {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1", "PYTHONWARNINGS": "ignore"}


def _call(command: list[str], what: str, folder: Path) -> None:
    done = subprocess.run(command, env=outside(), capture_output=True, text=True)
    if done.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise RecsysError(f"{what} ({said[-1]})", where=" ".join(command))
