"""Checks of what a model learns: planted structure, and nothing where there is none."""

import math
from dataclasses import replace

import numpy as np
from contracts.cases import Case
from contracts.worlds import world

from recsys.evaluate import evaluate
from recsys.models.baselines.popularity import Popularity, PopularityConfig
from recsys.protocol import Protocol

K = 5


def hit_rate(model, kind: str, pool: str | None = None, mask: str = "off") -> tuple[float, float, int]:
    """(hit rate at K on the test part, at most that of a random list, queries), within a pool where given."""
    split = world(kind).split
    protocol = Protocol(ks=(K,), mask=mask, repeat_targets="miss", bootstrap=0)
    found = evaluate(model, split, "test", protocol, progress=False).values
    entry = found[f"test/hr_at_{K}" + (f"/pool.{pool}" if pool else "")]
    ranked_I = np.ones(split.num_items, bool) if pool is None else split.fit_log().item_counts() == 0
    masked = 0 if mask == "off" or pool else split.queries("test").queries.history.lengths.max()
    return entry["value"], K / (ranked_I.sum() - masked), entry["n"]


def _beats_popularity(case: Case, kind: str, pool: str | None = None) -> None:
    """Half the way, at least, from popularity (or chance: planted popularity is flat) to always right."""
    model = case.learnt(kind)[0]
    own, chance, _ = hit_rate(model, kind, pool, "history")
    floor = Popularity(PopularityConfig())
    floor.fit(world(kind).context())
    rival = max(hit_rate(floor, kind, pool, "history")[0], chance)
    bar = rival + 0.5 * (1 - rival)
    assert own >= bar, f"hit rate {own:.3f} on {kind}, at least {bar:.3f} expected of a model that claims it"


def beats_popularity_on_co_occurrence(case: Case) -> None:
    _beats_popularity(case, "co_occurrence")


def beats_popularity_on_attributes(case: Case) -> None:
    """What users are tells what they take: the fields of the users name their group."""
    _beats_popularity(case, "attributes")


def beats_popularity_on_order(case: Case) -> None:
    _beats_popularity(case, "order")


def beats_popularity_on_cold_content(case: Case) -> None:
    """Among items without a training row: only their content tells them apart."""
    _beats_popularity(case, "content", pool="cold")


def loss_falls(case: Case) -> None:
    losses = [epoch["loss"] for epoch in case.learnt(case.claims[0])[1].history]
    assert losses[-1] < 0.95 * losses[0], f"the loss went from {losses[0]:.4f} to {losses[-1]:.4f}"


def shuffled_labels_teach_nothing(case: Case) -> None:
    """With the items dealt to rows at random, the true targets are ranked no better than by chance."""
    place = world("order")
    log = place.split.fit_log()
    dealt = replace(log, item_N=np.random.default_rng(4).permutation(log.item_N))
    model = case.fit(place.context(log=dealt), **case.train)[0]
    own, chance, queries = hit_rate(model, "order")
    limit = chance + 4 * math.sqrt(chance * (1 - chance) / queries)
    assert own <= limit, f"hit rate {own:.3f} from shuffled rows, chance is {chance:.3f}: targets leak"
