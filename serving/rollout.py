"""Which bundle answers: swapped whole while requests run, rolled back, split between variants, tried in the shadow."""

import hashlib
import itertools
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recsys import schema
from recsys.errors import BundleError, ServingError
from recsys.serving.answers import Id, Query, Ranked
from recsys.serving.engine import RankingEngine
from recsys.serving.shadow import Shadow

MAIN = "main"
_SAMPLE = 50
_STEPS = 1 << 53
"""A double holds every whole number below this: an integer below it, divided by it, never rounds up to 1."""


@dataclass(frozen=True)
class Deployed:
    """A bundle that can answer. loaded_at: UTC seconds."""

    engine: RankingEngine
    bundle_id: str
    path: Path
    loaded_at: float


class Rollout:
    """The bundle in use, the one before it, and those that get a part of the traffic.

    A request reads `current` or `of` once and keeps what it got: it ends on the bundle on which it began. Changes wait
    for each other and never hold up a request. While a third bundle is opened, three are in memory.
    """

    def __init__(
        self,
        open_engine: Callable[[Path], RankingEngine],
        warm_up: Callable[[RankingEngine], None],
        *,
        salt: str = "recsys",
        clock: Callable[[], float] = time.time,
        told: Callable[[str], None] = lambda result: None,
    ):
        """open_engine verifies what it opens. salt: another one deals users out to variants anew. told(result) is
        called with "loaded", "same", "failed" or "rolled_back"."""
        self._open_engine, self._warm_up, self._told = open_engine, warm_up, told
        self._salt, self._clock = salt, clock
        self._changing = threading.Lock()
        self._current: Deployed | None = None
        self._variants: tuple[tuple[str, float, Deployed], ...] = ()
        self.previous: Deployed | None = None
        self.shadow: Shadow | None = None
        self.failures: Counter[str] = Counter()
        """Bundles refused, by what refused them: open, ids, answers, warm_up."""
        self.last_failure: str | None = None

    @property
    def current(self) -> Deployed:
        """The bundle in use. Raises ServingError before the first is loaded."""
        if self._current is None:
            raise ServingError("no bundle is loaded")
        return self._current

    def load(self, path: str | Path) -> Deployed:
        """Open, check and warm a bundle aside, then use it; one with the id of the bundle in use changes nothing.

        Raises BundleError or ServingError for a bundle that cannot be used; the one in use goes on.
        """
        path = Path(path)
        with self._changing:
            former = self._current
            if former is not None and _named_id(path) == former.bundle_id:
                self._told("same")
                return former
            deployed = self._opened(path)
            dropped, self.previous, self._current = self.previous, former, deployed
            shared = [one for _, _, one in self._variants]
        self._told("loaded")
        if dropped is not None and all(dropped is not one for one in shared):
            dropped.engine.close()  # the thread that keeps its states would hold all of it in memory
        return deployed

    def rollback(self) -> Deployed:
        """Use the bundle before this one; again, and this one is back. Raises ServingError where there is none."""
        with self._changing:
            if self.previous is None:
                raise ServingError("there is no bundle to go back to", expected="a bundle loaded before")
            self._current, self.previous = self.previous, self._current
            deployed = self.current
        self._told("rolled_back")
        return deployed

    # Variants

    def set_variants(self, variants: Sequence[tuple[str, str | Path, float]]) -> None:
        """Give (name, bundle, share of the users) their parts, in this order; the rest of the users stays with "main".

        Raises ServingError for names that repeat or shares that pass 1, BundleError for a bundle that cannot be used;
        the variants are then as they were.
        """
        names = [name for name, _, _ in variants]
        if MAIN in names or "" in names or len(set(names)) != len(names):
            raise ServingError(
                f"variants {names}", expected=f"names that differ from each other and from {MAIN!r}"
            )
        shares = [share for _, _, share in variants]
        total = math.fsum(shares)
        if not all(0 < share <= 1 for share in shares) or total > 1 + 1e-9:
            raise ServingError(f"shares {shares}", expected="each above 0, together at most 1")
        bounds = list(itertools.accumulate(shares))
        if total > 1 - 1e-9:
            bounds[-1] = 1.0  # ten shares of 0.1 add up to a little less, which would leave a few users over
        with self._changing:
            known = {deployed.bundle_id: deployed for _, _, deployed in self._variants}
            known[self.current.bundle_id] = self.current
            made = []
            for (name, path, _), bound in zip(variants, bounds, strict=True):
                deployed = known.get(_named_id(Path(path)) or "") or self._opened(Path(path))
                known[deployed.bundle_id] = deployed
                made.append((name, bound, deployed))
            self._variants = tuple(made)

    def of(self, user_key: str | None, request_id: str) -> tuple[str, Deployed]:
        """(variant, bundle) for a user, the same in every process; by the request where nobody is named.

        A variant is an interval of [0, 1). A share that grows moves the bounds after it, and only users between an
        old and a new bound change their variant.
        """
        variants = self._variants
        if variants:
            point = place(self._salt, request_id if user_key is None else user_key)
            for name, bound, deployed in variants:
                if point < bound:
                    return name, deployed
        return MAIN, self.current

    def served(self) -> list[tuple[str, RankingEngine]]:
        """Every variant with its engine, "main" first."""
        found = [(name, deployed.engine) for name, _, deployed in self._variants]
        return [(MAIN, self.current.engine), *found]

    # Shadow

    def set_shadow(self, path: str | Path | None) -> None:
        """Ask this bundle too from now on; None ends it. Raises BundleError or ServingError as `load` does."""
        with self._changing:
            made = None if path is None else Shadow(self._opened(Path(path)).engine)
            former, self.shadow = self.shadow, made
        if former is not None:
            former.stop()

    def shadowed(self, ask: Callable[[RankingEngine], Ranked], answer: Ranked) -> None:
        """Put an answered question to the shadow, where there is one: later, in its own thread."""
        shadow = self.shadow
        if shadow is not None:
            shadow.put(ask, answer.items.ids)

    def close(self) -> None:
        """End the shadow's thread."""
        self.set_shadow(None)

    # Parts

    def _opened(self, path: Path) -> Deployed:
        """A bundle that has passed every check. Raises BundleError or ServingError, and counts the failure."""
        step = "open"
        try:
            engine = self._open_engine(path)
            step = "ids"
            self._check_ids(engine, path)
            step = "answers"
            check_answers(engine, path)
            step = "warm_up"
            self._warm_up(engine)
        except Exception as error:
            known = isinstance(error, BundleError | ServingError)
            text = str(error) if known else f"{type(error).__name__}: {error}"
            self.failures[step] += 1
            self.last_failure = text
            self._told("failed")
            if known:
                raise
            raise ServingError(f"the bundle cannot be used ({text})", where=path) from error
        return Deployed(engine, engine.bundle.id, path, self._clock())

    def _check_ids(self, engine: RankingEngine, path: Path) -> None:
        """Clients and kept events name ids of one type."""
        if self._current is None:
            return
        wanted, found = dict(self._current.engine.bundle.id_type), dict(engine.bundle.id_type)
        if found != wanted:
            raise ServingError(f"ids of type {found}", where=path, expected=f"{wanted}, as they are served")


