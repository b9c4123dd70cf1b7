"""`recsys serve` beside the same model behind FastAPI and LitServe: latency, saturation, start and memory.

    python benchmarks/serve.py [--quick] [--check] [--bundle FOLDER] [--litserve FOLDER] [--million]

One load generator for all, in this process, on the machine of the servers: open-loop, Poisson arrivals, latency from
the time a request was due. Without --bundle a synthetic one of MovieLens 1M's size is made (fMRLRec, width 128, two
blocks, and three more generators under a ranker of the default size). The references re-rank with as many trees as the
bundle's own ranker has, with none where it has none. A state update is timed inside the engine: an event kept in memory
and one step of the network; the rows of /v1/events are whole requests, in memory and on disk.
--litserve: a folder made with `pip install --target FOLDER litserve`, for that server alone; not needed where litserve
is installed. --million: also a catalogue of a million items. --quick: about a minute and a half. --check: exit 1,
naming each target that is missed.
"""

import argparse
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import serve_bundle

from recsys.bundle import Bundle
from recsys.present.bench import serve_command
from recsys.serving.answers import Query
from recsys.serving.bench import Measurement, saturation
from recsys.serving.engine import RankingEngine
from recsys.serving.process import started
from recsys.serving.traffic import Traffic, draw

TARGETS = {
    "rank p50 ms": 3.0, "rank p99 ms": 15.0, "recommend p50 ms": 5.0, "state update p50 ms": 1.0, "ready after s": 3.0,
}  # fmt: skip
"""At most, of `recsys serve`."""
TIMES_THE_REFERENCE = 3.0
"""Saturation of `recsys serve`, at least."""
MILLION_TARGETS = {"recommend p50 ms": 10.0}
LIMIT_MS = 100.0
"""What p99 may be before a rate counts as too high."""
SATURATION = "saturation, requests/s"
MEMORY = "resident MB"
STARTS = 3
REFERENCES = {
    "fastapi": ("FastAPI + torch", "reference_server.py"),
    "litserve": ("LitServe + torch", "reference_litserve.py"),
}
"""Heading and script."""


@dataclass(frozen=True)
class Plan:
    """How the servers are asked. rate in requests/s; seconds of a measurement and of a step of the search."""

    rate: float
    seconds: float
    step_seconds: float


@dataclass(frozen=True)
class Contender:
    """A server to start. path: where all requests go, where it has one route only."""

    name: str
    command: list[str]
    ready: str
    routes: tuple[str, ...]
    path: str | None = None
    env: Mapping[str, str] | None = None
    notes: list[str] = field(default_factory=list)
    """What went wrong."""


def measured(contender: Contender, bundle: Bundle, plan: Plan, *, search: bool = True) -> dict[str, float]:
    """Row of the table -> value."""
    found: dict[str, float] = {}
    with started(contender.command, ready=contender.ready, env=contender.env) as server:
        found["ready after s"] = server.start_seconds

        def asking(route: str, seconds: float) -> Measurement:
            def traffic_of(count: int) -> Traffic:
                drawn = draw(bundle, route, count)
                return Traffic(contender.path or drawn.path, drawn.bodies)

            return Measurement(server.url, traffic_of, seconds)

        for route in contender.routes:
            result = asking(route, plan.seconds)(plan.rate)
            for quantile in ("p50", "p99"):
                found[f"{route} {quantile} ms"] = result.latency_ms[quantile]
            if not result.holds(float("inf")):
                answered = f"{result.achieved:.0f} of {plan.rate:g} requests/s"
                errors = [f"{count} x {what}" for what, count in result.errors.items()]
                contender.notes.append(f"{contender.name}, {route}: {', '.join([answered, *errors])}")
        if search:
            measure = asking("rank", plan.step_seconds)
            found[SATURATION] = saturation(measure, plan.rate, LIMIT_MS, measure.bounds).rate
        memory = server.resident_mb()
        if memory is not None:
            found[MEMORY] = memory
    return found


def ours(folder: Path, *more: str, routes: tuple[str, ...] = ("rank", "recommend", "events")) -> Contender:
    return Contender("recsys serve", [*serve_command(folder), *more], "/readyz", routes)


def reference(folder: Path, framework: str, trees: int, routes: tuple[str, ...], **more) -> Contender:
    name, script = REFERENCES[framework]
    command = [sys.executable, str(Path(__file__).with_name(script)), str(folder), "--trees", str(trees)]
    return Contender(name, command, "/health", routes, **more)


def litserve(folder: Path, trees: int, target: Path | None) -> Contender | str:
    """The contender, or why it is left out."""
    env = dict(os.environ)
    if target is not None:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(target), env.get("PYTHONPATH")]))
        if not (target / "litserve").is_dir():
            return f"no litserve in {target}: pip install --target {target} litserve"
    elif importlib.util.find_spec("litserve") is None:
        return "litserve is not installed: pip install --target FOLDER litserve, then --litserve FOLDER"
    return reference(folder, "litserve", trees, ("rank", "recommend"), path="/v1/rank", env=env)


def trees_of(bundle: Bundle) -> int:
    """Trees of the bundle's ranker, in LightGBM's text form."""
    path = bundle.path / "ranker.txt"
    return path.read_text(encoding="utf-8").count("\nTree=") if path.is_file() else 0


