"""The one training loop, for every model that learns by gradient steps.

All randomness of a step derives from (seed, epoch, step, rank), so a checkpoint needs no generator state and a
resumed run equals an uninterrupted one bit for bit at the same world size, threads and versions.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from recsys.allocator import keep_freed_memory
from recsys.averaging import Average
from recsys.checkpoint import Checkpoint
from recsys.errors import TrainingError
from recsys.models.base import Learner, LoopContext, Model
from recsys.progress import track
from recsys.train_config import TrainConfig


@dataclass
class Progress:
    """Where training stands: what a checkpoint keeps beside weights and optimiser.

    sums: loss and its parts, summed over the steps done in the running epoch. history: one entry per finished epoch.
    """

    epoch: int = 0
    step: int = 0
    best_epoch: int = -1
    best_metric: float | None = None
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)

    def stale(self) -> int:
        return self.epoch - 1 - self.best_epoch


def step_seed(seed: int, epoch: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, step, rank]).generate_state(1)[0])


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """A function of the step alone."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    done = (step - config.warmup) / max(total - config.warmup, 1)
    return config.lr * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def fit(
    model: Model | Learner,
    ctx: LoopContext,
    config: TrainConfig,
    log: Callable[[dict[str, float], int], None] = lambda metrics, epoch: None,
) -> Progress:
    """Fit `model` on `ctx.train`; closed-form models at once, looped ones epoch by epoch.

    `log(metrics, epoch)` is called after each epoch. The model ends in the state of its best validation
    epoch, or of the last one where `ctx.validate` is None. Raises TrainingError for a loss that is not finite.
    """
    if not isinstance(model, Learner):
        model.fit(ctx)
        return Progress()
    keep_freed_memory()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(config.matmul)
    try:
        return _loop(model, ctx, config, log)
    finally:
        torch.set_float32_matmul_precision(before)


def _loop(
    model: Learner, ctx: LoopContext, config: TrainConfig, log: Callable[[dict[str, float], int], None]
) -> Progress:
    AcceleratorState._reset_state()  # or an earlier fit of this process would fix the precision of this one
    accelerator = Accelerator(cpu=ctx.device == "cpu", mixed_precision=config.precision)
    rank, world = accelerator.process_index, accelerator.num_processes
    torch.manual_seed(step_seed(ctx.seed, 0, 0, 0))
    model.setup(ctx)
    groups = model.param_groups()
    optimizer = torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    module, optimizer = accelerator.prepare(model.module, optimizer)
    average = Average(model.module, config.ema)
    checkpoint = Checkpoint(ctx.folder, model, optimizer, average) if ctx.folder is not None else None
    at = Progress(**checkpoint.load()) if checkpoint and checkpoint.exists() else Progress()
    best = checkpoint.load_best() if checkpoint and at.best_epoch >= 0 else None
    if ctx.validate is not None and at.epoch == at.step == 0:
        _sanity(model, ctx)
    per_epoch = model.steps_per_epoch(world)
    while at.epoch < config.epochs and at.stale() < config.patience:
        started = time.monotonic()
        batches = track(model.batches(at.epoch, rank, world), f"epoch {at.epoch + 1}", total=per_epoch)
        for step, batch in enumerate(batches):
            if step < at.step:
                continue  # done before this run was interrupted
            torch.manual_seed(step_seed(ctx.seed, at.epoch, step, rank))
            module.train()
            batch = {name: value.to(accelerator.device) for name, value in batch.items()}
            with accelerator.autocast():
                loss, parts = module(batch)
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"loss is {loss.item()} at epoch {at.epoch + 1}, step {step}", where=parts
                )
            left = per_epoch - (
                step - step % config.accumulate
            )  # batches from this optimiser step's first one on
            accelerator.backward(loss / min(config.accumulate, left))
            for name, value in {"loss": loss.item(), **parts}.items():
                at.sums[name] = at.sums.get(name, 0.0) + value
            if (step + 1) % config.accumulate == 0 or step + 1 == per_epoch:
                norm = accelerator.clip_grad_norm_(module.parameters(), config.clip)
                if not torch.isfinite(norm):
                    raise TrainingError(
                        f"gradient is not finite at epoch {at.epoch + 1}, step {step}", where=parts
                    )
                done = at.epoch * per_epoch + step
                for group in optimizer.param_groups:
                    rate = learning_rate(config, done, config.epochs * per_epoch)
                    group["lr"] = rate * group.get("lr_scale", 1.0)
                optimizer.step()
                optimizer.zero_grad()
                average.update(done)
                if checkpoint and (step + 1) % config.checkpoint_steps == 0:
                    at.step = step + 1
                    checkpoint.save(asdict(at))
        metrics = {name: total / per_epoch for name, total in at.sums.items()}
        metrics["seconds"] = time.monotonic() - started
        with average.in_place():
            if ctx.validate is not None:
                metrics["valid"] = ctx.validate(model)
                if not math.isfinite(metrics["valid"]):
                    raise TrainingError(
                        f"the validation metric is {metrics['valid']} after epoch {at.epoch + 1}"
                    )
            if ctx.validate is None or at.best_metric is None or metrics["valid"] > at.best_metric:
                at.best_epoch, at.best_metric = at.epoch, metrics.get("valid")
                weights = model.module.state_dict()
                best = {name: value.detach().cpu().clone() for name, value in weights.items()}
        at.history.append(metrics)
        log(metrics, at.epoch)
        at.epoch, at.step, at.sums = at.epoch + 1, 0, {}
        if checkpoint:
            checkpoint.save(asdict(at), best if at.best_epoch == at.epoch - 1 else None)
    model.module.load_state_dict(best)
    return at


def _sanity(model: Learner, ctx: LoopContext) -> None:
    """Two batches' losses and one validation before the first step: a broken metric shows at once."""
    model.module.eval()
    with torch.no_grad():
        for _, batch in zip(range(2), model.batches(0), strict=False):
            loss, parts = model.module(batch)
            if not torch.isfinite(loss):
                raise TrainingError(f"loss is {loss.item()} before the first step", where=parts)
    ctx.validate(model)
