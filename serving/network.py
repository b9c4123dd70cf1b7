"""A sequence model's network in NumPy: whole histories at once, or one event at a time.

A nested network's matrices are block-lower-triangular over its widths, so the network of width m uses the first m rows
and columns of everything and computes exactly the first m values of the full one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from recsys.errors import ModelError
from recsys.schema import Form, Ragged
from recsys.serving.mixers import MIXERS, State, gelu, relu

PLAIN = {"gelu": gelu, "relu": relu}
"""What stands between the two layers of a feed-forward without gate; the first layer's array is named after it."""


@dataclass(frozen=True)
class Encoded:
    """per_block: state of each block. vectors_BD: the query vectors."""

    per_block: tuple[State, ...]
    vectors_BD: np.ndarray

    def to_bytes(self) -> bytes:
        """For `Network.restored`."""
        parts = [part for state in self.per_block for part in state]
        return b"".join(np.ascontiguousarray(part).tobytes() for part in [*parts, self.vectors_BD])

    def head(self, rows: int) -> "Encoded":
        """The first rows."""
        per_block = tuple(tuple(part[:rows] for part in state) for state in self.per_block)
        return Encoded(per_block, self.vectors_BD[:rows])


def cut_arrays(form: Form, width: int) -> dict[str, np.ndarray]:
    """The arrays of the network of this width."""
    full = len(form.arrays["start"])
    if width == full:
        return dict(form.arrays)
    multiple = int(form.meta["ffn_multiple"])
    sizes = {full: width, multiple * full: multiple * width}
    kept = {name: value for name, value in form.arrays.items() if name not in ("scales", "repeat")}
    arrays = {
        name: np.ascontiguousarray(value[tuple(slice(sizes[size]) for size in value.shape)])
        for name, value in kept.items()
    }
    arrays["scales"] = form.arrays["scales"][: form.widths.index(width) + 1]
    return arrays | ({"repeat": form.arrays["repeat"]} if "repeat" in form.arrays else {})


