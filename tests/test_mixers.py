"""The mixers of a trunk against plain loops over rows and steps, and their NumPy twins against them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recsys.errors import ModelError
from recsys.models.mixers.attention import Attention
from recsys.models.mixers.gru import GRUMixer
from recsys.models.mixers.layout import earlier, row_blocks, to_packed, to_padded
from recsys.models.mixers.mamba import CausalConv, Mamba, Mamba2
from recsys.models.mixers.scan import real_packed_scan
from recsys.models.packing import pack
from recsys.schema import Ragged
from recsys.serving import mixers as served

WIDTH = 8
LENGTHS = (5, 1, 60, 3, 1, 17, 5)
MIXERS = {
    "gru": lambda: GRUMixer(WIDTH),
    "attention": lambda: Attention(WIDTH, heads=2, window=60),
    "mamba": lambda: Mamba(WIDTH, state=6),
    "mamba2": lambda: Mamba2(WIDTH, state=6, head=4),
}
TWINS = {"gru": served.GRU, "attention": served.Attention, "mamba": served.Mamba, "mamba2": served.Mamba2}
every_mixer = pytest.mark.parametrize("name", MIXERS)


def built(name: str, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """Every weight moved off its initial value, so that no term of an equation is a zero or a one."""
    torch.manual_seed(3)
    mixer = MIXERS[name]()
    with torch.no_grad():
        for weight in mixer.parameters():
            weight += 0.3 * torch.randn_like(weight)
    return mixer.to(dtype).eval()


def planted(lengths=LENGTHS, width: int = WIDTH, dtype=torch.float64, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, width, generator=generator, dtype=torch.float64).to(dtype) for n in lengths]


def packed_of(rows: list[torch.Tensor]) -> tuple[torch.Tensor, list[int], list[torch.Tensor]]:
    """(tokens, counts, where in them the tokens of every row stand)."""
    ends = np.cumsum([len(row) for row in rows])
    packed = pack(Ragged(np.arange(ends[-1]), ends - [len(row) for row in rows], ends))
    place = torch.from_numpy(np.argsort(packed.items_P))
    tokens = torch.cat(rows)[torch.from_numpy(packed.items_P)]
    return tokens, packed.counts_T.tolist(), list(place.split([len(row) for row in rows]))


def by_row(mixer: torch.nn.Module, rows: list[torch.Tensor]) -> list[torch.Tensor]:
    tokens, counts, places = packed_of(rows)
    out = mixer(tokens, counts)
    return [out[place] for place in places]


# ---- the equations, one row and one step at a time


def slow_gru(mixer: GRUMixer, x_LD: torch.Tensor) -> list[torch.Tensor]:
    gru, h, out = mixer.gru, torch.zeros(WIDTH, dtype=x_LD.dtype), []
    W, U, b, c = (
        part.split(WIDTH) for part in (gru.weight_ih_l0, gru.weight_hh_l0, gru.bias_ih_l0, gru.bias_hh_l0)
    )
    for x in x_LD:
        r = torch.sigmoid(W[0] @ x + b[0] + U[0] @ h + c[0])
        z = torch.sigmoid(W[1] @ x + b[1] + U[1] @ h + c[1])
        n = torch.tanh(W[2] @ x + b[2] + r * (U[2] @ h + c[2]))
        h = (1 - z) * n + z * h
        out.append(h)
    return out


def slow_attention(mixer: Attention, x_LD: torch.Tensor) -> list[torch.Tensor]:
    keys, values, out = [], [], []
    size = WIDTH // mixer.heads
    for t, x in enumerate(x_LD):
        q, k, v = (mixer.qkv.weight @ (x + mixer.position[t]) + mixer.qkv.bias).split(WIDTH)
        keys.append(k)
        values.append(v)
        mixed = []
        for head in range(mixer.heads):
            part = slice(head * size, (head + 1) * size)
            weights = torch.softmax(torch.stack([q[part] @ k[part] for k in keys]) / size**0.5, dim=0)
            mixed.append(sum(w * v[part] for w, v in zip(weights, values, strict=True)))
        out.append(mixer.out.weight @ torch.cat(mixed) + mixer.out.bias)
    return out


def slow_conv(conv: CausalConv, seen: list[torch.Tensor]) -> torch.Tensor:
    """Of the newest of `seen`: the last column of the weight is its own."""
    taps = conv.weight.shape[1]
    total = conv.bias
    for lag, x in enumerate(reversed(seen[-taps:])):
        total = total + conv.weight[:, taps - 1 - lag] * x
    return F.silu(total)


def slow_mamba(mixer: Mamba, x_LD: torch.Tensor) -> list[torch.Tensor]:
    A = -torch.exp(mixer.A_log)
    h, seen, out = torch.zeros_like(A), [], []
    for u in x_LD:
        x, z = (mixer.in_proj.weight @ u).chunk(2)
        seen.append(x)
        x = slow_conv(mixer.conv, seen)
        low, B, C = (mixer.select.weight @ x).split(mixer.parts)
        delta = F.softplus(mixer.dt_weight @ low + mixer.dt_bias)
        h = torch.exp(delta[:, None] * A) * h + torch.outer(delta * x, B)
        out.append(mixer.out_proj.weight @ ((h @ C + mixer.D * x) * F.silu(z)))
    return out


def slow_mamba2(mixer: Mamba2, x_LD: torch.Tensor) -> list[torch.Tensor]:
    A, size = -torch.exp(mixer.A_log), mixer.head
    channels, values, _ = mixer.covered
    h = [torch.zeros(size, values, dtype=x_LD.dtype) for _ in A]
    seen, out = [], []
    for u in x_LD:
        z, covered, dt = (mixer.in_proj.weight @ u).split([channels, channels + 2 * values, len(A)])
        seen.append(covered)
        x, B, C = slow_conv(mixer.conv, seen).split([channels, values, values])
        y = []
        for head in range(len(A)):
            part, delta = x[head * size : (head + 1) * size], F.softplus(dt[head] + mixer.dt_bias[head])
            h[head] = torch.exp(delta * A[head]) * h[head] + torch.outer(delta * part, B)
            y.append(h[head] @ C + mixer.D[head] * part)
        gated = torch.cat(y) * F.silu(z)
        normed = gated / torch.sqrt((gated**2).mean() + 1e-5) * mixer.norm
        out.append(mixer.out_proj.weight @ normed)
    return out


SLOW = {"gru": slow_gru, "attention": slow_attention, "mamba": slow_mamba, "mamba2": slow_mamba2}


@every_mixer
def test_follows_its_equations(name):
    mixer, rows = built(name), planted()
    with torch.no_grad():
        for out, row in zip(by_row(mixer, rows), rows, strict=True):
            torch.testing.assert_close(out, torch.stack(SLOW[name](mixer, row)), rtol=1e-9, atol=1e-9)


@every_mixer
def test_gradients_follow_the_equations(name):
    """Of the inputs and of every weight."""
    mixer, rows = built(name), [row.requires_grad_() for row in planted((4, 1, 7, 4))]
    leaves = [*rows, *mixer.parameters()]
    quick = torch.autograd.grad(sum(out.sin().sum() for out in by_row(mixer, rows)), leaves)
    slow = torch.autograd.grad(sum(torch.stack(SLOW[name](mixer, row)).sin().sum() for row in rows), leaves)
    for a, b in zip(quick, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@every_mixer
def test_the_past_does_not_see_the_future(name):
    mixer, rows = built(name), planted((9, 12))
    changed = [rows[0], torch.cat([rows[1][:6], planted((6,), seed=1)[0]])]
    with torch.no_grad():
        before, after = by_row(mixer, rows), by_row(mixer, changed)
    torch.testing.assert_close(after[0], before[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(after[1][:6], before[1][:6], rtol=1e-12, atol=1e-12)
    assert not torch.isclose(after[1][6:], before[1][6:]).any()


@every_mixer
def test_a_row_does_not_depend_on_its_company(name):
    mixer, rows = built(name), planted()
    with torch.no_grad():
        for out, row in zip(by_row(mixer, rows), rows, strict=True):
            torch.testing.assert_close(out, by_row(mixer, [row])[0], rtol=1e-12, atol=1e-12)


@every_mixer
def test_no_rows_give_nothing(name):
    assert built(name)(torch.zeros(0, WIDTH, dtype=torch.float64), []).shape == (0, WIDTH)


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_the_state_stays_wide_in_mixed_precision(name):
    """Products in bfloat16 enter the recurrence as float32; the answer stays near the full one."""
    mixer = built(name, torch.float32)
    tokens, counts, _ = packed_of(planted(dtype=torch.float32))
    with torch.no_grad():
        full = mixer(tokens, counts)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = mixer(tokens, counts)
    assert (mixed.float() - full).norm() < 0.05 * full.norm()


# ---- the twins


@every_mixer
def test_stepping_in_numpy_equals_the_packed_forward(name):
    mixer = built(name, torch.float32)
    tokens, counts, _ = packed_of(planted(dtype=torch.float32))
    with torch.no_grad():
        expected = mixer(tokens, counts).split(counts)
        twin = TWINS[name]({key: value.numpy() for key, value in mixer.arrays().items()})
    state = twin.initial(counts[0])
    for u, active, y in zip(tokens.split(counts), counts, expected, strict=True):
        out, state = twin.advance(u.numpy(), tuple(part[:active] for part in state))
        assert out.dtype == np.float32 and all(part.dtype == np.float32 for part in state)
        np.testing.assert_allclose(out, y.numpy(), rtol=1e-5, atol=1e-5)


@every_mixer
def test_a_step_leaves_the_state_before_it_alone(name):
    """Else a state kept for a user would change under a query that is only tried out."""
    mixer = built(name, torch.float32)
    twin = TWINS[name]({key: value.detach().numpy() for key, value in mixer.arrays().items()})
    u = planted((3,), dtype=torch.float32)[0].numpy()
    _, state = twin.advance(u, twin.initial(3))
    kept = [part.copy() for part in state]
    first, _ = twin.advance(u, state)
    again, _ = twin.advance(u, state)
    np.testing.assert_array_equal(first, again)
    for part, before in zip(state, kept, strict=True):
        np.testing.assert_array_equal(part, before)


def test_twins_bear_extreme_inputs():
    u = np.float32([-1e4, -90.0, 0.0, 90.0, 1e4])
    with np.errstate(all="raise", under="ignore"):
        for twin, own in (
            (served.sigmoid, torch.sigmoid),
            (served.silu, F.silu),
            (served.softplus, F.softplus),
            (served.gelu, F.gelu),
            (served.relu, F.relu),
        ):
            np.testing.assert_allclose(twin(u), own(torch.from_numpy(u)).numpy(), rtol=1e-5, atol=1e-7)


def test_gelu_in_numpy():
    """Not the approximation by tanh, which is 5e-4 off."""
    x = np.linspace(-12, 12, 10_001, dtype=np.float32)
    found = served.gelu(x)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, F.gelu(torch.from_numpy(x).double()).numpy(), rtol=0, atol=2e-6)


def test_a_row_past_the_window_is_refused():
    mixer = Attention(WIDTH, window=3)
    tokens, counts, _ = packed_of(planted((4, 2), dtype=torch.float32))
    with pytest.raises(ModelError, match=r"4 tokens.*window = 3"):
        mixer(tokens, counts)
    twin = served.Attention({key: value.detach().numpy() for key, value in mixer.arrays().items()})
    state = twin.initial(1)
    for _ in range(3):
        _, state = twin.advance(np.ones((1, WIDTH), np.float32), state)
    with pytest.raises(ModelError, match=r"4 tokens.*window = 3"):
        twin.advance(np.ones((1, WIDTH), np.float32), state)


def test_heads_must_fit():
    with pytest.raises(ModelError, match="3 heads do not divide the width 8"):
        Attention(8, heads=3)
    with pytest.raises(ModelError, match="multiple of 16"):
        Mamba2(24)


def test_attention_weights_are_dropped_in_training_only():
    mixer = Attention(WIDTH, dropout=0.5)
    tokens, counts, _ = packed_of(planted((6, 6), dtype=torch.float32))
    assert not torch.equal(mixer(tokens, counts), mixer(tokens, counts))
    mixer.eval()
    assert torch.equal(mixer(tokens, counts), mixer(tokens, counts))


# ---- initial values


def test_mamba_starts_as_published():
    mamba, mamba2 = Mamba(64), Mamba2(64)
    torch.testing.assert_close(mamba.arrays()["A"], -torch.arange(1.0, 33).expand(128, 32))
    assert mamba.dt_weight.shape == (128, 4)
    A = mamba2.arrays()["A"]
    assert A.shape == (4,) and (A <= -1).all() and (A >= -16).all()
    for mixer in (mamba, mamba2):
        step = F.softplus(mixer.dt_bias)
        assert (step >= 0.00099).all() and (step <= 0.101).all() and (mixer.D == 1).all()
        for linear in (part for part in mixer.modules() if isinstance(part, torch.nn.Linear)):
            assert linear.bias is None, "a rule on the biases of Linears would reset the step's"


# ---- layout and scan


def test_padding_and_back():
    rows = planted((2, 4, 1), width=3)
    tokens, counts, _ = packed_of(rows)
    padded = to_padded(tokens, counts)
    assert padded.shape == (3, 4, 3)
    for row, out in zip(sorted(rows, key=len, reverse=True), padded, strict=True):
        assert torch.equal(out[: len(row)], row) and (out[len(row) :] == 0).all()
    assert torch.equal(to_packed(padded, counts), tokens)
    deep = tokens[:, :, None, None].expand(-1, -1, 2, 5)
    assert to_padded(deep, counts).shape == (3, 4, 3, 2, 5)
    assert torch.equal(to_packed(to_padded(deep, counts), counts), deep)


@pytest.mark.parametrize("seed", range(20))
def test_blocks_hold_every_row_once_with_little_padding(seed):
    rng = np.random.default_rng(seed)
    lengths = np.sort(rng.geometric(0.08, size=rng.integers(1, 60)))[::-1]
    counts = [int((lengths > step).sum()) for step in range(lengths[0])]
    blocks = row_blocks(counts)
    assert [first for first, _, _ in blocks] == [0, *(end for _, end, _ in blocks[:-1])]
    assert blocks[-1][1] == len(lengths)
    for first, end, steps in blocks:
        inside = lengths[first:end]
        assert len(inside) and inside.max() <= steps
        assert inside.min() > steps // 2 or steps <= 8 or steps * len(inside) <= 1.5 * inside.sum()


def test_blocks_are_cut_where_it_pays():
    assert row_blocks([3] * 40) == [(0, 3, 40)] and row_blocks([]) == [(0, 0, 0)]
    assert row_blocks([9] * 4 + [1] * 36) == [(0, 1, 40), (1, 9, 5)]  # one row of 40, eight of 4


def test_earlier_tokens():
    """Rows of 4, 3, 1: tokens 0 1 2 | 3 4 | 5 6 | 7."""
    counts, cpu = [3, 2, 2, 1], torch.device("cpu")
    assert earlier(counts, 1, cpu).tolist() == [0, 1, 3, 4, 5]
    assert earlier(counts, 2, cpu).tolist() == [0, 1, 3]
    assert earlier(counts, 3, cpu).tolist() == [0]


@pytest.mark.parametrize("trailing", [((2, 3), (2, 3)), ((2, 1, 1), (2, 3, 2)), ((1, 3), (2, 3))], ids=str)
def test_scan(trailing):
    counts = [4, 4, 2, 1, 1]
    generator = torch.Generator().manual_seed(0)
    a, v = (
        torch.rand(sum(counts), *shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in trailing
    )
    h = real_packed_scan(a, v, counts)
    for row, length in enumerate([5, 3, 2, 2]):
        state, start = torch.zeros(trailing[1], dtype=torch.float64), 0
        for count in counts[:length]:
            state = a[start + row] * state + v[start + row]
            torch.testing.assert_close(h[start + row], state)
            start += count
    assert torch.autograd.gradcheck(lambda a, v: real_packed_scan(a, v, counts), (a, v))
    assert torch.autograd.gradcheck(lambda a, v: real_packed_scan(a, v, [len(v)]), (a, v)), "one step alone"
