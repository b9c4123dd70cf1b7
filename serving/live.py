"""What is known of users now: the bundle's histories with the events since, and the recurrent states they lead to.

A process keeps the users it saw last. Before every use it asks the store for what was kept since; an event newer than
all before costs one step of each network, a late one a reading of the whole history.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from recsys import schema
from recsys.bundle import Bundle
from recsys.serving.forms import Sequence
from recsys.serving.later import Later
from recsys.serving.network import Encoded
from recsys.serving.state import Event, StateStore
from recsys.serving.user_states import WORTH_KEEPING, UserStates

Id = int | str
_KEPT_USERS = 50_000
"""Users whose history and states a process keeps: about 3 kB each at width 128, and as much again where a second
stage ranks."""


@dataclass
class Known:
    """A user, as of the last look. items, times: oldest first. gone: when the user was forgotten, if ever, in UTC
    seconds. after: sequence number of the last event looked at. unknown: ids of observed items outside the catalogue.
    states: program -> what the history left behind. made: by name, what was made of a history's items alone, with those
    items: it is good for as long as `items` is that very array."""

    user_id: Id
    row: int
    items: np.ndarray
    times: np.ndarray
    gone: int | None = None
    after: int = 0
    unknown: list[Id] = field(default_factory=list)
    states: dict[str, Encoded] = field(default_factory=dict)
    made: dict[str, tuple[np.ndarray, Any]] = field(default_factory=dict)


class LiveUsers:
    """Users by id. Safe to call from several threads."""

    def __init__(
        self,
        bundle: Bundle,
        store: StateStore,
        programs: Mapping[str, Sequence],
        index_of: Callable[[Id], int | None],
    ):
        """programs: those that step, by name. index_of: catalogue index of an item id, None outside it."""
        self.store, self.programs, self._index_of = store, programs, index_of
        ids = [] if bundle.users is None else bundle.users[schema.USER].to_list()
        self.row_of = {user_id: row for row, user_id in enumerate(ids)}
        self.ids: list[Id] = ids
        self._histories = bundle.histories
        self._states = UserStates(bundle.histories, bundle.states)
        self._times = None if bundle.users is None else bundle.users["times"]
        self._kept: OrderedDict[Id, Known] = OrderedDict()
        self._bundle_id = bundle.id
        self._lock = threading.Lock()
        self._later = Later(self._save)

    @property
    def versions(self) -> list[str]:
        """Under which states are kept in the store."""
        return [f"{self._bundle_id}:{name}" for name in self.programs]

    def close(self) -> None:
        """Stop keeping states."""
        self._later.close()

    def _save(self, entry: tuple[str, str, int, bytes]) -> None:
        self.store.save_state(*entry)

    def of(self, user_id: Id) -> Known:
        """The user with all events kept so far, which is empty for one that nobody knows."""
        with self._lock:
            known = self._kept.get(user_id)
            key = json.dumps(user_id)
            known = self._fresh(user_id, key) if known is None else self._caught_up(known, user_id, key)
            self._kept[user_id] = known
            self._kept.move_to_end(user_id)
            if len(self._kept) > _KEPT_USERS:
                self._kept.popitem(last=False)
            return known

    def state(self, known: Known, name: str) -> Encoded:
        """What the history has left behind in a program's network: kept here, in the bundle, in the store by a process
        that read it before, or read now."""
        with self._lock:
            if name not in known.states:
                program, key = self.programs[name], json.dumps(known.user_id)
                version = f"{self._bundle_id}:{name}"
                found = None
                if (
                    known.after == 0
                ):  # without live events the bundle's is the very state: no look at the store
                    found = self._states.of(name, program, known.row, known.items)
                if found is None:
                    stored = self.store.load_state(version, key)
                    if stored is not None and stored[0] == known.after:
                        found = program.network.restored(stored[1])
                if found is None and known.after:
                    found = self._states.of(name, program, known.row, known.items)
                if found is None:
                    found = program.network.read(known.items)
                    if len(known.items) >= WORTH_KEEPING:
                        self._later.put((version, key, known.after, found.to_bytes()))
                known.states[name] = found
            return known.states[name]

    def drop(self, user_id: Id) -> None:
        """Look at the store afresh the next time: the user was forgotten."""
        with self._lock:
            self._kept.pop(user_id, None)

    def clear(self) -> None:
        """Look at everything afresh: the catalogue has changed."""
        with self._lock:
            self._kept.clear()

    def stored(self, row: int) -> np.ndarray:
        """The history that the bundle came with."""
        return self._histories[row]

    def _fresh(self, user_id: Id, key: str) -> Known:
        row = self.row_of.get(user_id, -1)
        items, times = np.zeros(0, np.int64), np.zeros(0, np.int64)
        gone = self.store.forgotten(key)
        if row >= 0:
            items, times = self._histories[row], self._times[row].to_numpy().astype(np.int64)
            if gone is not None:
                items, times = items[times > gone], times[times > gone]
        known = Known(user_id, row, items, times, gone)
        kept = self.store.tail(key, 0)
        found = sorted(self._placed(known, kept))
        if found:  # a bundle made since may hold kept events
            own = set(zip(times.tolist(), items.tolist(), strict=True))
            found = [one for one in found if (one[0], one[2]) not in own]
        if found:
            times = np.concatenate([times, np.array([one[0] for one in found])])
            order = np.argsort(times, kind="stable")  # equal times: the bundle's own first, then by event id
            known.items = np.concatenate([items, np.array([one[2] for one in found])])[order]
            known.times = times[order]
        known.after = kept[-1][0] if kept else 0
        return known

    def _caught_up(self, known: Known, user_id: Id, key: str) -> Known:
        if self.store.forgotten(key) != known.gone:
            return self._fresh(user_id, key)  # forgotten by another process: what is kept here is from before
        kept = self.store.tail(key, known.after)
        found = sorted(self._placed(known, kept))
        if found and len(known.times) and found[0][0] <= known.times[-1]:
            return self._fresh(user_id, key)  # late, or to be put in order among events of the same second
        if kept:
            known.after = kept[-1][0]
        if found:
            known.times = np.concatenate([known.times, np.array([one[0] for one in found])])
            known.items = np.concatenate([known.items, np.array([one[2] for one in found])])
        for name, state in known.states.items():
            for _, _, item in found:
                state = self.programs[name].network.step(state, np.array([item]))
            known.states[name] = state
        return known

    def _placed(self, known: Known, kept: list[tuple[int, Event]]) -> list[tuple[int, str, int]]:
        """(time, event id, catalogue index) of the events whose item is in the catalogue; the others are noted."""
        found = []
        for _, event in kept:
            item_id = json.loads(event.item_id)
            index = self._index_of(item_id)
            if index is None:
                known.unknown.append(item_id)
            else:
                found.append((event.time, event.event_id, index))
        return found
