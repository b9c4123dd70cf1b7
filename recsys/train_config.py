"""Settings of the training loop, apart from it so that a recipe is read without torch."""

from typing import Annotated, Literal

from pydantic import Field

from recsys.config import Config


class MonitorConfig(Config):
    """What validation measures, to keep the best epoch and to select among models."""

    metric: str = "ndcg_at_10"
    """A metric of the validation part, e.g. ndcg_at_10 or recall_at_20."""
    width: int | None = None
    """Nested width that is measured; None = the full one."""
    mask: Literal["off", "train", "history", "window"] = "history"
    """Items of the query's past that are not ranked (see the evaluation protocol)."""
    window: Annotated[int, Field(ge=1)] = 50
    """Newest history items masked under mask = "window"."""
    pools: Literal["all", "harmonic"] = "all"
    """all: the whole catalogue. harmonic: the harmonic mean of the metric among items that training never saw and among
    the others, so that neither is bought with the other."""
    queries: Annotated[int, Field(ge=1)] | None = None
    """At most so many validation queries, the same ones each time; None = all."""


class TrainConfig(Config):
    """Settings of the loop; batch size and loss belong to the model."""

    epochs: Annotated[int, Field(ge=1)] = 20
    """Passes over the training rows at most."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate of AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled decay of matrices; vectors never decay."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up."""
    schedule: Literal["constant", "cosine"] = "constant"
    """cosine falls to a tenth of the peak at the last epoch."""
    clip: Annotated[float, Field(gt=0)] = 5.0
    """Largest gradient norm."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay a step of the running average of the weights that is validated and kept; 0 = the weights themselves."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Batches whose gradients make one step."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision."""
    matmul: Literal["highest", "high", "medium"] = "highest"
    """Precision of float32 matrix products; medium takes bfloat16 products where the hardware has them."""
    patience: Annotated[int, Field(ge=1)] = 5
    """Epochs without a better validation metric before training stops."""
    checkpoint_steps: Annotated[int, Field(ge=1)] = 500
    """Steps between checkpoints within an epoch; one is always written at its end."""
    fit_parts: tuple[str, ...] = ("train",)
    """Parts of the split that fitting sees during selection."""
    monitor: MonitorConfig = MonitorConfig()
    """The validation metric."""