class Network:
    """The network at one width. Arrays are those of the form, cut to the width."""

    def __init__(self, form: Form, width: int):
        arrays, meta = cut_arrays(form, width), form.meta
        inside = [w for w in form.widths if w <= width]
        self.increments = list(zip([0, *inside[:-1]], inside, strict=True))
        self.eps, self.pre = float(meta["eps"]), meta["norm"] == "pre"
        self.window = meta["window"]
        self.items_ID = form.item_vectors_ID[:, :width]
        self.arrays = arrays
        self.position_LD = arrays.get("position")  # by distance to a row's last token
        self.blocks = [_below(arrays, f"{number}.") for number in range(int(meta["blocks"]))]
        self.mixers: list[Any] = [MIXERS[form.program](_below(block, "mix.")) for block in self.blocks]

    def _norm(self, x: np.ndarray, arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
        """An independent LayerNorm on each increment."""
        weight, bias = arrays[f"{name}.weight"], arrays[f"{name}.bias"]
        out = np.empty_like(x)
        for start, end in self.increments:
            part = x[:, start:end]
            centred = part - part.mean(axis=1, keepdims=True)
            scale = np.sqrt((centred**2).mean(axis=1, keepdims=True) + self.eps)
            out[:, start:end] = centred / scale * weight[start:end] + bias[start:end]
        return out

    def _advance(self, x_BD: np.ndarray, before: tuple[State, ...]) -> Encoded:
        """One event for every row."""
        u = self._entered(x_BD)
        after = []
        for block, mixer, state in zip(self.blocks, self.mixers, before, strict=True):
            y, state = mixer.advance(self._norm(u, block, "norm1") if self.pre else u, state)
            after.append(state)
            u = self._left(u, y, block)
        return Encoded(tuple(after), u)

    def _entered(self, x_ND: np.ndarray) -> np.ndarray:
        return self._norm(x_ND, self.arrays, "in") if "in.weight" in self.arrays else x_ND

    def _left(self, u: np.ndarray, y: np.ndarray, block: Mapping[str, np.ndarray]) -> np.ndarray:
        """What a block makes of its input u once the mixer has made y of it."""
        u = u + y if self.pre else self._norm(u + y, block, "norm1")
        x = self._norm(u, block, "norm2") if self.pre else u
        u = u + _hidden(x, block) @ block["down"].T + block["down_bias"]
        return u if self.pre else self._norm(u, block, "norm2")

    def initial(self, rows: int) -> Encoded:
        """After the start vector alone: an empty history.

        Raises ModelError where positions count from the newest event: the next one would change all that came before.
        """
        if self.position_LD is not None:
            raise ModelError(
                "positions = input, counted from the newest event: no state", fix="encode the whole history"
            )
        start_D = self.arrays["start"]
        return self._advance(
            np.broadcast_to(start_D, (rows, len(start_D))),
            tuple(mixer.initial(rows) for mixer in self.mixers),
        )

    @cached_property
    def _like(self) -> Encoded:
        """One row's shapes."""
        return self.initial(1)

    def restored(self, data: bytes) -> Encoded:
        """What one row's `to_bytes` gave. Raises ModelError for bytes of another length."""
        like, offset = self._like, 0

        def taken(part: np.ndarray) -> np.ndarray:
            nonlocal offset
            found = np.frombuffer(data, part.dtype, part.size, offset).reshape(part.shape)
            offset += part.nbytes
            return found

        size = sum(part.nbytes for state in like.per_block for part in state) + like.vectors_BD.nbytes
        if len(data) != size:
            raise ModelError(f"a state of {len(data)} bytes", expected=f"{size}, as of this network")
        per_block = tuple(tuple(taken(part) for part in state) for state in like.per_block)
        return Encoded(per_block, taken(like.vectors_BD))

    def step(self, encoded: Encoded, items_B: np.ndarray) -> Encoded:
        """After one more event per row; with a recurrent mixer the cost does not depend on the history."""
        return self._advance(self.items_ID[items_B], encoded.per_block)

    def read(self, items_L: np.ndarray) -> Encoded:
        """One whole history, as `step` after `step` from the start would leave it."""
        if not hasattr(self.mixers[0], "scan"):
            encoded = self.initial(1)
            for item in items_L:
                encoded = self.step(encoded, np.array([item]))
            return encoded
        u_LD = self._entered(np.concatenate([self.arrays["start"][None], self.items_ID[items_L]]))
        after = []
        for block, mixer in zip(self.blocks, self.mixers, strict=True):
            y_LD, state = mixer.scan(self._norm(u_LD, block, "norm1") if self.pre else u_LD)
            after.append(state)
            if block is self.blocks[-1]:  # only the last event's vector is asked for
                u_LD, y_LD = u_LD[-1:], y_LD[-1:]
            u_LD = self._left(u_LD, y_LD, block)
        return Encoded(tuple(after), u_LD)

    def encode(self, history: Ragged) -> np.ndarray:
        """[Q, m] query vectors of whole histories, longest first, so that every step works on active rows only; at once
        where there are no steps (see `initial`)."""
        if self.window is not None:
            history = history.tail(int(self.window) - 1)
        if self.position_LD is not None:
            return self._encode_whole(history, start_first=True)
        lengths = history.lengths
        order = np.argsort(-lengths, kind="stable")
        rows = history.take(order)
        encoded = self.initial(len(history))
        vectors = encoded.vectors_BD.copy()
        for step in range(int(lengths.max(initial=0))):
            active = int((lengths > step).sum())
            encoded = self.step(encoded.head(active), rows.values[rows.starts[:active] + step])
            vectors[:active] = encoded.vectors_BD
        out = np.empty_like(vectors)
        out[order] = vectors
        return out

    def _encode_whole(self, history: Ragged, *, start_first: bool) -> np.ndarray:
        """The vector of each row's last token, the start vector before or after the history; all rows of a length
        together."""
        lengths, start_D = history.lengths, self.arrays["start"]
        out_QD = np.empty((len(history), len(start_D)), np.float32)
        for length in np.unique(lengths):
            which = np.flatnonzero(lengths == length)
            shape = len(which), length + 1, len(start_D)
            items_BLD = self.items_ID[history.take(which).flat()[1].reshape(len(which), length)]
            start_B1D = np.broadcast_to(start_D, (len(which), 1, len(start_D)))
            parts = (start_B1D, items_BLD) if start_first else (items_BLD, start_B1D)
            x_BLD = np.concatenate(parts, axis=1)
            if self.position_LD is not None:
                x_BLD = x_BLD + self.position_LD[length::-1]
            u_ND = self._entered(x_BLD.reshape(-1, len(start_D)))
            for block, mixer in zip(self.blocks, self.mixers, strict=True):
                x_ND = self._norm(u_ND, block, "norm1") if self.pre else u_ND
                y_BLD = mixer.whole(x_ND.reshape(shape))
                u_ND = self._left(u_ND, y_BLD.reshape(x_ND.shape), block)
            out_QD[which] = u_ND.reshape(shape)[:, -1]
        return out_QD


class WholeNetwork(Network):
    """A network that looks both ways: the start vector stands after the history, for what is asked for. It reads rows
    whole, all of one length together; there is no step."""

    def encode(self, history: Ragged) -> np.ndarray:
        return self._encode_whole(history.tail(int(self.window) - 1), start_first=False)

    def initial(self, rows: int) -> Encoded:
        """Raises ModelError: what comes next changes what came before."""
        raise ModelError("a network that looks both ways has no state", fix="encode the whole history")


def _hidden(x: np.ndarray, block: Mapping[str, np.ndarray]) -> np.ndarray:
    """The hidden values of a block's feed-forward."""
    for name, activation in PLAIN.items():
        if name in block:
            return activation(x @ block[name].T + block[f"{name}_bias"])
    gate = x @ block["gate"].T + block["gate_bias"]
    return gate / (1 + np.exp(-gate)) * (x @ block["up"].T + block["up_bias"])


def _below(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
