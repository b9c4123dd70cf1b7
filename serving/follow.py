"""Follow a model registry's alias, or a pointer file, and load what it comes to name."""

import json
import logging
import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from recsys.errors import ServingError
from recsys.files import write_json

logger = logging.getLogger("recsys")


class PointerFile:
    """A JSON file {"bundle": path} that tells several processes which bundle to serve."""

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> Path:
        """The folder it names; a relative one starts at the file's own folder.

        Raises ServingError for a file that is missing or damaged.
        """
        try:
            told = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ServingError(f"cannot be read ({error})", where=self.path) from None
        bundle = told.get("bundle") if isinstance(told, dict) else None
        if not isinstance(bundle, str) or not bundle:
            raise ServingError("names no bundle", where=self.path, expected='{"bundle": "FOLDER"}')
        return self.path.parent / bundle

    def write(self, bundle: Path) -> None:
        """Name another bundle; a reader sees the former or this one. Raises ServingError where it cannot be written."""
        try:
            write_json(self.path, {"bundle": str(bundle.resolve())})
        except OSError as error:
            raise ServingError(f"cannot be written ({error.strerror})", where=self.path) from None


def last_good(remembered: Path) -> Path | None:
    """The bundle that a Follower loaded last, for a start while the registry is away; None where there is none, or its
    folder is gone. Raises ServingError for a damaged file."""
    if not remembered.exists():
        return None
    bundle = PointerFile(remembered).read()
    return bundle if bundle.is_dir() else None


class Follower:
    """A thread that asks where the bundle is, and loads it when the answer has changed.

    polls, loads: rounds begun, bundles loaded. errors: counts by step (resolve, load, remember) and kind of error;
    each kind is warned of once, and again after a round that went well.
    """

    def __init__(
        self,
        resolve: Callable[[], Path],
        load: Callable[[Path], object],
        every: float,
        jitter: float,
        remembered: Path | None = None,
    ):
        """every: seconds between rounds, to which up to `jitter` seconds are added by chance, so that processes do not
        ask all at once. load gets a folder whose path or manifest differs from that of the last one loaded, and one
        that it refused again in the next round. remembered: a file for `last_good`."""
        self._resolve, self._load, self._every, self._jitter = resolve, load, every, jitter
        self._remembered = None if remembered is None else PointerFile(remembered)
        self.polls = self.loads = 0
        self.errors: Counter[str] = Counter()
        self._warned: set[str] = set()
        self._loaded: tuple | None = None
        self._noted: tuple | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    def start(self) -> None:
        """Begin; the first round comes after one interval."""
        self._thread.start()

    def stop(self) -> None:
        """End: at once between rounds, else after the round in hand."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def poll(self) -> None:
        """One round. No error leaves it: the bundle in use goes on."""
        self.polls += 1
        step = "resolve"
        try:
            bundle = self._resolve()
            mark = _mark(bundle)
            if mark != self._loaded:
                step = "load"
                self._load(bundle)
                self.loads += 1
                self._loaded = mark
            if self._remembered is not None and self._noted != mark:
                step = "remember"
                self._remembered.write(bundle)
                self._noted = mark
        except Exception as error:
            kind = f"{step}: {type(error).__name__}"
            self.errors[kind] += 1
            if kind not in self._warned:
                logger.warning("following failed, the former bundle goes on (%s: %s)", kind, error)
            self._warned.add(kind)
        else:
            self._warned.clear()

    def _run(self) -> None:
        chance = random.Random()  # seeded by the system: forked processes must not draw alike
        while not self._ended.wait(self._every + chance.uniform(0, self._jitter)):
            self.poll()


def _mark(bundle: Path) -> tuple:
    """What changes when another bundle comes to lie there."""
    try:
        found = (bundle / "manifest.json").stat()
    except OSError:
        return (bundle.resolve(),)  # loading it will tell what is wrong
    return bundle.resolve(), found.st_ino, found.st_mtime_ns, found.st_size
