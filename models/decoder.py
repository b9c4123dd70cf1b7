"""What is asked of any decoder of transformers, whatever its parts are called."""

from typing import Any

from torch import nn

from recsys.errors import ModelError


def layers_of(decoder: Any) -> nn.ModuleList:
    """The blocks: the one ModuleList as long as the configuration says. Raises ModelError where there is none."""
    wanted = decoder.config.num_hidden_layers
    for module in decoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            return module
    raise ModelError(
        f"{type(decoder).__name__} has no list of {wanted} layers", expected="a decoder such as Llama or Qwen"
    )
