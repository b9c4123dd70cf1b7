"""A supervised server for tests, run as a script: supervised.py KIND WORKERS FOLDER [SECONDS OF GRACE].

It says its port once it listens. Every connection is answered with the worker's process id and number. KIND:
echo; slow (holds a connection until a file `free` is in FOLDER, then answers it, also after SIGTERM); deaf (ignores
SIGTERM); dying (ends at once with exit code 7); refusing (raises RecsysError); raced (each child gets SIGTERM in the
moment of its birth); counting (each worker has one request in flight, and answers with how many all have).
"""

import os
import signal
import socket
import sys
import time
from pathlib import Path

from recsys.errors import ServingError
from recsys.serving import supervisor
from recsys.serving.metrics import Metrics

kind, workers, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])


def fork_and_be_hit(fork=os.fork) -> int:
    pid = fork()
    if pid == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    return pid


def in_flight(metrics: Metrics) -> str:
    lines = metrics.render()[0].decode().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("recsys_in_flight "))


def run_worker(listener: socket.socket, number: int) -> None:
    # what the child starts with: handlers of its own choosing, and the folder for its metrics
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with open(folder / "started", "a") as stream:
        stream.write(f"{os.getpid()} {number} {os.environ['PROMETHEUS_MULTIPROC_DIR']}\n")
    if kind == "dying":
        sys.exit(7)
    if kind == "refusing":
        raise ServingError("this worker will not")
    if kind == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if kind == "counting":
        metrics = Metrics()
        metrics.entered()
    ended = []
    if kind == "slow":
        signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    listener.settimeout(0.05)
    while not ended:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        with connection:
            if kind == "slow":
                connection.sendall(b"held ")
                while not (folder / "free").exists():
                    time.sleep(0.01)
            said = in_flight(metrics) if kind == "counting" else number
            connection.sendall(f"{os.getpid()} {said}".encode())
    (folder / f"drained-{os.getpid()}").touch()


if kind == "raced":
    os.fork = fork_and_be_hit
if len(sys.argv) > 4:
    supervisor.GRACE_SECONDS = float(sys.argv[4])
with socket.create_server(("127.0.0.1", 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    print("once", end="")  # stays in the buffer: a fork must not write it again
    try:
        supervisor.supervise(run_worker, listener, workers)
    except ServingError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
