"""Work that no answer waits for: done by one thread, in order, and left out where it piles up."""

import logging
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from recsys.errors import RecsysError

logger = logging.getLogger("recsys")
EntryT = TypeVar("EntryT")
_WAITING = 1_000


class Later(Generic[EntryT]):
    """put(entry) returns at once; work(entry) is called soon, or never where a thousand are waiting. What the work
    refuses is logged once per kind: it is work that may be lost."""

    def __init__(self, work: Callable[[EntryT], None]):
        self._work = work
        self._waiting: queue.Queue[EntryT | None] = queue.Queue(_WAITING)
        self._told: set[str] = set()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def put(self, entry: EntryT) -> None:
        with self._lock:
            if self._thread is None:  # started by the first entry: after a fork, not before
                self._thread = threading.Thread(target=self._run, name="recsys-later", daemon=True)
                self._thread.start()
        try:
            self._waiting.put_nowait(entry)
        except queue.Full:
            self._tell("too much is waiting")

    def close(self) -> None:
        """Do what is waiting, then stop."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (entry := self._waiting.get()) is not None:
            try:
                self._work(entry)
            except RecsysError as error:
                self._tell(str(error))

    def _tell(self, why: str) -> None:
        if why not in self._told:
            self._told.add(why)
            logger.warning("not kept for later: %s", why)
