"""The loop: resuming, stopping, the schedule, what it refuses, accumulation and ranks."""

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.cases import state_bytes
from contracts.worlds import world
from torch import nn

from recsys.config import Config
from recsys.errors import ModelError, TrainingError
from recsys.models.base import FitContext, LoopedModel, Model
from recsys.models.baselines.popularity import Popularity, PopularityConfig
from recsys.models.fmrlrec import FMRLRec, FMRLRecConfig
from recsys.train import Progress, fit, learning_rate, step_seed
from recsys.train_config import TrainConfig

SMALL = FMRLRecConfig(widths=(4, 8), blocks=1, batch_size=32, tables=("text",), window=20)


class Stopped(Exception):
    """A run that is cut off."""


def context(folder: Path | None = None, validate=None) -> FitContext:
    return replace(world("content").context(seed=3), folder=folder, validate=validate)


def trained(ctx: FitContext, config: TrainConfig, **hooks: Any) -> tuple[FMRLRec, Progress]:
    model = FMRLRec(SMALL)
    return model, fit(model, ctx, config, **hooks)


def quick(model: Model) -> float:
    """A validation that depends on the weights, rises and falls."""
    return float(np.sin(1e4 * np.abs(model.item_table()[0]).sum()))


def without_seconds(progress: Progress) -> tuple:
    history = [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in progress.history]
    return progress.epoch, progress.best_epoch, progress.best_metric, history


class Breaks(FMRLRec):
    """Cut off before batch number `after`, counted over all epochs of this process."""

    def __init__(self, config: FMRLRecConfig, after: int):
        super().__init__(config)
        self.left = after

    def batches(self, epoch: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, torch.Tensor]]:
        for batch in super().batches(epoch, rank, world):
            if self.left == 0:
                raise Stopped
            self.left -= 1
            yield batch


# five steps an epoch, a checkpoint after every second and at the end of each epoch; two batches go to the sanity
# check before the first step
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("breaks", [(4,), (6,), (7,), (9,), (5, 4, 6), (13,)])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, breaks, accumulate):
    config = TrainConfig(
        epochs=4, lr=1e-2, checkpoint_steps=2, accumulate=accumulate, schedule="cosine", warmup=3, ema=0.9
    )
    whole, progress = trained(context(tmp_path / "whole", quick), config)
    assert whole.steps_per_epoch() == 5
    ctx = context(tmp_path / "broken", quick)
    for after in breaks:
        with pytest.raises(Stopped):
            fit(Breaks(SMALL, after), ctx, config)
    resumed, again = trained(ctx, config)
    assert state_bytes(resumed) == state_bytes(whole)
    assert without_seconds(again) == without_seconds(progress)


def test_a_resumed_run_goes_on_where_it_stood(tmp_path):
    """Not from the start: the steps that were done are not done again."""
    config, steps = TrainConfig(epochs=2, checkpoint_steps=2), []

    class Counts(FMRLRec):
        def setup(self, ctx: FitContext) -> None:
            super().setup(ctx)
            self.module.register_forward_pre_hook(lambda module, args: steps.append(module.training))

    with pytest.raises(Stopped):
        fit(Breaks(SMALL, 4), context(tmp_path), config)
    assert json.loads((tmp_path / "checkpoint" / "progress.json").read_text())["progress"]["step"] == 4
    fit(Counts(SMALL), context(tmp_path), config)
    assert sum(steps) == 2 * 5 - 4


@pytest.mark.parametrize("hook", ["log", "validate"])
def test_an_end_of_epoch_that_breaks_off_resumes_too(tmp_path, hook):
    config = TrainConfig(epochs=4, lr=1e-2, checkpoint_steps=3)
    whole, progress = trained(context(tmp_path / "whole", quick), config)
    calls = itertools.count()

    def breaks(*arguments) -> float:
        if next(calls) == 2:
            raise Stopped
        return quick(arguments[0]) if hook == "validate" else None

    ctx = context(tmp_path / "broken", breaks if hook == "validate" else quick)
    with pytest.raises(Stopped):
        trained(ctx, config, **({"log": breaks} if hook == "log" else {}))
    resumed, again = trained(replace(ctx, validate=quick), config)
    assert state_bytes(resumed) == state_bytes(whole)
    assert without_seconds(again) == without_seconds(progress)


def test_a_checkpoint_holds_no_pickle(tmp_path):
    trained(context(tmp_path, quick), TrainConfig(epochs=1))
    names = {path.name for path in (tmp_path / "checkpoint").iterdir()}
    files = ("weights", "average", "optimizer", "best")
    assert names == {*(f"{name}.safetensors" for name in files), "progress.json"}
    stored = json.loads((tmp_path / "checkpoint" / "progress.json").read_text())
    assert stored["environment"] == {"torch": torch.__version__, "threads": torch.get_num_threads()}


