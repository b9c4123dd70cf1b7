"""The packed recurrence against a slow loop over complex numbers, and the packed layout itself."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.models.packing import pack, thinned, windows
from recsys.models.recurrence import chunked_scan, packed_scan
from recsys.schema import Ragged

ROWS = st.lists(st.lists(st.integers(0, 50), max_size=7), min_size=1, max_size=6)


def slow_scan(values: list[np.ndarray], lam: np.ndarray) -> list[np.ndarray]:
    """h_t = lambda h_(t-1) + v_t of every row, one number after the other."""
    out = []
    for row in values:
        state, states = np.zeros(len(lam), complex), []
        for v in row:
            state = lam * state + v
            states.append(state)
        out.append(np.array(states).reshape(-1, len(lam)))
    return out


def to_packed(
    values: list[np.ndarray], lengths: list[int]
) -> tuple[np.ndarray, list[int], list[tuple[int, int]]]:
    """Rows laid out step by step by hand: (tokens, counts, (row, step) of every token)."""
    order = sorted(range(len(values)), key=lambda row: -lengths[row])
    places = [(row, step) for step in range(max(lengths)) for row in order if lengths[row] > step]
    counts = [sum(length > step for length in lengths) for step in range(max(lengths))]
    return np.array([values[row][step] for row, step in places]), counts, places


def planted(lengths: list[int], width: int = 3, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Inputs of every row, and a transition within the unit circle."""
    rng = np.random.default_rng(seed)
    values = [rng.standard_normal((n, width)) + 1j * rng.standard_normal((n, width)) for n in lengths]
    return values, rng.uniform(0.3, 0.99, width) * np.exp(1j * rng.uniform(0, 2 * np.pi, width))


def real_pair(values: np.ndarray) -> list[torch.Tensor]:
    """Real and imaginary part, float64, with gradients."""
    return [torch.tensor(part.copy(), requires_grad=True) for part in (values.real, values.imag)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 99))
def test_the_scan_equals_the_slow_loop(lengths, seed):
    values, lam = planted(lengths, seed=seed)
    tokens, counts, places = to_packed(values, lengths)
    h_re, h_im = packed_scan(*real_pair(tokens), *real_pair(lam), counts)
    slow = slow_scan(values, lam)
    expected = np.array([slow[row][step] for row, step in places])
    np.testing.assert_allclose(h_re.detach().numpy(), expected.real, atol=1e-12)
    np.testing.assert_allclose(h_im.detach().numpy(), expected.imag, atol=1e-12)


@pytest.mark.parametrize("lengths", [[1], [4], [3, 1], [2, 2, 2], [5, 3, 3, 1]])
def test_gradients_equal_finite_differences(lengths):
    values, lam = planted(lengths, width=2)
    tokens, counts, _ = to_packed(values, lengths)
    inputs = (*real_pair(tokens), *real_pair(lam))
    assert torch.autograd.gradcheck(lambda *tensors: packed_scan(*tensors, counts), inputs)


def test_gradients_equal_those_of_the_slow_loop():
    """Autograd through complex numbers, step by step, over rows of unequal length."""
    lengths = [6, 2, 4]
    values, lam = planted(lengths)
    tokens, counts, places = to_packed(values, lengths)
    inputs = (*real_pair(tokens), *real_pair(lam))
    weights = torch.tensor(np.random.default_rng(1).standard_normal((2, *tokens.shape)))
    packed = packed_scan(*inputs, counts)
    (weights[0] * packed[0] + weights[1] * packed[1]).sum().backward()
    slow = (*real_pair(tokens), *real_pair(lam))
    v_PD, lam_D = torch.complex(*slow[:2]), torch.complex(*slow[2:])
    total = torch.zeros(())
    states: dict[int, torch.Tensor] = {}
    for token, (row, _) in enumerate(places):
        states[row] = lam_D * states.get(row, torch.zeros_like(lam_D)) + v_PD[token]
        total = total + (weights[0, token] * states[row].real + weights[1, token] * states[row].imag).sum()
    total.backward()
    for ours, theirs in zip(inputs, slow, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("lengths", [[1], [16], [17, 16, 3], [40, 33, 33, 32, 1, 1]])
def test_the_chunked_scan_equals_the_loop(lengths):
    """States and gradients, rows that end within a chunk, at its end and after it."""
    values, lam = planted(lengths)
    tokens, counts, _ = to_packed(values, lengths)
    weights = torch.tensor(np.random.default_rng(1).standard_normal((2, *tokens.shape)))
    found = {}
    for scan in (packed_scan, chunked_scan):
        inputs = (*real_pair(tokens), *real_pair(lam))
        states = scan(*inputs, counts)
        (weights[0] * states[0] + weights[1] * states[1]).sum().backward()
        found[scan] = (*states, *(leaf.grad for leaf in inputs))
    for loop, chunked in zip(found[packed_scan], found[chunked_scan], strict=True):
        torch.testing.assert_close(chunked, loop)


def test_inputs_stay_as_they_were():
    values, lam = planted([3, 2])
    tokens, counts, _ = to_packed(values, [3, 2])
    inputs = (*real_pair(tokens), *real_pair(lam))
    before = [tensor.detach().clone() for tensor in inputs]
    packed_scan(*inputs, counts)
    assert all(torch.equal(old, new) for old, new in zip(before, inputs, strict=True))


@settings(max_examples=100, deadline=None)
@given(ROWS)
def test_packing_keeps_every_row(rows):
    packed = pack(Ragged.of(rows))
    lengths = [len(rows[row]) for row in packed.order_B]
    assert lengths == sorted(lengths, reverse=True)
    assert sorted(packed.order_B.tolist()) == list(range(len(rows)))
    assert packed.counts_T.tolist() == [sum(n > step for n in lengths) for step in range(max(lengths))]
    found, start = [[] for _ in rows], 0
    for count in packed.counts_T.tolist():
        for place in range(count):
            found[packed.order_B[place]].append(int(packed.items_P[start + place]))
        start += count
    assert found == rows and start == len(packed.items_P)
    for place, row in enumerate(packed.order_B):
        last = packed.last_B[place]
        assert (last == -1) if not rows[row] else (packed.items_P[last] == rows[row][-1])


@settings(max_examples=100, deadline=None)
@given(ROWS, st.integers(1, 8))
def test_windows_keep_every_entry_once_and_the_newest_together(rows, length):
    found = windows(Ragged.of(rows), length)
    pieces = [found[row].tolist() for row in range(len(found))]
    assert all(1 <= len(piece) <= length for piece in pieces)
    place = 0
    for row in (row for row in rows if row):
        own = []
        while sum(map(len, own)) < len(row):
            own.append(pieces[place])
            place += 1
        assert [item for piece in reversed(own) for item in piece] == row
        assert own[0] == row[-length:]  # newest first, and full where there is enough
        assert all(len(piece) == length for piece in own[:-1])
    assert place == len(pieces)


@settings(max_examples=50, deadline=None)
@given(ROWS, st.floats(0, 0.9), st.integers(0, 9))
def test_thinned_rows_are_subsequences_that_end_as_they_did(rows, share, seed):
    found = thinned(Ragged.of(rows), share, np.random.default_rng(seed))
    assert len(found) == len(rows)
    for place, row in enumerate(rows):
        kept, rest = found[place].tolist(), iter(row)
        assert all(item in rest for item in kept)  # in the same order
        assert kept[-1:] == row[-1:]


def test_thinning_leaves_out_the_share():
    found = thinned(Ragged.of([list(range(10_001))]), 0.3, np.random.default_rng(0))
    assert abs(len(found[0]) - 7_000) < 200
