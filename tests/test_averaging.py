"""The running average of the weights, learning rates by group, and the precision of products."""

import pytest
import torch
from test_train import SMALL, context, trained

from recsys.models.base import Model
from recsys.models.fmrlrec import FMRLRec
from recsys.train import fit, step_seed
from recsys.train_config import TrainConfig


def test_the_average_is_what_is_validated_and_kept():
    """Weights after every step, averaged by hand with the decay that warms up, are those of the kept model."""
    seen: list[dict[str, torch.Tensor]] = []

    class Watched(FMRLRec):
        def batches(self, epoch, rank=0, world=1):
            for batch in super().batches(epoch, rank, world):
                yield batch
                seen.append({name: value.detach().clone() for name, value in self.module.named_parameters()})

    validated = []
    model = Watched(SMALL)

    def validate(one: Model) -> float:
        if not validated:
            seen.clear()  # the look before the first step has drawn two batches
        validated.append({name: value.detach().clone() for name, value in one.module.named_parameters()})
        return float(len(validated))

    ctx = context(validate=validate)
    torch.manual_seed(step_seed(ctx.seed, 0, 0, 0))
    start = FMRLRec(SMALL)
    start.setup(ctx)
    first = dict(start.module.named_parameters())
    fit(model, ctx, TrainConfig(epochs=3, lr=1e-2, ema=0.8))
    for name, own in model.module.named_parameters():
        average = first[name].detach().double()
        for steps, weights in enumerate(seen):
            decay = min(0.8, (1 + steps) / (10 + steps))
            average = decay * average + (1 - decay) * weights[name].double()
        torch.testing.assert_close(own.double(), average, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(validated[-1][name], own)
    assert not torch.equal(seen[-1]["trunk.start"], model.module.trunk.start)


def test_a_group_scales_its_learning_rate():
    """The repeat bias, alone, learns at 30 times the rate; Adam's first step is as long as the rate."""
    config = SMALL.model_copy(update={"repeat_bias": True})
    model = FMRLRec(config)
    model.setup(context())
    steps = model.steps_per_epoch()
    trained_model = FMRLRec(config.model_copy(update={"batch_size": config.batch_size * steps}))
    fit(trained_model, context(), TrainConfig(epochs=1, lr=1e-3))
    moved = trained_model.module.repeat.detach().abs()
    assert moved.max().item() == pytest.approx(0.03, rel=1e-2)
    groups = model.param_groups()
    assert [group.get("lr_scale", 1.0) for group in groups] == [1.0, 1.0, 30.0]
    assert sum(len(group["params"]) for group in groups) == len(list(model.module.parameters()))


def test_matrix_precision_is_put_back():
    seen = []

    def validate(model: Model) -> float:
        seen.append(torch.get_float32_matmul_precision())
        return 0.5

    trained(context(validate=validate), TrainConfig(epochs=1, matmul="medium"))
    assert set(seen) == {"medium"} and torch.get_float32_matmul_precision() == "highest"