@pytest.mark.parametrize(
    ("metrics", "patience", "best", "epochs"),
    [
        ([1, 3, 2, 2.5, 9], 2, 1, 4),  # two epochs no better than the second: stop before the fifth
        ([1, 3, 2, 4, 1], 2, 3, 5),
        ([5, 5, 5, 5, 5], 3, 0, 4),  # as good is not better
        ([1, 2, 3, 4, 5], 1, 4, 5),
    ],
)
def test_early_stopping_keeps_the_best_epoch(metrics, patience, best, epochs):
    states, values = [], iter([0.0, *metrics])  # the first value goes to the sanity check

    def validate(model: FMRLRec) -> float:
        states.append(state_bytes(model))
        return float(next(values))

    told: list[int] = []
    model, progress = trained(
        context(validate=validate), TrainConfig(epochs=5, patience=patience, lr=1e-2),
        log=lambda metrics, epoch: told.append(epoch),
    )  # fmt: skip
    assert (progress.best_epoch, progress.best_metric, progress.epoch) == (best, metrics[best], epochs)
    assert told == list(range(epochs))
    assert state_bytes(model) == states[1 + best]
    assert len({str(state) for state in states}) == len(states)  # no two epochs could be taken for each other


def test_without_validation_the_last_epoch_stays():
    states = []
    model, progress = trained(
        context(), TrainConfig(epochs=3), log=lambda metrics, epoch: states.append(metrics["loss"])
    )
    assert progress.best_epoch == 2 and progress.best_metric is None and len(states) == 3
    longer, _ = trained(context(), TrainConfig(epochs=4))
    assert state_bytes(longer) != state_bytes(model)


def test_the_schedule_by_hand():
    config = TrainConfig(lr=1.0, warmup=4)
    assert [learning_rate(config, step, 12) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    cosine = TrainConfig(lr=1.0, warmup=4, schedule="cosine")
    # from the peak at step 4 to a tenth of it at step 12; half way between the two at step 8
    assert [learning_rate(cosine, step, 12) for step in (3, 4, 8, 12, 99)] == pytest.approx(
        [1.0, 1.0, 0.55, 0.1, 0.1]
    )
    quarter = 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2
    assert learning_rate(cosine, 6, 12) == pytest.approx(quarter)


def test_the_schedule_runs_on_from_epoch_to_epoch(monkeypatch):
    asked = []
    monkeypatch.setattr("recsys.train.learning_rate", lambda config, *at: asked.append(at) or 0.1)
    line(epochs=3)
    assert list(dict.fromkeys(asked)) == [
        (step, 12) for step in range(12)
    ]  # three epochs of four steps, all groups alike


def test_step_seeds_differ():
    seeds = {step_seed(*numbers) for numbers in itertools.product(range(4), repeat=4)}
    assert len(seeds) == 4**4
    assert step_seed(1, 2, 3, 4) == step_seed(1, 2, 3, 4)


class LineConfig(Config):
    """Settings of Line."""

    batch_size: int = 4
    """Rows a step."""
    poison: int = -1
    """Step of the second epoch at which something goes wrong."""
    where: str = "loss"
    """What goes wrong: loss or gradient."""


class LineModule(nn.Module):
    """(w x - y)^2, its mean over the batch."""

    def __init__(self, config: LineConfig):
        super().__init__()
        self.weight, self.bias, self.config = (
            nn.Parameter(torch.ones(1, 1)),
            nn.Parameter(torch.zeros(1)),
            config,
        )

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        error = (batch["x_B"] * self.weight[0] + self.bias - batch["y_B"]) ** 2
        loss = error.mean()
        if batch["poisoned"].item():
            # the square root has no slope at zero: a finite loss with an infinite gradient
            loss = loss * torch.inf if self.config.where == "loss" else loss + (self.bias * 0).sqrt().sum()
        return loss, {"squared": float(error.detach().mean())}


class Line(LoopedModel[LineConfig]):
    """The smallest looped model: a line through points, in the order they come."""

    Config = LineConfig

    def setup(self, ctx: FitContext) -> None:
        self.module = LineModule(self.config)

    def steps_per_epoch(self, world: int = 1) -> int:
        return 16 // self.config.batch_size

    def batches(self, epoch: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, torch.Tensor]]:
        x_B = torch.linspace(-1, 2, 16).split(self.config.batch_size)
        for step, x in enumerate(x_B):
            poisoned = torch.tensor(epoch == 1 and step == self.config.poison)
            yield {"x_B": x, "y_B": 3 * x - 1, "poisoned": poisoned}

    def score(self, queries, candidates=None, width=None):
        raise NotImplementedError

    def state(self) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in self.module.state_dict().items()}

    @classmethod
    def from_state(cls, config, state):
        raise NotImplementedError

    def serving_form(self):
        raise NotImplementedError


