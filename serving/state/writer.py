"""Group commit: what several threads write at the same moment shares one transaction, and one wait for the disk."""

import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from recsys.errors import ServingError

_Result = TypeVar("_Result")
Work = Callable[[sqlite3.Connection], _Result]


@dataclass
class _Job:
    work: Work[Any]
    durable: bool
    done: Future[Any] = field(default_factory=Future)


class Writer:
    """One thread that runs the waiting jobs of a connection in one transaction and commits them together.

    connection: one without implicit transactions; whoever else uses it holds `lock`. settled() is called before and
    after each commit, and an exception of it reaches the group as one of the commit would. The thread ends with
    close(), or when nobody holds the Writer any more.
    """

    def __init__(self, connection: sqlite3.Connection, settled: Callable[[], None]):
        self.lock = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closing, self._closed = threading.Lock(), False
        # a function and not a method, so that the thread does not keep this object alive
        self._thread = threading.Thread(
            target=_serve, args=(connection, self._jobs, self.lock, settled), name="recsys-state", daemon=True
        )
        self._thread.start()

    def run(self, work: Work[_Result], *, durable: bool = True) -> _Result:
        """The result of work(connection) once it is committed; on disk then where durable.

        Raises what work raised, alone, or what the commit raised, for everybody in the group.
        """
        job = _Job(work, durable)
        with self._closing:
            if self._closed:
                raise ServingError("this store is closed", fix="open it again")
            self._jobs.put(job)
        return job.done.result()

    def close(self) -> None:
        """Finish the waiting jobs and end the thread."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._jobs.put(None)
        self._thread.join()

    def __del__(self) -> None:
        self._jobs.put(None)


def _serve(
    connection: sqlite3.Connection,
    jobs: "queue.SimpleQueue[_Job | None]",
    lock: threading.Lock,
    settled: Callable[[], None],
) -> None:
    going = True
    while going:
        group = [jobs.get()]
        while not jobs.empty():  # this thread alone takes jobs out
            group.append(jobs.get())
        going = None not in group
        waiting = [job for job in group if job is not None]
        if waiting:
            with lock:
                _commit(connection, waiting, settled)
        del group, waiting  # they would keep results alive until the next job


def _commit(connection: sqlite3.Connection, group: list[_Job], settled: Callable[[], None]) -> None:
    """Run and commit a group. Every caller gets an answer, whatever happens: it would wait for ever."""
    try:
        # in a write-ahead log NORMAL writes without waiting for the disk, FULL waits at each commit
        level = "FULL" if any(job.durable for job in group) else "NORMAL"
        connection.execute(f"PRAGMA synchronous={level}")
        connection.execute("BEGIN IMMEDIATE")
        outcomes = [_attempt(connection, job.work) for job in group]
        settled()  # or what the file's owner took away would be told as lost and be there when it is back
        connection.execute("COMMIT")
        settled()
    except BaseException as error:
        failed: BaseException = error
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error as another:
            failed = another
        for job in group:
            job.done.set_exception(failed)
        return
    for job, (result, own) in zip(group, outcomes, strict=True):
        if own is None:
            job.done.set_result(result)
        else:
            job.done.set_exception(own)


def _attempt(connection: sqlite3.Connection, work: Work[Any]) -> tuple[Any, Exception | None]:
    """(result, None), or (None, error) with the work undone. Raises where the whole transaction is gone: SQLite
    ends it itself after some errors, a full disk among them."""
    connection.execute("SAVEPOINT job")
    try:
        result = work(connection)
    except Exception as error:
        if not connection.in_transaction:
            raise
        connection.execute("ROLLBACK TO job")
        connection.execute("RELEASE job")
        return None, error
    connection.execute("RELEASE job")
    return result, None
