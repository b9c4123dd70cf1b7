"""Settings of sequence models, apart from them so that they are read on one screen."""

import itertools
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from recsys.models.items import ItemsConfig
from recsys.models.trunk import Share

Loss = Literal["full", "sampled", "in_batch", "gbce"]


class SequenceConfig(ItemsConfig):
    """Settings of a sequence model."""

    batch_size: Annotated[int, Field(ge=1)] = 32
    """Rows (windows) a step."""
    history_dropout: Share = 0.0
    """Share of a training row's events that are left out, drawn anew in every epoch: what is asked for is then at times
    not the very next item but the one after."""
    loss: Loss = "full"
    """Softmax over the whole catalogue, over the labels of the step and drawn items, over the labels alone; or the
    binary cross-entropy of gSASRec over drawn items."""
    negatives: Annotated[int, Field(ge=1)] = 1024
    """sampled, gbce: items drawn a step, the same for all its positions."""
    negative_power: Annotated[float, Field(ge=0)] = 0.0
    """sampled, gbce: items are drawn in proportion to (training count)^power; 0 = uniformly."""
    log_q: bool = True
    """sampled, in_batch: correct for how likely each item was to be there."""
    gbce_t: Annotated[float, Field(ge=0, le=1)] = 0.75
    """gbce: calibration; 0 = plain binary cross-entropy, 1 = probabilities as of the full softmax."""
    width_weights: Literal["uniform", "inverse_sqrt", "inverse"] = "uniform"
    """Weight of each width in the loss: equal, or proportional to 1/sqrt(width), or to 1/width."""
    distil: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of a narrow width's target that is the full width's softmax in place of the label."""
    width_temperature: bool = False
    """A learnt scale of the logits at each width."""
    repeat_bias: bool = False
    """A learnt value, by how long ago, on the scores of items that stand in the history."""

    @field_validator("widths")
    @classmethod
    def _ascending(cls, widths):
        if not widths or widths[0] < 2 or any(b <= a for a, b in itertools.pairwise(widths)):
            raise ValueError("ascending widths from 2 on")
        return widths

    @model_validator(mode="after")
    def _fits(self):
        if self.trunk != "lru" and len(self.widths) > 1:
            raise ValueError(f"trunk {self.trunk!r} is not nested: give one width")
        if self.trunk == "attention" and self.widths[-1] % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the width {self.widths[-1]}")
        if self.distil and self.loss == "gbce":
            raise ValueError("distil needs a softmax: choose another loss than gbce")
        if not self.tables and not self.id_vectors:
            raise ValueError("neither tables nor id_vectors: nothing tells items apart")
        return self
