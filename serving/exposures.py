"""What was shown to whom: JSON lines, the ground for training on served lists and for comparing variants."""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import orjson

from recsys.errors import ServingError
from recsys.serving.answers import Id

logger = logging.getLogger("recsys")
MAX_WAITING = 10_000
"""Lines kept while they cannot be written; a disk that hangs must not fill the memory."""


class ExposureLog:
    """Lines kept in memory and written by a thread of its own. One file per process and UTC day:
    exposures-2026-11-23-4711.jsonl. written, lost: lines. Make it after forking.

    A line: request_id, variant, bundle_id, user (null for nobody), items, positions (from 1), scores, time (UTC
    seconds).
    """

    def __init__(self, folder: Path, *, every: float = 1.0, clock: Callable[[], float] = time.time):
        """every: seconds between writes. Raises ServingError for a folder that cannot be made."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ServingError(f"cannot be made ({error.strerror})", where=folder) from None
        self.folder, self._every, self._clock = folder, every, clock
        self.written = self.lost = 0
        self._warned = False
        self._lines: list[tuple[str, bytes]] = []
        self._adding, self._writing = threading.Lock(), threading.Lock()
        self._ended = threading.Event()
        self._file: BinaryIO | None = None
        self._thread = threading.Thread(target=self._run, name="exposures", daemon=True)
        self._thread.start()

    def add(
        self,
        request_id: str,
        variant: str,
        bundle_id: str,
        user_key: str | None,
        items: Sequence[Id],
        scores: Sequence[float | None],
    ) -> None:
        """Keep one answer, its items and their scores, for the next write. Never waits for the disk."""
        now = self._clock()
        line = orjson.dumps(
            {
                "request_id": request_id,
                "variant": variant,
                "bundle_id": bundle_id,
                "user": user_key,
                "items": items,
                "positions": list(range(1, len(items) + 1)),
                "scores": scores,
                "time": now,
            },
            option=orjson.OPT_APPEND_NEWLINE,
        )
        day = time.strftime("%Y-%m-%d", time.gmtime(now))
        with self._adding:
            if len(self._lines) < MAX_WAITING:
                self._lines.append((day, line))
            else:
                self.lost += 1

    def flush(self) -> None:
        """Write what is kept, in the order of keeping. Lines that the disk does not take are counted as lost."""
        with self._writing:
            with self._adding:
                lines, self._lines = self._lines, []
            start = 0
            for end in range(1, len(lines) + 1):
                if end == len(lines) or lines[end][0] != lines[start][0]:
                    self._write(lines[start][0], [line for _, line in lines[start:end]])
                    start = end

    def close(self) -> None:
        """Write what is kept and end the thread."""
        self._ended.set()
        self._thread.join()
        self.flush()
        if self._file is not None:
            self._file.close()

    def _run(self) -> None:
        while not self._ended.wait(self._every):
            self.flush()

    def _write(self, day: str, lines: list[bytes]) -> None:
        path = self.folder / f"exposures-{day}-{os.getpid()}.jsonl"
        try:
            stream = self._stream(path)
            size = os.fstat(stream.fileno()).st_size
            try:
                _write_all(stream, b"".join(lines))
            except OSError:
                os.ftruncate(stream.fileno(), size)  # no half line before the next one
                raise
        except OSError as error:
            with self._adding:
                self.lost += len(lines)
            if not self._warned:
                logger.warning("exposures are lost: %s: %s", path, error.strerror)
            self._warned = True
        else:
            self.written += len(lines)

    def _stream(self, path: Path) -> BinaryIO:
        if self._file is not None and self._file.name == str(path):
            return self._file
        if self._file is not None:
            self._file.close()
            self._file = None
        stream = open(str(path), "a+b", buffering=0)  # noqa: SIM115
        self._file = stream
        if stream.seek(0, os.SEEK_END):
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")  # a process of this number was killed in the middle of a line
        return stream


def _write_all(stream: BinaryIO, content: bytes) -> None:
    """A full disk may take a part before it refuses."""
    view = memoryview(content)
    while view:
        view = view[stream.write(view) :]