def check_answers(engine: RankingEngine, path: Path) -> None:
    """Ask for items spread over the catalogue, by a history and by a stored user. Raises BundleError for a score of an
    item with interactions that is not finite."""
    ids, counts_I = engine.item_ids, engine.bundle.item_counts_I
    warm = np.flatnonzero(counts_I)
    if len(warm) == 0:
        return
    picked = np.unique(np.linspace(0, len(warm) - 1, min(_SAMPLE, len(warm))).astype(np.int64))
    sample: list[Id] = [ids[index] for index in warm[picked].tolist()]
    queries = [Query(history=sample[:3]), Query(history=sample[-1:])]
    users = engine.bundle.users
    if users is not None and len(users):
        queries.append(Query(user_id=users[schema.USER][0]))
    for query in queries:
        for item in engine.rank(query, sample).items:
            if item.score is None or not math.isfinite(item.score):
                raise BundleError(
                    f"item {item.item_id!r} is scored {item.score}", where=path, expected="a number"
                )


def place(salt: str, key: str) -> float:
    """Where a key falls in [0, 1): evenly, and always at the same place under one salt."""
    head = hashlib.sha256(f"{salt}\0{key}".encode()).digest()[:8]
    return (int.from_bytes(head) >> 11) / _STEPS


def _named_id(path: Path) -> str | None:
    """The id in the manifest, unverified; None where there is none to read, which opening the bundle will tell."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest.get("bundle_id") if isinstance(manifest, dict) else None
