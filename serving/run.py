"""`recsys serve`: bundle, state, rollout, guard and socket put together, in one process or several."""

import contextlib
import gc
import json
import logging
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from recsys.errors import ServingError

if TYPE_CHECKING:
    from recsys.serving.answers import Id, Ranked
    from recsys.serving.engine import RankingEngine
    from recsys.serving.routes import Ask

logger = logging.getLogger("recsys")
_LOCAL = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Options:
    """How a bundle is served.

    state: SQLite file or address of a Redis; None = memory, for one process. clock: "now", or "data" to start at the
    bundle's last event. keys: file of API keys, one a line. admin_port: of reload and rollback on 127.0.0.1, or None.
    resolve: asked every `follow_seconds` where the bundle is now. remembered: where the last good bundle is noted.
    variants: (name, bundle, share of the users). shadow: a bundle that answers along, unseen. exposures: folder of the
    log of what was shown. max_in_flight: requests taken in at once. deadline: seconds that one may wait. coarse:
    (width, size) of coarse-to-fine retrieval.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    state: str | None = None
    clock: str = "now"
    keys: Path | None = None
    admin_port: int | None = None
    resolve: Callable[[], Path] | None = None
    follow_seconds: float = 30.0
    remembered: Path | None = None
    variants: Sequence[tuple[str, Path, float]] = field(default=())
    shadow: Path | None = None
    exposures: Path | None = None
    max_in_flight: int = 256
    deadline: float = 5.0
    coarse: tuple[int, int] | None = None


def serve(bundle: str | Path, options: Options, listening: Callable[[str], None] = lambda url: None) -> None:
    """Serve the bundle until interrupted; SIGTERM lets running answers finish and ends with exit code 0.

    port 0: any free one. listening(url) is called once the port is ours. Raises BundleError for a bad bundle,
    ServingError for an address or a store that cannot be had, or a public address without keys.
    """
    if options.host not in _LOCAL and options.keys is None:
        raise ServingError(
            "no API keys", where=options.host, expected="keys on an address that others reach",
            fix="give --keys FILE, or serve on 127.0.0.1",
        )  # fmt: skip
    if options.workers > 1 and options.state is None:
        raise ServingError(
            "several workers without a common state", fix="give --state FILE or redis://HOST:PORT/DB"
        )
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(options.host, options.port))
        admin = None
        if options.admin_port is not None:
            admin = stack.enter_context(_listen("127.0.0.1", options.admin_port))
        pointer = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "bundle.json"

        url = f"http://{_shown(options.host)}:{listener.getsockname()[1]}"
        if options.workers == 1:
            run(Path(bundle), options, listener, admin, pointer, leads=True, ready=lambda: listening(url))
        else:
            from recsys.serving.supervisor import supervise

            def run_worker(socket_: socket.socket, number: int) -> None:
                leads = number == 0
                run(Path(bundle), options, socket_, admin if leads else None, pointer, leads=leads)

            listening(url)  # before forking: bundles are opened after it, in every process
            supervise(run_worker, listener, options.workers)


def run(
    bundle: Path,
    options: Options,
    listener: socket.socket,
    admin: socket.socket | None,
    pointer_path: Path,
    *,
    leads: bool,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """One process. leads: it asks the registry and takes orders; the others do as its pointer file says. ready() is
    called when everything has been opened."""
    import uvicorn

    from recsys.bundle import Bundle
    from recsys.serving.admin import admin_app
    from recsys.serving.api import create_app, warm_up
    from recsys.serving.engine import RankingEngine
    from recsys.serving.exposures import ExposureLog
    from recsys.serving.follow import Follower, PointerFile
    from recsys.serving.guard import Guard
    from recsys.serving.keys import KeyRing
    from recsys.serving.metrics import Metrics
    from recsys.serving.rollout import Rollout
    from recsys.serving.state import open_state
    from recsys.serving.wire import MAX_BODY_BYTES

    pointer = PointerFile(pointer_path)
    offset = 0.0
    if options.clock == "data":
        offset = Bundle.open(bundle, verify=False).manifest["last_event"] - time.time()

    def clock() -> float:
        return time.time() + offset

    metrics = Metrics(clock)
    keys = None if options.keys is None else KeyRing.of_file(options.keys)
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(contextlib.closing(open_state(options.state)))
        rollout = Rollout(
            lambda path: RankingEngine(Bundle.open(path), store, clock, options.coarse),
            warm_up,
            told=metrics.swap,
        )
        stack.callback(rollout.close)
        log = None
        if options.exposures is not None:
            log = stack.enter_context(contextlib.closing(ExposureLog(options.exposures)))

        def use(path: Path) -> None:
            deployed = rollout.load(path)
            settle()
            manifest = deployed.engine.bundle.manifest
            metrics.serving(deployed.bundle_id, manifest["model"], manifest["last_event"])
            if leads:
                pointer.write(deployed.path)
                engines = [engine for _, engine in rollout.served()]
                engines += [] if rollout.previous is None else [rollout.previous.engine]
                store.drop_states([version for engine in engines for version in engine.users.versions])

        # a worker that starts again goes on with what the others serve, also the one that takes the orders
        use(pointer.read() if pointer_path.exists() else bundle)
        rollout.set_variants(options.variants)
        rollout.set_shadow(options.shadow)

        def choose(user: "Id | None", request_id: str) -> "tuple[str, RankingEngine]":
            variant, deployed = rollout.of(None if user is None else json.dumps(user), request_id)
            return variant, deployed.engine

        def told(
            request_id: str,
            variant: str,
            engine: "RankingEngine",
            user: "Id | None",
            ask: "Ask",
            found: "Ranked",
        ) -> None:
            rollout.shadowed(ask, found)
            if log is not None:
                key = None if user is None else json.dumps(user)
                log.add(request_id, variant, engine.bundle.id, key, found.items.ids, found.items.told)

        def counted(kept: Sequence[bool]) -> None:
            metrics.event(True, sum(kept))
            metrics.event(False, len(kept) - sum(kept))

        resolve = options.resolve if leads else pointer.read
        if resolve is not None:
            every = options.follow_seconds if leads else 0.5
            follower = Follower(resolve, use, every, every / 4, options.remembered if leads else None)
            follower.start()
            stack.callback(follower.stop)
        app = create_app(rollout.served, choose, told=told, counted=counted, metrics=metrics.render)
        guarded = Guard(app, keys, MAX_BODY_BYTES, options.max_in_flight, options.deadline, metrics)
        if admin is not None:
            stack.enter_context(_beside(uvicorn.Server(_config(admin_app(rollout, use))), admin))
        ready()
        _run_server(uvicorn.Server(_config(guarded)), listener)


def settle() -> None:
    """Leave what is loaded out of the collections between requests, which would walk through all of it; what a swap
    has let go of since the last time is freed first."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _config(app: object):
    import uvicorn

    return uvicorn.Config(
        app, log_level="warning", timeout_graceful_shutdown=10, timeout_keep_alive=5, access_log=False
    )


def _run_server(server: "object", listener: socket.socket) -> None:
    # uvicorn raises a caught signal again once it has shut down, which would end us with "killed"
    previous = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def _beside(server: "object", listener: socket.socket) -> Iterator[None]:
    """The server in a thread of its own for the length of the block."""
    import threading

    thread = threading.Thread(target=lambda: server.run(sockets=[listener]), name="admin", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(timeout=15)


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket: uvicorn would log a failure to bind and exit as if it were a bug."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address, family=family, backlog=1024)
        # Connections inherit it. asyncio sets it only where a socket names its protocol, which this one does not; the
        # body, written after the headers, would then wait 40 ms for the client's delayed acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ServingError(
            f"cannot listen ({reason})", where=f"{host}:{port}", fix="give another port"
        ) from None


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
