"""A running average of weights, which is what gets validated and kept."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Average:
    """Exponential moving average of a module's parameters: average <- decay * average + (1 - decay) * weights.

    Early on the decay is smaller, (1 + steps) / (10 + steps), so that the initial weights are soon forgotten. With a
    decay of 0 there is nothing to keep: `values` is empty, and the module's own weights count.
    """

    def __init__(self, module: torch.nn.Module, decay: float):
        self.weights = [value for value in module.parameters() if value.requires_grad] if decay else []
        self.values = [value.detach().clone() for value in self.weights]
        self.decay = decay

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """steps: optimiser steps before this one."""
        if self.values:
            torch._foreach_lerp_(self.values, self.weights, 1 - min(self.decay, (1 + steps) / (10 + steps)))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the module holds the average; its own weights again afterwards."""
        own = [value.detach().clone() for value in self.weights]
        self._put(self.values)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: list[torch.Tensor]) -> None:
        for weight, value in zip(self.weights, values, strict=True):
            weight.copy_(value)
