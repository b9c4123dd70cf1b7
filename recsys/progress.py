"""Progress on standard error: a bar for what takes longer than two seconds, in a terminal only."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_PATIENCE_SECONDS, _REFRESH_SECONDS = 2.0, 0.1


def track(steps: Iterable[T], label: str, *, enabled: bool = True, total: int | None = None) -> Iterator[T]:
    """Iterate with a bar that appears once two seconds have passed; none where stderr is a file or a pipe."""
    if not enabled or not sys.stderr.isatty():
        yield from steps
        return
    from rich.console import Console
    from rich.progress import Progress

    due = time.monotonic() + _PATIENCE_SECONDS
    bar, task = None, None
    try:
        for done, step in enumerate(steps):
            if time.monotonic() > due:
                due = time.monotonic() + _REFRESH_SECONDS
                if bar is None:
                    bar = Progress(console=Console(file=sys.stderr), transient=True)
                    bar.start()
                    task = bar.add_task(label, total=total)
                bar.update(task, completed=done)
            yield step
    finally:
        if bar is not None:
            bar.stop()
