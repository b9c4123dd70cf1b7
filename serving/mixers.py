"""What mixes the steps of a sequence, in NumPy: one event for every row at a time, float32.

Twins of `recsys.models.mixers`, to 1e-5. A state is a tuple of arrays whose first axis is the rows, so that
`tuple(part[:active] for part in state)` is the state of the first rows.

Legend: B rows, D width, C channels, K taps, H heads, d channels of a head, N values of state per channel, t events
seen.
"""

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from recsys.errors import ModelError

EPS = 1e-5
"""Of the norm in Mamba-2."""

State = tuple[np.ndarray, ...]
"""What a history has left behind; the first axis is the row."""


def sigmoid(x: np.ndarray) -> np.ndarray:
    """By tanh, which does not overflow."""
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


def softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def gelu(x: np.ndarray) -> np.ndarray:
    """x Phi(x), exact to 1e-6: erf by formula 7.1.26 of Abramowitz and Stegun."""
    t = 1 / (1 + 0.3275911 * math.sqrt(0.5) * np.abs(x))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    tail = 0.5 * series * np.exp(-0.5 * np.square(x))  # Phi(-|x|)
    return x * np.where(x < 0, tail, 1 - tail)


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def _softmax(x: np.ndarray) -> np.ndarray:
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


class LRU:
    """Linear recurrent unit: h <- lambda h + B u + b, y = Re(C h) + c. State: h, complex, [B, D]."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.arrays = arrays
        self.lambda_D = arrays["lambda_re"] + 1j * arrays["lambda_im"]

    def initial(self, rows: int) -> State:
        return (np.zeros((rows, len(self.lambda_D)), np.complex64),)

    def advance(self, u_BD: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        arrays, (h_BD,) = self.arrays, state
        v_re = u_BD @ arrays["B_re"].T + arrays["b_re"]
        v_im = u_BD @ arrays["B_im"].T + arrays["b_im"]
        h_BD = (self.lambda_D * h_BD + (v_re + 1j * v_im)).astype(np.complex64)
        return h_BD.real @ arrays["C_re"].T - h_BD.imag @ arrays["C_im"].T + arrays["c"], (h_BD,)

    def scan(self, u_LD: np.ndarray) -> tuple[np.ndarray, State]:
        """One row at once: (what every event gives [L, D], the state after the last). The products see all events
        together, and only the recurrence goes event by event."""
        arrays = self.arrays
        h_LD = np.empty((len(u_LD), len(self.lambda_D)), np.complex64)
        h_LD.real = u_LD @ arrays["B_re"].T + arrays["b_re"]
        h_LD.imag = u_LD @ arrays["B_im"].T + arrays["b_im"]
        lambda_D, carried_D = self.lambda_D.astype(np.complex64), np.zeros(len(self.lambda_D), np.complex64)
        for h_D in h_LD:
            np.multiply(lambda_D, carried_D, out=carried_D)
            h_D += carried_D
            carried_D[:] = h_D
        y_LD = h_LD.real @ arrays["C_re"].T - h_LD.imag @ arrays["C_im"].T + arrays["c"]
        return y_LD, (h_LD[-1:].copy(),)


class GRU:
    """Gated recurrent unit. State: what it last gave, [B, D]."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.arrays = arrays

    def initial(self, rows: int) -> State:
        return (np.zeros((rows, self.arrays["hidden"].shape[1]), np.float32),)

    def advance(self, u_BD: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        (h_BD,) = state
        in_r, in_z, in_n = np.split(u_BD @ self.arrays["in"].T + self.arrays["in_bias"], 3, axis=1)
        hidden_r, hidden_z, hidden_n = np.split(h_BD @ self.arrays["hidden"].T, 3, axis=1)
        new_BD = np.tanh(in_n + sigmoid(in_r + hidden_r) * (hidden_n + self.arrays["hidden_bias"]))
        h_BD = new_BD + sigmoid(in_z + hidden_z) * (h_BD - new_BD)
        return h_BD, (h_BD,)


class Attention:
    """Causal self-attention. State: keys and values of all events so far, [B, t, D] each.

    Steps need positions of its own: those that count from a row's last token change with every event.
    """

    causal: ClassVar[bool] = True

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.arrays = arrays
        self.width = len(arrays["out"])
        self.window = len(arrays["position"]) if "position" in arrays else None
        self.heads = arrays["qkv"].shape[1]
        self.qkv_ED = arrays["qkv"].reshape(-1, self.width)

    def initial(self, rows: int) -> State:
        empty = np.zeros((rows, 0, self.width), np.float32)
        return empty, empty

    def advance(self, u_BD: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        """Raises ModelError past the window."""
        rows, seen, _ = state[0].shape
        if seen == self.window:
            raise ModelError(
                f"a row of {seen + 1} tokens", expected=f"at most window = {self.window}", fix="cut it"
            )
        x_BD = u_BD + self.arrays["position"][seen]
        q_BD, *new = np.split(x_BD @ self.qkv_ED.T + self.arrays["qkv_bias"].reshape(-1), 3, axis=1)
        state = tuple(
            np.concatenate([old, part[:, None]], axis=1) for old, part in zip(state, new, strict=True)
        )
        keys, values = (part.reshape(rows, seen + 1, self.heads, -1).swapaxes(1, 2) for part in state)
        q_BHd1 = q_BD.reshape(rows, self.heads, -1, 1)
        logits_BHt = (keys @ q_BHd1)[..., 0] / math.sqrt(keys.shape[-1])
        weights_BHt = _softmax(logits_BHt)
        mixed_BD = (weights_BHt[:, :, None] @ values).reshape(rows, self.width)
        return mixed_BD @ self.arrays["out"].T + self.arrays["out_bias"], state

    def whole(self, u_BLD: np.ndarray) -> np.ndarray:
        """[B, L, D] of rows of one length."""
        rows, length, _ = u_BLD.shape
        x_BLD = u_BLD if self.window is None else u_BLD + self.arrays["position"][:length]
        qkv_BLE = x_BLD @ self.qkv_ED.T + self.arrays["qkv_bias"].reshape(-1)
        q, k, v = (
            part.reshape(rows, length, self.heads, -1).swapaxes(1, 2) for part in np.split(qkv_BLE, 3, axis=2)
        )
        logits_BHLL = q @ k.swapaxes(2, 3) / math.sqrt(q.shape[-1])
        if self.causal:
            logits_BHLL[:, :, ~np.tri(length, dtype=bool)] = -np.inf
        mixed_BLD = (_softmax(logits_BHLL) @ v).swapaxes(1, 2).reshape(rows, length, self.width)
        return mixed_BLD @ self.arrays["out"].T + self.arrays["out_bias"]


class Bidirectional(Attention):
    """Self-attention to the whole row: there is no state, and no step."""

    causal = False


class _StateSpace:
    """What Mamba and Mamba-2 share: a convolution that remembers its last K - 1 inputs."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.arrays = arrays
        self.channels = arrays["out"].shape[1]

    def _inputs(self, rows: int) -> np.ndarray:
        covered, taps = self.arrays["conv"].shape
        return np.zeros((rows, taps - 1, covered), np.float32)

    def _convolved(self, x_BE: np.ndarray, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(output, inputs to remember)."""
        seen_BKE = np.concatenate([inputs, x_BE[:, None]], axis=1)
        y_BE = np.einsum("bke,ek->be", seen_BKE, self.arrays["conv"]) + self.arrays["conv_bias"]
        return silu(y_BE), seen_BKE[:, 1:]


class Mamba(_StateSpace):
    """Selective state space. State: the last K - 1 inputs of the convolution, [B, K - 1, C], and h, [B, C, N]."""

    def initial(self, rows: int) -> State:
        return self._inputs(rows), np.zeros((rows, *self.arrays["A"].shape), np.float32)

    def advance(self, u_BD: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        arrays, (inputs, h_BCN) = self.arrays, state
        x_BC, z_BC = np.split(u_BD @ arrays["in"].T, 2, axis=1)
        x_BC, inputs = self._convolved(x_BC, inputs)
        rank, values = arrays["dt"].shape[1], arrays["A"].shape[1]
        rank_BR, B_BN, C_BN = np.split(x_BC @ arrays["select"].T, [rank, rank + values], axis=1)
        delta_BC = softplus(rank_BR @ arrays["dt"].T + arrays["dt_bias"])
        h_BCN = np.exp(delta_BC[:, :, None] * arrays["A"]) * h_BCN
        h_BCN += (delta_BC * x_BC)[:, :, None] * B_BN[:, None]
        y_BC = (h_BCN @ C_BN[:, :, None])[..., 0] + arrays["D"] * x_BC
        return (y_BC * silu(z_BC)) @ arrays["out"].T, (inputs, h_BCN)


class Mamba2(_StateSpace):
    """State space duality. State: the last K - 1 inputs of the convolution, [B, K - 1, C + 2 N], and h,
    [B, H, d, N]."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        super().__init__(arrays)
        self.heads, self.values = len(arrays["A"]), (len(arrays["conv"]) - self.channels) // 2

    def initial(self, rows: int) -> State:
        shape = (rows, self.heads, self.channels // self.heads, self.values)
        return self._inputs(rows), np.zeros(shape, np.float32)

    def advance(self, u_BD: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        arrays, (inputs, h_BHdN) = self.arrays, state
        covered = len(arrays["conv"])
        z_BC, covered_BE, dt_BH = np.split(
            u_BD @ arrays["in"].T, [self.channels, self.channels + covered], axis=1
        )
        covered_BE, inputs = self._convolved(covered_BE, inputs)
        x_BC, B_BN, C_BN = np.split(covered_BE, [self.channels, self.channels + self.values], axis=1)
        x_BHd = x_BC.reshape(len(u_BD), self.heads, -1)
        delta_BH = softplus(dt_BH + arrays["dt_bias"])
        h_BHdN = np.exp(delta_BH * arrays["A"])[:, :, None, None] * h_BHdN
        h_BHdN += (delta_BH[:, :, None] * x_BHd)[..., None] * B_BN[:, None, None]
        y_BHd = (h_BHdN @ C_BN[:, None, :, None])[..., 0] + arrays["D"][:, None] * x_BHd
        gated_BC = y_BHd.reshape(z_BC.shape) * silu(z_BC)
        scale_B1 = np.sqrt((gated_BC**2).mean(axis=1, keepdims=True) + EPS)
        return (gated_BC / scale_B1) @ arrays["out"].T, (inputs, h_BHdN)


MIXERS = {
    "lru": LRU,
    "gru": GRU,
    "attention": Attention,
    "bidirectional": Bidirectional,
    "mamba": Mamba,
    "mamba2": Mamba2,
}
"""Program name -> what mixes the steps of its network. `initial(rows)` and `advance(u_BD, state)` are the interface."""
