"""Decoding beside the encoder: worker processes that read ahead, so that the encoder need not wait for pixels.

A worker is a plain child process that takes paths on its standard input and answers with pixels on its standard
output. It is not one of `multiprocessing`, which would run the user's script a second time and cannot tell a killed
parent from a slow one: here a parent that is gone is the end of the input, and the worker ends with it.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import IO

import numpy as np

from recsys.errors import FeatureError
from recsys.features.image.decode import Geometry, decode

Pixels = np.ndarray | str
"""uint8 [H, W, 3], or why the file cannot be read."""
_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from recsys.features.image.prefetch import serve
serve()
"""
_READY = b"ready\n"


def default_workers() -> int:
    """Half of the cores, which leaves the encoder the other half: decoding is the smaller part."""
    return min(8, max(1, (os.cpu_count() or 1) // 2))


def decoded(batches: Iterable[Sequence[Path]], geometry: Geometry, workers: int) -> Iterator[list[Pixels]]:
    """Every batch's pixels, in order. workers: processes that decode ahead; 0 = here, when a batch is asked for.

    A file that ends the process which decodes it is unreadable like any other.
    """
    if not workers:
        for batch in batches:
            yield [decode(path, geometry) for path in batch]
        return
    pool = _Pool(geometry, workers)
    waiting: deque[Future[list[Pixels]]] = deque()
    with contextlib.closing(pool):
        for batch in batches:
            waiting.append(pool.submit(batch))
            if len(waiting) > workers + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _Pool:
    """One thread a worker: it writes a batch's paths and waits for the pixels, while the main thread encodes."""

    def __init__(self, geometry: Geometry, workers: int):
        self._geometry, self._closing = geometry, False
        self._all: list[_Worker] = []
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        for _ in range(workers):
            self._idle.put(self._started())
        self._threads = ThreadPoolExecutor(workers)

    def submit(self, batch: Sequence[Path]) -> Future[list[Pixels]]:
        return self._threads.submit(self._decoded, batch)

    def close(self) -> None:
        """Without waiting for what is under way: a worker holds nothing that would be lost."""
        self._closing = True
        for worker in self._all:
            worker.process.kill()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._all:
            worker.close()

    def _started(self) -> "_Worker":
        self._all.append(_Worker(self._geometry))
        return self._all[-1]

    def _decoded(self, batch: Sequence[Path]) -> list[Pixels]:
        worker = self._idle.get()
        try:
            return worker.decoded(batch)
        except _Ended as ended:
            if self._closing:
                raise
            worker = self._started()
            if len(batch) == 1:
                return [f"{batch[0].name}: ends the process that decodes it ({ended})"]
        finally:
            self._idle.put(worker)
        return [pixels for path in batch for pixels in self._decoded([path])]


class _Ended(Exception):
    """A worker ended before it answered."""


class _Worker:
    """The near end of a worker process."""

    def __init__(self, geometry: Geometry):
        command = [sys.executable, "-c", _PROGRAM, json.dumps(sys.path), json.dumps(geometry.facts())]
        # in a session of its own, so that Ctrl-C reaches this process alone, which then ends the worker
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self._ready = False

    def decoded(self, paths: Sequence[Path]) -> list[Pixels]:
        answers, questions = self.process.stdout, self.process.stdin
        assert answers is not None and questions is not None
        if not self._ready and answers.readline() != _READY:
            raise FeatureError(
                "a decoding process did not start", fix="what it said is above; 0 workers decode without one"
            )
        self._ready = True
        try:
            questions.write(json.dumps([str(path) for path in paths]).encode() + b"\n")
            questions.flush()
            return [_received(answers, entry) for entry in json.loads(answers.readline())]
        except (OSError, ValueError):
            self.process.kill()
            raise _Ended(f"exit status {self.process.wait()}") from None

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):  # a question that nobody read
                stream.close()  # type: ignore[union-attr]


def _received(answers: IO[bytes], entry: str | list[int]) -> Pixels:
    if isinstance(entry, str):
        return entry
    pixels = np.empty((*entry, 3), np.uint8)
    if answers.readinto(pixels.reshape(-1).data) != pixels.size:  # type: ignore[attr-defined]
        raise OSError("cut short")
    return pixels


def serve() -> None:
    """The worker: a line of paths in, a line of sizes or reasons and the pixels out, until the input ends."""
    given = json.loads(sys.argv[2])
    geometry = Geometry(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    )
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the pixels
    try:
        answers.write(_READY)
        answers.flush()
        for line in sys.stdin.buffer:
            found = [decode(Path(path), geometry) for path in json.loads(line)]
            sizes = [pixels if isinstance(pixels, str) else pixels.shape[:2] for pixels in found]
            answers.write(json.dumps(sizes).encode() + b"\n")
            for pixels in found:
                if not isinstance(pixels, str):
                    answers.write(np.ascontiguousarray(pixels).data)
            answers.flush()
    except BrokenPipeError:
        os._exit(0)  # nobody is there to read the rest
