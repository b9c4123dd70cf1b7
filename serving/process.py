"""A server in a process of its own: started, waited for, stopped with SIGTERM."""

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recsys.errors import ServingError

_ANNOUNCED = re.compile(r"\bon (http://[^\s)]+)")
_POLL_SECONDS, _GRACE_SECONDS = 0.01, 30


@dataclass(frozen=True)
class Server:
    """A running server. start_seconds: from the start of its process until it was ready."""

    url: str
    pid: int
    start_seconds: float

    def resident_mb(self) -> float | None:
        """Resident memory of the process and those it started, in MB; None where the system has no /proc."""
        return resident_mb(self.pid)


@contextlib.contextmanager
def started(
    command: Sequence[str],
    *,
    ready: str = "/readyz",
    patience: float = 120,
    env: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Run a command that says `on http://HOST:PORT`, wait until GET `ready` is answered with 200, stop it at the end.

    Raises ServingError with the server's last words where it ends by itself, is not ready after `patience` seconds, or
    ends in error when it is told to end. Nothing that it started outlives the block.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = Path(folder) / "words"
        began = time.monotonic()
        with open(words, "wb") as stream:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=env,
                start_new_session=True,  # a group of its own, so that all of it can be ended
            )
        try:
            url = _wait(process, words, ready, began + patience)
            yield Server(url, process.pid, time.monotonic() - began)
            process.send_signal(signal.SIGTERM)
            code = process.wait(_GRACE_SECONDS)
            if code not in (0, -signal.SIGTERM):
                raise ServingError(f"the server ended with exit code {code}: {_last(words)}")
        except subprocess.TimeoutExpired:
            raise ServingError(f"the server did not end within {_GRACE_SECONDS} s of SIGTERM") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(process: subprocess.Popen, words: Path, ready: str, deadline: float) -> str:
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServingError(
                f"the server ended with exit code {process.returncode}: {_last(words)}", where="start"
            )
        found = _ANNOUNCED.search(words.read_text(errors="replace"))
        if found and _answers(found[1] + ready):
            return found[1]
        time.sleep(_POLL_SECONDS)
    raise ServingError(f"the server was not ready in time: {_last(words)}", where="start")


def _answers(url: str) -> bool:
    """False while nobody listens, or the answer is that it is too early."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError):
        return False


def _last(words: Path) -> str:
    lines = words.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def resident_mb(pid: int) -> float | None:
    """Resident memory of a process and all below it, in MB; pages they share count once for each."""
    root = Path("/proc")
    if not (root / str(pid)).is_dir():
        return None
    parents: dict[int, list[int]] = {}
    for folder in root.glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            # the name in parentheses may hold anything; the parent is the second field after it
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(folder.name))
    total, todo = 0, [pid]
    while todo:
        one = todo.pop()
        todo += parents.get(one, [])
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            total += int((root / str(one) / "statm").read_text().split()[1])
    return total * os.sysconf("SC_PAGE_SIZE") / 1e6
