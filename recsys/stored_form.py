"""A serving form in a file: its arrays under names of their own, and what a manifest says of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from recsys.errors import BundleError
from recsys.fusion import GatedItems
from recsys.item_encoding import ItemEncoding
from recsys.layered_items import LayeredItems
from recsys.neighbour_encoding import NeighbourEncoding
from recsys.schema import Form

_ENCODINGS = {one.kind: one for one in (NeighbourEncoding, GatedItems, LayeredItems)}
"""Kinds of encodings with a class of their own; all others are those of `ItemEncoding`."""
_FORM, _ENCODING, _BIAS, _VECTORS = "form.", "encoding.", "item_bias", "item_vectors"


def form_arrays(form: Form) -> dict[str, np.ndarray]:
    """All of a form's arrays but its item vectors."""
    arrays = {_FORM + name: np.ascontiguousarray(value) for name, value in form.arrays.items()}
    if form.encoding is not None:
        arrays |= {_ENCODING + name: value for name, value in form.encoding.arrays().items()}
    if form.item_bias_I is not None:
        arrays[_BIAS] = np.ascontiguousarray(form.item_bias_I, np.float32)
    return arrays


def form_facts(form: Form) -> dict[str, Any]:
    """What is not an array, as JSON values."""
    encoding = form.encoding
    return {
        "program": form.program,
        "meta": dict(form.meta),
        "widths": list(form.widths),
        "encoding": None if encoding is None else encoding.facts(),
    }


def form_from(
    facts: Mapping[str, Any],
    stored: Mapping[str, np.ndarray],
    vectors_ID: np.ndarray | None,
    widths: tuple[int, ...],
) -> Form:
    """The form whose facts and arrays these are, of the first `widths` of its widths."""
    encoding = None
    if facts["encoding"] is not None:
        arrays = _below(stored, _ENCODING)
        encoding = _ENCODINGS.get(facts["encoding"]["kind"], ItemEncoding).of(facts["encoding"], arrays)
        if widths and widths != tuple(facts["widths"]):
            encoding = encoding.cut(widths[-1])
    arrays = _below(stored, _FORM)
    return Form(facts["program"], arrays, facts["meta"], vectors_ID, stored.get(_BIAS), widths, encoding)


def write_form(path: Path, form: Form) -> None:
    """A whole form in one file, item vectors included."""
    arrays = form_arrays(form)
    if form.item_vectors_ID is not None:
        arrays[_VECTORS] = np.ascontiguousarray(form.item_vectors_ID, np.float32)
    path.write_bytes(save(arrays))


def read_form(path: Path, facts: Mapping[str, Any]) -> Form:
    """What `write_form` wrote. Raises BundleError for a file that cannot be read."""
    stored = read_arrays(path)
    return form_from(facts, stored, stored.get(_VECTORS), tuple(facts["widths"]))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Raises BundleError for a file that cannot be read."""
    try:
        return load(path.read_bytes())
    except (SafetensorError, OSError) as error:
        raise BundleError(f"cannot be read ({error})", where=path) from None


def _below(stored: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
