"""The linear-recurrent network of fMRLRec in NumPy: whole histories at once, or one event at a time.

Every matrix is block-lower-triangular over the nested widths, so the network of width m uses the first m rows and
columns of everything and computes exactly the first m values of the full one.
"""

from dataclasses import dataclass

import numpy as np

from recsys.schema import Form, Ragged


@dataclass(frozen=True)
class State:
    """What a history has left behind. per_block: complex [B, m] of each block; vectors_BD: the query vectors."""

    per_block: tuple[np.ndarray, ...]
    vectors_BD: np.ndarray


class LRU:
    """The network at one width. Arrays are those of the form, cut to the width."""

    def __init__(self, form: Form, width: int):
        multiple = int(form.meta["ffn_multiple"])
        full = len(form.arrays["start"])
        hidden = multiple * full
        sizes = {full: width} | ({hidden: multiple * width} if hidden != full else {})
        arrays = {
            name: np.ascontiguousarray(value[tuple(slice(sizes[size]) for size in value.shape)])
            for name, value in form.arrays.items()
        }
        inside = [w for w in form.widths if w <= width]
        self.increments = list(zip([0, *inside[:-1]], inside, strict=True))
        self.eps = float(form.meta["eps"])
        self.items_ID = form.item_vectors_ID[:, :width]
        self.start_D = arrays["start"]
        self.in_norm = (arrays["in.weight"], arrays["in.bias"])
        self.blocks = [
            {name.partition(".")[2]: value for name, value in arrays.items() if name.startswith(f"{number}.")}
            for number in range(int(form.meta["blocks"]))
        ]
        for block in self.blocks:
            block["lambda"] = block.pop("lambda_re") + 1j * block.pop("lambda_im")

    def _norm(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """An independent LayerNorm on each increment."""
        out = np.empty_like(x)
        for start, end in self.increments:
            part = x[:, start:end]
            centred = part - part.mean(axis=1, keepdims=True)
            scale = np.sqrt((centred**2).mean(axis=1, keepdims=True) + self.eps)
            out[:, start:end] = centred / scale * weight[start:end] + bias[start:end]
        return out

    def _advance(self, x_BD: np.ndarray, before: tuple[np.ndarray, ...]) -> State:
        """One event for every row."""
        u = self._norm(x_BD, *self.in_norm)
        after = []
        for block, h in zip(self.blocks, before, strict=True):
            v_re = u @ block["B_re"].T + block["b_re"]
            v_im = u @ block["B_im"].T + block["b_im"]
            h = (block["lambda"] * h + (v_re + 1j * v_im)).astype(np.complex64)
            after.append(h)
            y = h.real @ block["C_re"].T - h.imag @ block["C_im"].T + block["c"]
            u = self._norm(u + y, block["norm1.weight"], block["norm1.bias"])
            gate = u @ block["gate"].T + block["gate_bias"]
            hidden = gate / (1 + np.exp(-gate)) * (u @ block["up"].T + block["up_bias"])
            u = self._norm(
                u + hidden @ block["down"].T + block["down_bias"], block["norm2.weight"], block["norm2.bias"]
            )
        return State(tuple(after), u)

    def initial(self, rows: int) -> State:
        """The state after the start vector alone: an empty history."""
        zero = np.zeros((rows, len(self.start_D)), np.complex64)
        return self._advance(np.broadcast_to(self.start_D, zero.shape), (zero,) * len(self.blocks))

    def step(self, state: State, items_B: np.ndarray) -> State:
        """The state after one more event per row; cost does not depend on the history."""
        return self._advance(self.items_ID[items_B], state.per_block)

    def encode(self, history: Ragged) -> np.ndarray:
        """[Q, m] query vectors of whole histories, longest first, so that every step works on active rows only."""
        lengths = history.lengths
        order = np.argsort(-lengths, kind="stable")
        rows = history.take(order)
        state = self.initial(len(history))
        vectors = state.vectors_BD.copy()
        for step in range(int(lengths.max(initial=0))):
            active = int((lengths > step).sum())
            short = State(tuple(h[:active] for h in state.per_block), state.vectors_BD[:active])
            state = self.step(short, rows.values[rows.starts[:active] + step])
            vectors[:active] = state.vectors_BD
        out = np.empty_like(vectors)
        out[order] = vectors
        return out
