"""The catalogue and the counts as all processes together have changed them."""

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from recsys.bundle import Bundle
from recsys.errors import RequestError, ServingError
from recsys.serving.answers import Id
from recsys.serving.catalogue import Catalogue, Cataloguer, from_bytes, to_bytes
from recsys.serving.content import NewItem
from recsys.serving.forms import Program
from recsys.serving.state import StateStore

logger = logging.getLogger("recsys")
REFRESH_SECONDS = 1.0
"""How old what a process knows of other processes' items and counts may become."""


class LiveItems:
    """now: the catalogue at this moment; it is replaced, never changed. Safe to call from several threads."""

    def __init__(
        self,
        bundle: Bundle,
        store: StateStore,
        programs: dict[str, Program],
        changed: Callable[[Catalogue], None],
    ):
        """changed(catalogue) is called before a new catalogue is used."""
        self.store, self.cataloguer, self._changed = store, Cataloguer(bundle, programs), changed
        self.now: Catalogue = self.cataloguer.base
        self.popularity = bundle.popularity
        self._counted_until = int(bundle.manifest["last_event"])  # the bundle's counts hold what came before
        self._changes: dict[Id, NewItem | None] = {}
        self._items_until = self._events_until = 0
        self._looked = -np.inf
        self._away = False
        self._lock = threading.RLock()

    def refresh(self, *, force: bool = False) -> Catalogue:
        """`now`, after a look at the store where the last one is a second ago.

        While the store is away the catalogue stays as it was seen last, which is logged once; with force, ServingError.
        """
        moment = time.monotonic()
        if not force and moment - self._looked < REFRESH_SECONDS:
            return self.now
        with self._lock:
            self._looked = moment
            try:
                self._look()
            except ServingError as error:
                if force:
                    raise
                if not self._away:
                    logger.warning("the catalogue stays as it was seen last: %s", error)
                self._away = True
            else:
                self._away = False
            return self.now

    def add(self, new: Sequence[NewItem]) -> dict[Id, list[str]]:
        """Add items, or replace them; kept in the store. The tables that each lacks.

        Raises RequestError for features that do not fit, before anything is kept.
        """
        missing = self.cataloguer.encoded(new).missing
        self.store.put_items({json.dumps(item.item_id): to_bytes(item) for item in new})
        self.refresh(force=True)
        return dict(missing)

    def remove(self, item_ids: Sequence[Id]) -> None:
        """Take items out of all answers until they are added again. Raises RequestError for an unknown one."""
        for item_id in item_ids:
            if item_id not in self.now.index_of:
                raise RequestError(f"item {item_id!r} is not in the catalogue")
        self.store.remove_items([json.dumps(item_id) for item_id in item_ids])
        self.refresh(force=True)

    def _look(self) -> None:
        changes = self.store.items_after(self._items_until)
        if changes:
            self._items_until = changes[-1][0]
            for _, key, content in changes:
                self._changes[json.loads(key)] = None if content is None else from_bytes(content)
            self._take_up()
        self._count()

    def _take_up(self) -> None:
        added = {item_id: item for item_id, item in self._changes.items() if item is not None}
        removed = [item_id for item_id, item in self._changes.items() if item is None]
        catalogue = self.cataloguer.changed(added, removed)
        if self.popularity is not None:
            self.popularity.grow(len(catalogue))
        self._changed(catalogue)
        self.now = catalogue

    def _count(self) -> None:
        """Events that any process kept since the last look."""
        if self.popularity is None:
            return
        for number, event in self.store.recent(self._events_until):
            self._events_until = number
            index = self.now.index_of.get(json.loads(event.item_id))
            if index is not None and event.time > self._counted_until:
                self.popularity.observe(index, event.time)
