"""Several worker processes on one listening socket: started, replaced when they die, ended together."""

import contextlib
import logging
import os
import select
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from recsys.errors import RecsysError, ServingError

logger = logging.getLogger("recsys")
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
_METRICS = "PROMETHEUS_MULTIPROC_DIR"
QUICK_SECONDS, QUICK_DEATHS = 10.0, 5
"""A worker that dies sooner than this after its start, this many times in a row, will not come up."""
GRACE_SECONDS = 15.0


@dataclass
class _Worker:
    """One place among the workers. started, due: monotonic seconds of the last start and of the next one."""

    index: int
    pid: int | None = None
    started: float = 0.0
    due: float = 0.0
    quick: int = 0


def supervise(
    run_worker: Callable[[socket.socket, int], None], listener: socket.socket, workers: int
) -> None:
    """Run `run_worker(listener, number)` in that many processes until SIGTERM or SIGINT, then close the listener and
    end them.

    Call it in the main thread, before anything heavy is loaded or a thread started: workers are forks. One that ends by
    itself is started again, later each time it ends soon. On a signal workers get SIGTERM, and SIGKILL after 15 s; they
    get SIGTERM too when this process is killed. Workers count metrics in a folder that this makes and removes.

    Raises ServingError where a worker ends 5 times within 10 s of its start; the others are ended first.
    """
    places = [_Worker(index) for index in range(workers)]
    with _metrics_folder(), _signals() as bell, _lifeline() as line:
        try:
            while not bell.stopped:
                for worker in places:
                    if worker.pid is None and worker.due <= time.monotonic():
                        _start(worker, run_worker, listener, bell, line)
                waits = [worker.due for worker in places if worker.pid is None]
                bell.wait(max(0.0, min(waits) - time.monotonic()) if waits else None)
                for worker, status in _ended(places):
                    if not bell.stopped:
                        _mourn(worker, status)
        finally:
            listener.close()  # or who connects now would wait until the last worker has ended, and then for nothing
            _end(places, bell)


# Workers


def _start(
    worker: _Worker,
    run_worker: Callable[[socket.socket, int], None],
    listener: socket.socket,
    bell: "_Bell",
    line: tuple[int, int],
) -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # or what waits in them is written twice
    # a signal that came before the child has handlers of its own would ring the parent's bell, in the child only
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        pid = os.fork()
        if pid == 0:
            _child(worker, run_worker, listener, bell, line)
    except OSError as error:
        raise ServingError(f"worker {worker.index} cannot be started ({error.strerror})") from None
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    worker.pid, worker.started = pid, time.monotonic()


def _child(
    worker: _Worker,
    run_worker: Callable[[socket.socket, int], None],
    listener: socket.socket,
    bell: "_Bell",
    line: tuple[int, int],
) -> NoReturn:
    """Never returns: what the parent wanted done at its own end is not the child's to do."""
    code = 1
    try:
        bell.leave()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        os.close(line[1])
        threading.Thread(target=_end_with_parent, args=(line[0],), daemon=True).start()
        run_worker(listener, worker.index)
        code = 0
    except RecsysError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _end_with_parent(line: int) -> None:
    """The line ends when the parent does, however it was ended."""
    os.read(line, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _ended(places: list[_Worker]) -> list[tuple[_Worker, int]]:
    """(worker, exit status) of those that have ended since the last look; a negative status is a signal."""
    found = []
    for worker in places:
        if worker.pid is None:
            continue
        pid, status = os.waitpid(worker.pid, os.WNOHANG)
        if pid:
            worker.pid = None
            _count_no_more(pid)
            found.append((worker, os.waitstatus_to_exitcode(status)))
    return found


def _mourn(worker: _Worker, status: int) -> None:
    """Set the time of the next start. Raises ServingError where there is no point in one."""
    now = time.monotonic()
    worker.quick = worker.quick + 1 if now - worker.started < QUICK_SECONDS else 0
    how = f"was killed by signal {-status}" if status < 0 else f"ended with exit code {status}"
    if worker.quick >= QUICK_DEATHS:
        raise ServingError(
            f"worker {worker.index} {how}, {worker.quick} times within {QUICK_SECONDS:g} s of its start",
            fix="see what it said above",
        )
    delay = 0.1 * 2 ** (worker.quick - 1) if worker.quick else 0.0
    worker.due = now + delay
    logger.warning("worker %d %s; another starts", worker.index, how)


def _end(places: list[_Worker], bell: "_Bell") -> None:
    """SIGTERM to all, SIGKILL to those that do not end."""
    for number, patience in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, GRACE_SECONDS)):
        for worker in places:
            if worker.pid is not None:
                os.kill(worker.pid, number)  # not reaped yet: the number is still its own
        until = time.monotonic() + patience
        while any(worker.pid is not None for worker in places) and time.monotonic() < until:
            bell.wait(max(0.0, until - time.monotonic()))
            _ended(places)


# Signals


class _Bell:
    """Rings for every signal. stopped: one of them asked to end."""

    def __init__(self):
        self.stopped = False
        self._read, self._write = os.pipe()
        for end in (self._read, self._write):
            os.set_blocking(end, False)

    def ask_to_end(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True

    def wait(self, seconds: float | None) -> None:
        """Until a signal has come since the last wait, or the time is up."""
        if select.select([self._read], [], [], seconds)[0]:
            while len(os.read(self._read, 512)) == 512:
                pass

    def listen(self) -> int:
        """The file that rang before, to be given back."""
        return signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def leave(self) -> None:
        """In a child: what it receives is its own business."""
        signal.set_wakeup_fd(-1)
        self.close()

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


@contextlib.contextmanager
def _signals() -> Iterator[_Bell]:
    """A bell that rings while the block runs; handlers are put back after it."""
    bell = _Bell()
    before_file = bell.listen()
    before = {number: signal.signal(number, bell.ask_to_end) for number in (signal.SIGTERM, signal.SIGINT)}
    before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda number, frame: None)
    try:
        yield bell
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before_file)
        bell.close()


@contextlib.contextmanager
def _lifeline() -> Iterator[tuple[int, int]]:
    """A pipe into which nobody writes: (for workers, for us)."""
    line = os.pipe()
    try:
        yield line
    finally:
        for end in line:
            os.close(end)


# Metrics


@contextlib.contextmanager
def _metrics_folder() -> Iterator[None]:
    """Name the folder before prometheus_client is loaded anywhere: it looks once."""
    before = os.environ.get(_METRICS)
    with tempfile.TemporaryDirectory(prefix="recsys-metrics-") as folder:
        os.environ[_METRICS] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[_METRICS]
            else:
                os.environ[_METRICS] = before


def _count_no_more(pid: int) -> None:
    """A dead worker's requests are in flight no more."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(pid)
