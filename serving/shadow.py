"""A second engine asked the same questions in the background: how far its answers agree with those given."""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Sequence

from recsys.serving.answers import Id, Ranked
from recsys.serving.engine import RankingEngine

logger = logging.getLogger("recsys")
WAITING = 64
"""Questions that may wait; what comes while as many wait is dropped."""


class Shadow:
    """One engine and one thread. compared, dropped, failed: questions answered, left out, answered with an error."""

    def __init__(self, engine: RankingEngine):
        self.engine = engine
        self.compared = self.dropped = self.failed = 0
        self._agreed = 0.0
        self._ended = False
        self._questions: queue.Queue[tuple[Callable[[RankingEngine], Ranked], Sequence[Id]] | None]
        self._questions = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    @property
    def overlap(self) -> float | None:
        """Mean share of the items answered that the shadow names too; None before the first comparison."""
        return self._agreed / self.compared if self.compared else None

    def put(self, ask: Callable[[RankingEngine], Ranked], answered: Sequence[Id]) -> None:
        """Compare `ask` of the shadow with the ids answered, later. Never waits."""
        try:
            self._questions.put_nowait((ask, answered))
        except queue.Full:
            self.dropped += 1

    def stop(self) -> None:
        """End after the question in hand; those that wait are left."""
        self._ended = True
        with contextlib.suppress(queue.Full):  # it is busy then, and looks at `_ended` before the next one
            self._questions.put_nowait(None)
        self._thread.join()

    def _run(self) -> None:
        while (question := self._questions.get()) is not None and not self._ended:
            ask, answered = question
            try:
                found = set(ask(self.engine).items.ids)
            except Exception as error:
                # the caller has its answer; an error here is a finding about the shadow
                if not self.failed:
                    logger.warning("the shadow cannot answer: %s: %s", type(error).__name__, error)
                self.failed += 1
                continue
            if answered:
                self._agreed += sum(item_id in found for item_id in answered) / len(answered)
            else:
                self._agreed += float(not found)
            self.compared += 1
