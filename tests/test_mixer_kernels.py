"""Mamba on mamba_ssm's kernels, played by stand-ins that follow what it documents: slow loops over the steps."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from recsys.models.mixers import kernels
from recsys.models.mixers.mamba import Mamba, Mamba2


def selective_scan_fn(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False
):
    """u, delta: (B D L), A: (D N), B, C: (B N L), D, delta_bias: (D); gives (B D L)."""
    batch, dim, length = u.shape
    states = A.shape[1]
    assert delta.shape == u.shape and A.shape == (dim, states) and D.shape == delta_bias.shape == (dim,)
    assert B.shape == C.shape == (batch, states, length)
    assert z is None and not return_last_state
    delta = delta + delta_bias[:, None]
    delta = F.softplus(delta) if delta_softplus else delta
    x, ys = torch.zeros(batch, dim, states, dtype=u.dtype), []
    for t in range(length):
        x = torch.exp(delta[:, :, t, None] * A) * x
        x = x + (delta[:, :, t] * u[:, :, t])[:, :, None] * B[:, None, :, t]
        ys.append((x * C[:, None, :, t]).sum(-1))
    return torch.stack(ys, dim=2) + u * D[:, None]


def mamba_chunk_scan_combined(
    x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, initial_states=None, seq_idx=None,
    cu_seqlens=None, dt_softplus=False,
):  # fmt: skip
    """x: (batch, length, heads, headdim), dt: (batch, length, heads), A, D, dt_bias: (heads), B, C: (batch, length,
    groups, state); gives the shape of x."""
    batch, length, heads, size = x.shape
    assert dt.shape == (batch, length, heads) and A.shape == D.shape == dt_bias.shape == (heads,)
    assert B.shape == C.shape and B.shape[:3] == (batch, length, 1)
    assert chunk_size >= 16 and chunk_size & (chunk_size - 1) == 0
    assert z is None and initial_states is None and seq_idx is None and cu_seqlens is None
    dt = dt + dt_bias
    dt = F.softplus(dt) if dt_softplus else dt
    h, ys = torch.zeros(batch, heads, size, B.shape[-1], dtype=x.dtype), []
    for t in range(length):
        h = torch.exp(dt[:, t] * A)[:, :, None, None] * h
        h = h + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None]
        ys.append((h * C[:, t, :, None]).sum(-1) + D[:, None] * x[:, t])
    return torch.stack(ys, dim=1)


either_mamba = pytest.mark.parametrize(
    ("make", "chooser", "stand_in"),
    [
        (lambda: Mamba(8, state=6), "selective_scan_kernel", selective_scan_fn),
        (lambda: Mamba2(8, state=6, head=4), "ssd_kernel", mamba_chunk_scan_combined),
    ],
    ids=["mamba", "mamba2"],
)


@either_mamba
def test_the_kernel_path_gives_the_same(make, chooser, stand_in, monkeypatch):
    """Outputs and gradients, on rows of 9, 5, 3 and 1."""
    torch.manual_seed(0)
    mixer, counts = make().double(), [4, 3, 3, 2, 2, 1, 1, 1, 1]
    with torch.no_grad():
        for weight in mixer.parameters():
            weight += 0.3 * torch.randn_like(weight)
    tokens = torch.randn(sum(counts), 8, dtype=torch.float64)
    own = mixer(tokens, counts)
    own_grads = torch.autograd.grad(own.sin().sum(), list(mixer.parameters()))
    calls = []
    monkeypatch.setattr(
        kernels, chooser, lambda x: lambda *args, **named: calls.append(1) or stand_in(*args, **named)
    )
    with_kernel = mixer(tokens, counts)
    assert calls
    torch.testing.assert_close(with_kernel, own, rtol=1e-9, atol=1e-9)
    grads = torch.autograd.grad(with_kernel.sin().sum(), list(mixer.parameters()))
    for a, b in zip(grads, own_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@either_mamba
def test_a_kernel_gets_float32_in_mixed_precision(make, chooser, stand_in, monkeypatch):
    """A recurrence in half precision forgets; and the compiled kernel takes no mixture of types."""
    given = []

    def recorded(*args, **named):
        given.extend(value.dtype for value in (*args, *named.values()) if isinstance(value, torch.Tensor))
        return stand_in(*args, **named)

    monkeypatch.setattr(kernels, chooser, lambda x: recorded)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        make()(torch.randn(3, 8), [2, 1])
    assert given == [torch.float32] * 7


@pytest.fixture
def fake_mamba_ssm(monkeypatch):
    """mamba_ssm as far as we import it, compiled."""
    scan, ssd = ModuleType("scan"), ModuleType("ssd")
    scan.selective_scan_fn, scan.selective_scan_cuda = selective_scan_fn, object()
    ssd.mamba_chunk_scan_combined = mamba_chunk_scan_combined
    ops = ModuleType("mamba_ssm.ops")
    ops.selective_scan_interface = scan
    for name, module in {
        "mamba_ssm": ModuleType("mamba_ssm"),
        "mamba_ssm.ops": ops,
        "mamba_ssm.ops.selective_scan_interface": scan,
        "mamba_ssm.ops.triton": ModuleType("mamba_ssm.ops.triton"),
        "mamba_ssm.ops.triton.ssd_combined": ssd,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    finders = (kernels._selective_scan_fn, kernels._mamba_chunk_scan_combined)
    for finder in finders:
        finder.cache_clear()
    yield scan
    for finder in finders:
        finder.cache_clear()


ON_GPU, ON_CPU = SimpleNamespace(is_cuda=True), SimpleNamespace(is_cuda=False)


def test_kernels_are_used_on_a_gpu_only(fake_mamba_ssm):
    assert kernels.selective_scan_kernel(ON_GPU) is selective_scan_fn
    assert kernels.ssd_kernel(ON_GPU) is mamba_chunk_scan_combined
    assert kernels.selective_scan_kernel(ON_CPU) is None and kernels.ssd_kernel(ON_CPU) is None


def test_mamba_ssm_without_its_cuda_part_is_not_used(fake_mamba_ssm):
    fake_mamba_ssm.selective_scan_cuda = None
    assert kernels.selective_scan_kernel(ON_GPU) is None


def test_no_mamba_ssm_is_no_error(fake_mamba_ssm, monkeypatch):
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton.ssd_combined"):
        monkeypatch.setitem(sys.modules, name, None)
    assert kernels.selective_scan_kernel(ON_GPU) is None and kernels.ssd_kernel(ON_GPU) is None
