"""GradCache (arXiv 2101.06983): the gradients of a large contrastive batch in the memory of a small one.

Vectors are made chunk by chunk without a graph; the loss is taken on all of them; when its gradient reaches the
vectors, every chunk is encoded once more, now with a graph, and its share is passed on. Whatever else the loss depends
on, such as a learnt temperature, gets its gradient in the ordinary way.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Batch = Mapping[str, torch.Tensor]
Encode = Callable[[Batch], Sequence[torch.Tensor]]


def cached(encode: Encode, batch: Batch, chunk: int) -> tuple[torch.Tensor, ...]:
    """`encode(batch)`, with a graph that costs the memory of `chunk` rows. encode: rows to tensors of as many rows,
    each row from its own alone."""
    rows = len(next(iter(batch.values())))
    chunks = [
        {name: value[start : start + chunk] for name, value in batch.items()}
        for start in range(0, rows, chunk)
    ]
    if not torch.is_grad_enabled():
        return _joined([tuple(encode(one)) for one in chunks])
    device = next(iter(batch.values())).device
    states, made = [], []
    for one in chunks:
        states.append(_random_state(device))
        with torch.no_grad():
            made.append(tuple(encode(one)))
    replay = _Replay(encode, chunks, states, device)
    # leaves that need a gradient, so that the function below is asked for one
    leaves = tuple(value.requires_grad_() for value in _joined(made))
    return _Again.apply(replay, *leaves)


def _joined(made: Sequence[tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.cat(parts) for parts in zip(*made, strict=True))


class _Replay:
    """The second pass, under the precision and the random numbers of the first."""

    def __init__(self, encode: Encode, chunks: Sequence[Batch], states: Sequence[Any], device: torch.device):
        self.encode, self.chunks, self.states, self.device = encode, chunks, states, device
        self.mixed = torch.is_autocast_enabled(device.type)
        self.dtype = torch.get_autocast_dtype(device.type)

    def __call__(self, gradients: Sequence[torch.Tensor]) -> None:
        start = 0
        after = _random_state(self.device)
        for one, state in zip(self.chunks, self.states, strict=True):
            rows = len(next(iter(one.values())))
            _set_random_state(state, self.device)
            with torch.enable_grad(), torch.autocast(self.device.type, self.dtype, enabled=self.mixed):
                vectors = self.encode(one)
            torch.autograd.backward(tuple(vectors), [grad[start : start + rows] for grad in gradients])
            start += rows
        _set_random_state(after, self.device)


class _Again(torch.autograd.Function):
    """Passes vectors through; their gradients go to the replay."""

    @staticmethod
    def forward(ctx: Any, replay: _Replay, *vectors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.replay = replay
        return tuple(value.view_as(value) for value in vectors)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, ...]:
        ctx.replay(gradients)
        return (None, *(None for _ in gradients))


def _random_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: tuple[torch.Tensor, torch.Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