def starts(contender: Contender, count: int) -> float:
    """Median seconds until ready, over so many starts more."""
    seconds = []
    for _ in range(count):
        with started(contender.command, ready=contender.ready, env=contender.env) as server:
            seconds.append(server.start_seconds)
    return sorted(seconds)[len(seconds) // 2]


def state_update(bundle: Bundle, count: int = 300) -> float:
    """Median milliseconds for an event of a user whose state is there: kept, and stepped through."""
    engine = RankingEngine(bundle, clock=lambda: bundle.manifest["last_event"])
    users, taken = engine.users.ids[:count], []
    for number, user in enumerate(users):
        engine.rank(Query(user), engine.item_ids[:1])
        began = time.perf_counter()
        engine.observe(f"e{number}", user, engine.item_ids[number], bundle.manifest["last_event"] + 1)
        for name in engine.users.programs:
            engine.users.state(engine.users.of(user), name)
        taken.append(time.perf_counter() - began)
    return 1000 * sorted(taken)[len(taken) // 2]


def print_table(found: Mapping[str, Mapping[str, float]], targets: Mapping[str, float]) -> None:
    """Rows by contender; behind a reference's value, how many times ours it is."""
    names = list(found)
    own = found[names[0]]
    print(f"| | {' | '.join(names)} | target |\n| --- |{' ---: |' * (len(names) + 1)}")
    for row, value in own.items():
        cells = [_number(value)]
        for name in names[1:]:
            other = found[name].get(row)
            cells.append("-" if other is None else f"{_number(other)} ({other / max(value, 1e-9):.2g}x)")
        target = f"<= {targets[row]:g}" if row in targets else ""
        print(f"| {row} | {' | '.join(cells)} | {target} |")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def missed(own: Mapping[str, float], targets: Mapping[str, float], where: str = "") -> list[str]:
    return [
        f"{where}{row}: {own[row]:.2f}, target at most {most:g}"
        for row, most in targets.items()
        if own[row] > most
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, help="a bundle of fmrlrec; default: a synthetic one")
    parser.add_argument("--litserve", type=Path, help="folder that holds litserve")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--million", action="store_true", help="also a million items")
    parser.add_argument("--quick", action="store_true", help="short measurements")
    parser.add_argument("--check", action="store_true", help="exit 1 where a target is missed")
    options = parser.parse_args()
    plan = Plan(options.rate, 3, 1) if options.quick else Plan(options.rate, 10, 4)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        bundle = Bundle.open(options.bundle) if options.bundle else serve_bundle.write(root / "bundle")
        short = compare(bundle, plan, root, options.litserve, starts_more=0 if options.quick else STARTS)
        if options.million:
            short += million(root, plan)
    for line in short:
        print(f"short: {line}", file=sys.stderr)
    sys.exit(1 if options.check and short else 0)


def compare(
    bundle: Bundle, plan: Plan, root: Path, litserve_folder: Path | None, *, starts_more: int
) -> list[str]:
    """Measure and print; returns what fell short."""
    trees, counts = trees_of(bundle), bundle.manifest["counts"]
    print(
        f"{counts['items']:,} items, {counts['users']:,} users, histories of {bundle.histories.lengths.mean():.0f}, "
        f"{trees} trees; {plan.rate:g} requests/s for {plan.seconds:g} s, 200 candidates, {os.cpu_count()} cores; "
        f"saturation: p99 at most {LIMIT_MS:g} ms\n",
        flush=True,
    )
    first = ours(bundle.path)
    contenders: list[Contender] = [first, reference(bundle.path, "fastapi", trees, ("rank", "recommend"))]
    other = litserve(bundle.path, trees, litserve_folder)
    if isinstance(other, Contender):
        contenders.append(other)
    found = {contender.name: measured(contender, bundle, plan) for contender in contenders}
    own = found[first.name]
    if starts_more:
        own["ready after s"] = starts(first, starts_more)
    durable = ours(bundle.path, "--state", str(root / "state.db"), routes=("events",))
    kept = measured(durable, bundle, plan, search=False)
    own |= {
        f"{row.replace('events', 'events on disk')}": kept[row] for row in ("events p50 ms", "events p99 ms")
    }
    own["state update p50 ms"] = state_update(bundle)
    print_table(found, TARGETS)
    if isinstance(other, str):
        print(f"\nLitServe left out: {other}")
    for note in [note for contender in (*contenders, durable) for note in contender.notes]:
        print(f"\nnote: {note}")
    least = TIMES_THE_REFERENCE * found[contenders[1].name][SATURATION]
    short = missed(own, TARGETS) + first.notes
    if own[SATURATION] < least:
        times = own[SATURATION] / max(found[contenders[1].name][SATURATION], 1e-9)
        short.append(f"saturation: {times:.2f} times the reference, target {TIMES_THE_REFERENCE:g}")
    return short


def million(root: Path, plan: Plan) -> list[str]:
    """recommend over a million items, at a tenth of the rate."""
    bundle = serve_bundle.write(root / "million", items=1_000_000, ranker=False)
    gentle = Plan(plan.rate / 10, plan.seconds, plan.step_seconds)
    print(f"\n1,000,000 items, width 128; recommend at {gentle.rate:g} requests/s\n", flush=True)
    contenders = [
        ours(bundle.path, routes=("recommend",)),
        reference(bundle.path, "fastapi", 0, ("recommend",)),
    ]
    found = {contender.name: measured(contender, bundle, gentle, search=False) for contender in contenders}
    print_table(found, MILLION_TARGETS)
    for note in [note for contender in contenders for note in contender.notes]:
        print(f"\nnote: {note}")
    return missed(found[contenders[0].name], MILLION_TARGETS, "a million items, ")


if __name__ == "__main__":
    main()
