"""Points at which a process can be made to kill itself: its writes below a folder, and its changes to databases."""

import os
import signal
import sqlite3

CONNECT = sqlite3.connect
_CHANGES = ("INSERT", "UPDATE", "DELETE", "CREATE", "ALTER", "DROP", "COMMIT")
_ENTRIES = ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.symlink")


class Points:
    """Counts the writes of this process, and ends it at one of them."""

    def __init__(self, root: str, kill: list | None):
        self.root, self.kill = root, kill
        self.counts = {"file": 0, "sql": 0}

    def reach(self, kind: str) -> None:
        self.counts[kind] += 1
        if self.kill is not None and [kind, self.counts[kind]] == self.kill:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(self, event: str, arguments: tuple) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR) if isinstance(flags, int) else "w" in (mode or "")
            if writes and self.inside(path):
                self.reach("file")
        elif event in _ENTRIES and any(map(self.inside, arguments)):
            self.reach("file")

    def connect(self, *arguments: object, **options: object) -> sqlite3.Connection:
        connection = CONNECT(*arguments, **options)
        connection.set_trace_callback(self.statement)
        return connection

    def inside(self, path: object) -> bool:
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.root)

    def statement(self, text: str) -> None:
        if text.lstrip().upper().startswith(_CHANGES):
            self.reach("sql")
