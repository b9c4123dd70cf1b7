"""A folder of what was learnt: run.json, and weights.safetensors. A frozen language model is named there, not kept."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from recsys.errors import FeatureError
from recsys.files import file_sha256, new_folder, write_json

_FACTS, _WEIGHTS = "run.json", "weights.safetensors"
_AGAIN = "train it again"
_A = {"embedder": "an embedder", "writer": "a writer"}


def write_run(
    out: Path, kind: str, version: int, facts: Mapping[str, Any], arrays: dict[str, np.ndarray]
) -> None:
    """kind: what was learnt, "embedder" or "writer". facts: with "language", those of the language model, where there
    is one."""
    weights = save({name: np.asarray(value, order="C") for name, value in arrays.items()})
    with new_folder(out) as folder:
        (folder / _WEIGHTS).write_bytes(weights)
        own = {"kind": kind, "version": version, "weights": file_sha256(folder / _WEIGHTS)}
        write_json(folder / _FACTS, own | dict(facts))


def read_run(folder: Path, kind: str, version: int) -> dict[str, Any]:
    """The facts. Raises FeatureError where the folder is no such run, or another version's."""
    try:
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise FeatureError(f"not a run of {_A[kind]} (no {_FACTS})", where=folder) from None
    except ValueError as error:
        raise FeatureError(f"{_FACTS} is damaged ({error})", where=folder, fix=_AGAIN) from None
    found = facts.get("kind"), facts.get("version")
    if found != (kind, version):
        raise FeatureError(
            f"a run of {found[0]}, version {found[1]}", where=folder, expected=f"{kind}, version {version}",
            fix=_AGAIN if found[0] == kind else None,
        )  # fmt: skip
    return facts


def read_weights(folder: Path, facts: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Raises FeatureError where they are not those of the facts."""
    return load(_weights(folder, facts))


def run_files(folder: Path, facts: Mapping[str, Any]) -> dict[str, bytes]:
    """A run as it goes elsewhere: these facts, and the weights, by file name. Raises as `read_weights`."""
    return {_FACTS: (json.dumps(facts, indent=2) + "\n").encode(), _WEIGHTS: _weights(folder, facts)}


def _weights(folder: Path, facts: Mapping[str, Any]) -> bytes:
    path = folder / _WEIGHTS
    data = path.read_bytes() if path.is_file() else None
    if data is None or hashlib.sha256(data).hexdigest() != facts["weights"]:
        raise FeatureError("the weights are missing or were changed", where=path, fix=_AGAIN)
    return data


def check_language(facts: Mapping[str, Any], given: Mapping[str, Any], name: str) -> None:
    """Raises FeatureError where the language model is not the one that the run was trained on."""
    if given["weights"] != facts["language"]["weights"]:
        raise FeatureError("not the weights that the run was trained on", where=name, fix="give that model")
