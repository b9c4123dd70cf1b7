"""Settings of sequence models, apart from them so that they are read on one screen."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from recsys.models.items import ItemsConfig
from recsys.models.layers import ascending
from recsys.models.objective import SOFTMAX, ObjectiveConfig
from recsys.models.trunk import ATTENTION, Share


class SequenceConfig(ItemsConfig, ObjectiveConfig):
    """Settings of a sequence model."""

    batch_size: Annotated[int, Field(ge=1)] = 32
    """Rows (windows) a step."""
    history_dropout: Share = 0.0
    """Share of a training row's events that are left out, drawn anew in every epoch: what is asked for is then at times
    not the very next item but the one after."""
    mask_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """trunk = bidirectional: share of a training row's items that are hidden and asked for, at least one."""
    width_weights: Literal["uniform", "inverse_sqrt", "inverse", "proportional"] = "uniform"
    """Weight of each width in the loss: equal, or proportional to 1/sqrt(width), to 1/width, or to the width itself,
    which leaves most to the full one."""
    distil: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of a narrow width's target that is the full width's softmax in place of the label."""
    width_temperature: bool = False
    """A learnt scale of the logits at each width."""
    repeat_bias: bool = False
    """A learnt value, by how long ago, on the scores of items that stand in the history."""

    _ascending = field_validator("widths")(ascending)

    @model_validator(mode="after")
    def _fits(self):
        if self.trunk != "lru" and len(self.widths) > 1:
            raise ValueError(f"trunk {self.trunk!r} is not nested: give one width")
        if self.trunk in ATTENTION and self.widths[-1] % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the width {self.widths[-1]}")
        if self.positions == "input" and self.trunk not in ATTENTION:
            raise ValueError(f"positions = input needs trunk = {' or '.join(ATTENTION)}, not {self.trunk}")
        if self.distil and self.loss not in SOFTMAX:
            raise ValueError(f"distil needs a softmax: loss = one of {', '.join(SOFTMAX)}, not {self.loss}")
        if self.loss == "directau" and (self.repeat_bias or self.width_temperature):
            raise ValueError("directau makes no logits: without repeat_bias and width_temperature")
        if self.trunk == "bidirectional" and self.repeat_bias:
            raise ValueError(
                "repeat_bias needs a trunk that goes forward: bidirectional hides what stood anywhere"
            )
        if not self.tables and not self.id_vectors:
            raise ValueError("neither tables nor id_vectors: nothing tells items apart")
        return self