def line(folder: Path | None = None, config: LineConfig | None = None, **train: Any) -> tuple[Line, Progress]:
    model = Line(config or LineConfig())
    ctx = replace(world("content").context(), folder=folder)
    return model, fit(model, ctx, TrainConfig(**{"epochs": 3, "lr": 0.1} | train))


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_stops_training(tmp_path, where):
    with pytest.raises(TrainingError) as error:
        line(tmp_path, LineConfig(poison=2, where=where), checkpoint_steps=1)
    message = str(error.value)
    assert where in message and "epoch 2, step 2" in message and "squared" in message and "\n" not in message
    # the last good checkpoint is whole, and nothing half-written lies beside it
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    stored = json.loads((tmp_path / "checkpoint" / "progress.json").read_text())["progress"]
    assert (stored["epoch"], stored["step"]) == (1, 2)


def test_a_broken_validation_shows_before_the_first_step():
    def validate(model: Model) -> float:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trained(context(validate=validate), TrainConfig(), log=lambda *_: pytest.fail("an epoch was trained"))


def test_two_batches_accumulated_are_one_of_twice_the_size():
    halves, _ = line(config=LineConfig(batch_size=4), accumulate=2)
    wholes, _ = line(config=LineConfig(batch_size=8))
    for name, value in wholes.state().items():
        np.testing.assert_allclose(halves.state()[name], value, rtol=1e-6)
    apart, _ = line(config=LineConfig(batch_size=4))
    assert state_bytes(apart) != state_bytes(halves)


def test_losses_and_parts_are_means_over_the_epoch():
    _, progress = line(lr=1e-9)  # next to no steps: every epoch measures the same line
    x = torch.linspace(-1, 2, 16)
    expected = float(((x - (3 * x - 1)) ** 2).mean())
    for epoch in progress.history:
        assert epoch["loss"] == pytest.approx(expected, rel=1e-5) == epoch["squared"]


def test_matrices_decay_and_vectors_do_not():
    groups = trained(context(), TrainConfig(epochs=1))[0].param_groups()
    assert all(parameter.ndim >= 2 for parameter in groups[0]["params"]) and "weight_decay" not in groups[0]
    assert all(parameter.ndim < 2 for parameter in groups[1]["params"]) and groups[1]["weight_decay"] == 0
    # twelve steps of decay alone, lr x decay each: the gradient is clipped to next to nothing
    model, _ = line(clip=1e-30, weight_decay=1.0, lr=0.01)
    found = model.state()
    assert found["weight"].item() < 1 - 0.9 * (1 - (1 - 0.01) ** 12)


def test_closed_form_models_are_fitted_at_once():
    model = Popularity(PopularityConfig())
    assert fit(model, context(), TrainConfig()) == Progress()
    assert model.scores_SI.sum() == len(world("content").split.fit_log())
    with pytest.raises(ModelError, match="trained by the loop"):
        FMRLRec(SMALL).fit(context())


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_take_equal_steps_and_cover_all_rows(ranks):
    model = FMRLRec(SMALL.model_copy(update={"batch_size": 7}))
    model.setup(context())
    wanted = sorted(map(tuple, (model.rows[row] for row in range(len(model.rows)))))
    batches = [list(model.batches(5, rank, ranks)) for rank in range(ranks)]
    assert {len(found) for found in batches} == {model.steps_per_epoch(ranks)}
    labels = sorted(tuple(row) for found in batches for batch in found for row in unpacked(batch))
    # every row is there; where the last step is filled up, some stand twice
    assert set(labels) == set(wanted)
    filled = model.steps_per_epoch(ranks) * ranks * 7 if ranks > 1 else len(wanted)
    assert len(labels) == filled
    again = [list(model.batches(5, rank, ranks)) for rank in range(ranks)]
    for ours, theirs in zip(itertools.chain(*batches), itertools.chain(*again), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def unpacked(batch: dict[str, torch.Tensor]) -> list[list[int]]:
    """The rows of a packed batch."""
    rows: list[list[int]] = [[] for _ in range(int(batch["counts_T"][0]))]
    start = 0
    for count in batch["counts_T"].tolist():
        for row in range(count):
            rows[row].append(int(batch["labels_P"][start + row]))
        start += count
    return rows
