"""A server in a process of its own, spoken to over loopback. Standard library only: the base-only check uses it."""

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_ANNOUNCED = re.compile(r"on (http://\S+)")


def call(url: str, body: Any = None, *, raw: bytes | None = None, timeout: float = 30) -> tuple[int, Any]:
    """(status, decoded JSON) of a GET, or of a POST where there is a body."""
    data = raw if raw is not None else None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@contextlib.contextmanager
def serving(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    ready: str = "/readyz",
    patience: int = 600,
) -> Iterator[str]:
    """Start `command` (a `recsys serve ... --port 0`), wait until it is ready, give its URL, stop it with SIGTERM.

    patience: tenths of a second. Raises AssertionError with the server's own words where it does not come up or
    does not end with exit code 0.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = Path(folder) / "stderr"
        with open(words, "wb") as stream:
            process = subprocess.Popen(
                list(command), stdout=stream, stderr=stream, env=dict(env or os.environ)
            )
        try:
            yield _wait(process, words, ready, patience)
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=30)
            assert code == 0, f"exit code {code} after SIGTERM: {words.read_text()}"
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen, words: Path, ready: str, patience: int) -> str:
    for _ in range(patience):
        assert process.poll() is None, f"the server ended with {process.returncode}: {words.read_text()}"
        found = _ANNOUNCED.search(words.read_text())
        if found:
            with contextlib.suppress(OSError, ValueError):
                if call(found[1] + ready)[0] == 200:
                    return found[1]
        time.sleep(0.1)
    raise AssertionError(f"not ready after {patience / 10:.0f} s: {words.read_text()}")
