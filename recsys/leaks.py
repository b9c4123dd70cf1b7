"""Does fitting see what it must not: rows of later parts, content of items that training never saw, cold negatives?

The check refits a model on data that differs only in what fitting may not look at, and compares bytes; and it watches
what is drawn while it is fitted.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from recsys.errors import LeakError
from recsys.fields import Fields
from recsys.models.base import FitContext, Model
from recsys.models.objective import Columns, Objective
from recsys.schema import Dense
from recsys.splits import Split
from recsys.train import fit
from recsys.train_config import TrainConfig

Tables = Mapping[tuple[str, str], Dense | Fields]


def check_leaks(
    make: Callable[[], Model],
    split: Split,
    tables: Callable[[Split], Tables],
    train: TrainConfig,
    *,
    seed: int = 0,
    context: Callable[[Split, Tables], FitContext] | None = None,
) -> None:
    """Fit the model three times. make: a new, unfitted one. tables: aligned tables under a split, made anew where they
    are fitted (vocabularies, statistics). train: a fixed number of epochs. context: what fitting sees, the rows of
    `train.fit_parts` by default.

    Raises LeakError that names all that was found:
        rows      the state, or a table, is another one when rows of later parts name other items: graphs, teachers,
                  vocabularies and popularity counts are among what is compared
        content   what was learnt of warm items changes with the content of cold ones: a statistic over all items
        draws     an item without a training row was drawn, or scored in a loss, as a negative (draws by torch)
    """
    if context is None:

        def context(split: Split, found: Tables) -> FitContext:
            return FitContext(split.fit_log(train.fit_parts), found, seed)

    cold_I = split.fit_log(train.fit_parts).item_counts() == 0
    first = tables(split)
    with watched(cold_I) as draws:
        own = _state(make, context(split, first), train)
    found = [f"draws: {line}" for line in draws]
    other = with_other_targets(split, train.fit_parts, seed)
    again = tables(other)
    found += [f"rows: table {name}" for name in first if _differs(first[name], again[name])]
    found += [f"rows: {name}" for name in _changed(own, _state(make, context(other, again), train))]
    dealt = {key: _dealt(table, cold_I, seed) if key[0] == "item" else table for key, table in first.items()}
    warm = {name: _warm(value, ~cold_I) for name, value in own.items()}
    after = _state(make, context(split, dealt), train)
    found += [
        f"content: {name}"
        for name in _changed(warm, {n: _warm(value, ~cold_I) for n, value in after.items()})
    ]
    if found:
        raise LeakError(
            f"fitting saw what it must not: {'; '.join(found)}",
            where=make().__class__.__name__,
            expected="nothing of later parts or of items without a training row",
        )


def with_other_targets(split: Split, fit_parts: tuple[str, ...], seed: int = 0) -> Split:
    """The split with random items of the catalogue in all rows that are not fitted; parts and times stay."""
    fitted_N = np.isin(split.part_N, split.codes(fit_parts))
    drawn_N = np.random.default_rng(seed).integers(split.num_items, size=len(fitted_N))
    return replace(split, log=replace(split.log, item_N=np.where(fitted_N, split.log.item_N, drawn_N)))


@contextmanager
def watched(cold_I: np.ndarray) -> Iterator[list[str]]:
    """What is drawn while it lasts: lines on draws that could give, and losses that hold, an item of `cold_I`."""
    found: list[str] = []
    multinomial, randint, columns = torch.multinomial, torch.randint, Objective.columns

    def note(line: str) -> None:
        if line not in found:
            found.append(line)

    def weighed(weights: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        if weights.shape[-1] == len(cold_I) and bool(weights[..., torch.from_numpy(cold_I)].any()):
            note("items are drawn with weight on cold ones")
        return multinomial(weights, *arguments, **options)

    def even(*arguments: Any, **options: Any) -> torch.Tensor:
        drawn = randint(*arguments, **options)
        if len(cold_I) in (*arguments[:2], options.get("high")):
            note("items are drawn evenly from the whole catalogue")
        return drawn

    def scored(objective: Objective, labels_P: torch.Tensor) -> Columns:
        made = columns(objective, labels_P)
        if cold_I[made.rows_N.cpu().numpy()].any():
            note("the loss scores cold items")
        return made

    torch.multinomial, torch.randint, Objective.columns = weighed, even, scored
    try:
        yield found
    finally:
        torch.multinomial, torch.randint, Objective.columns = multinomial, randint, columns


def _state(make: Callable[[], Model], ctx: FitContext, train: TrainConfig) -> dict[str, np.ndarray]:
    model = make()
    fit(model, ctx, train)
    return model.state()


def _changed(own: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> list[str]:
    return [name for name in own if own[name].tobytes() != other[name].tobytes()]


def _warm(value: np.ndarray, warm_I: np.ndarray) -> np.ndarray:
    """The part of an array that is of warm items: of every axis as long as the catalogue."""
    for axis, size in enumerate(value.shape):
        if size == len(warm_I):
            value = np.compress(warm_I, value, axis=axis)
    return value


def _differs(one: Dense | Fields, other: Dense | Fields) -> bool:
    if isinstance(one, Fields):
        one, other = one.dense(), other.dense()
    return one.values_EF.tobytes() != other.values_EF.tobytes()


def _dealt(table: Dense | Fields, cold_I: np.ndarray, seed: int) -> Dense | Fields:
    """Cold items with each other's content, doubled where it is a vector; all others keep their own."""
    rows = np.flatnonzero(cold_I)
    order_I = np.arange(len(cold_I))
    order_I[rows] = rows[np.random.default_rng(seed).permutation(len(rows))]
    found = table.take(order_I)
    if isinstance(found, Fields):
        return found
    scale_I1 = np.where(cold_I, 2, 1).astype(np.float32)[:, None]
    return Dense(found.values_EF * scale_I1, found.present_E)
