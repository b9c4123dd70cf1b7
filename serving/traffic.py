"""Requests of a load test, drawn from a bundle: its users and its items, from a seed."""

import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, get_args

import numpy as np
import orjson

from recsys import schema
from recsys.bundle import Bundle
from recsys.errors import ConfigError

Route = Literal["rank", "recommend", "events"]
ROUTES: tuple[str, ...] = get_args(Route)
_DISTINCT = 4_096
"""Bodies that are made; a longer test of a route that only reads sends them again."""
_HISTORY = 20
"""Items of a made-up history, where the bundle ships nobody's."""


@dataclass(frozen=True)
class Traffic:
    """POST bodies for one path; request number n is bodies[n % len(bodies)]."""

    path: str
    bodies: Sequence[bytes]


def draw(
    bundle: Bundle, route: Route, count: int, *, candidates: int = 200, k: int = 10, seed: int = 0
) -> Traffic:
    """Requests of users who have a history, each as likely as the other; candidates are items at random, all different.

    Where the bundle ships no users, histories are items at random. Event ids are new in every call: the same seed
    gives the same users and items. Raises ConfigError for a route or a number of items that the server cannot answer.
    """
    items = bundle.items[schema.ITEM].to_list()
    if route not in ROUTES:
        raise ConfigError(f"route {route!r}", expected=", ".join(ROUTES))
    wanted = {"rank": candidates, "recommend": k, "events": 1}[route]
    if not 1 <= wanted <= len(items):
        raise ConfigError(f"{wanted} items a request", expected=f"1 to {len(items)}, those of the bundle")
    rng = random.Random(seed)
    who = _askers(bundle, items, rng)
    if route == "events":
        users = _user_ids(bundle)
        token = uuid.uuid4().hex
        made = [
            {"event_id": f"bench-{token}-{n}", "user_id": rng.choice(users), "item_id": rng.choice(items)}
            for n in range(count)
        ]
    elif route == "rank":
        made = [
            next(who) | {"candidates": rng.sample(items, candidates)} for _ in range(min(count, _DISTINCT))
        ]
    else:
        made = [asker | {"k": k} for asker in islice(who, min(count, _DISTINCT))]
    return Traffic(f"/v1/{route}", [orjson.dumps(body) for body in made])


def _askers(bundle: Bundle, items: list, rng: random.Random) -> Iterator[dict[str, Any]]:
    users = _user_ids(bundle) if bundle.users is not None else []
    while True:
        if users:
            yield {"user_id": rng.choice(users)}
        else:
            yield {"history": [rng.choice(items) for _ in range(_HISTORY)]}


def _user_ids(bundle: Bundle) -> list:
    """Users with a history; made-up ones of the right type where the bundle has none."""
    if bundle.users is not None:
        ids = bundle.users[schema.USER].to_list()
        found = [ids[row] for row in np.flatnonzero(bundle.histories.lengths)]
        if found:
            return found
    return [f"bench-{n}" if bundle.id_type["user"] == "str" else n for n in range(1_000)]
