"""Visual tokens: what a picture shows where, for models that look at places of it (NoteLLM-2's connectors)."""

from dataclasses import replace
from functools import cached_property
from math import isqrt
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from recsys.errors import FeatureError
from recsys.features.image.extractor import ImageConfig, ImageExtractor
from recsys.features.image.vision import Vision

if TYPE_CHECKING:
    from torch import Tensor


class ImageTokensConfig(ImageConfig):
    """Which encoder, and how fine."""

    grid: Annotated[int, Field(ge=1)] = 2
    """The picture's places are averaged to a square of so many by so many."""


class ImageTokensExtractor(ImageExtractor):
    """[1 + grid * grid, F] a picture, laid out as one row: the global token (the class token, or the mean of all places
    where there is none), then the places, line by line. Last states of the encoder, before any projection."""

    Config = ImageTokensConfig
    config: ImageTokensConfig

    @cached_property
    def vision(self) -> Vision:
        """Raises FeatureError where the encoder's states lie in no square."""
        plain = super().vision
        if plain.states is None:
            raise FeatureError("has no square of places", where=self.config.encoder, fix="use kind = 'image'")
        return replace(plain, network=self._tokens, unit=False)

    @cached_property
    def facts(self) -> dict[str, Any]:
        return {"extractor": "image_tokens", "grid": self.config.grid} | self.vision.identity()

    def _tokens(self, pixels: "Tensor") -> "Tensor":
        return pooled(self.vision.states(pixels), self.config.grid).flatten(1)


def pooled(states_BNF: "Tensor", grid: int) -> "Tensor":
    """[B, 1 + grid * grid, F] of the states of P prefix tokens and a square of places, P less than what the next larger
    square would take."""
    import torch

    side = isqrt(states_BNF.shape[1])
    prefix = states_BNF.shape[1] - side * side
    if grid > side:
        raise FeatureError(f"grid = {grid}", expected=f"at most {side}, the encoder's own")
    places_BFHW = states_BNF[:, prefix:].transpose(1, 2).unflatten(2, (side, side))
    square_BNF = torch.nn.functional.adaptive_avg_pool2d(places_BFHW, grid).flatten(2).transpose(1, 2)
    whole_B1F = states_BNF[:, :1] if prefix else states_BNF.mean(1, keepdim=True)
    return torch.cat([whole_B1F, square_BNF], 1)
