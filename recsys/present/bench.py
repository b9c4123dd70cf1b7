"""What `recsys bench serve` runs, shows and writes."""

import json
import os
import platform
import sys
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.markup import escape
from rich.table import Table

from recsys.bundle import Bundle
from recsys.errors import ConfigError, ServingError
from recsys.files import write_bytes, write_json
from recsys.present import err, out
from recsys.present.bench_pictures import latency_picture, rate_of, saturation_picture
from recsys.serving.bench import QUANTILES, Measurement, Result, Saturation, arrivals, saturation, summarise
from recsys.serving.process import Server, started
from recsys.serving.traffic import draw


@dataclass(frozen=True)
class Asked:
    """What is measured; as the options of `recsys bench serve`."""

    route: str
    rate: float
    seconds: float
    arrivals: str
    candidates: int
    seed: int
    saturation: bool
    limit_ms: float

    @property
    def title(self) -> str:
        with_items = f", {self.candidates} candidates" if self.route == "rank" else ""
        return f"{self.route}{with_items}, {self.rate:g} requests/s for {self.seconds:g} s, {self.arrivals} arrivals"


def serve(folder: Path, asked: Asked, url: str | None, workers: int, to: Path | None) -> None:
    """Measure a server of this bundle, which is started where there is no URL; tables to stdout, files into `to`."""
    bundle = Bundle.open(folder)
    arrivals(
        asked.rate, asked.seconds, asked.seed, asked.arrivals
    )  # wrong settings are told before a server starts
    draw(bundle, asked.route, 1, candidates=asked.candidates, seed=asked.seed)
    with ExitStack() as stack:
        server = None
        if url is None:
            server = stack.enter_context(started(serve_command(folder, workers)))
        where = _server_of(bundle, url) if server is None else server.url
        measure = Measurement(
            where,
            lambda count: draw(bundle, asked.route, count, candidates=asked.candidates, seed=asked.seed),
            asked.seconds,
            asked.seed,
            asked.arrivals,
        )
        trace = measure.trace(asked.rate)
        result = summarise(trace, asked.rate, asked.seconds)
        _print_result(result, asked, server)
        found = None
        if asked.saturation:
            err.print("[dim]...[/] searching the rate at which the server gives way")
            found = saturation(measure, asked.rate, asked.limit_ms, measure.bounds)
            _print_saturation(found)
        memory = server and server.resident_mb()
    if to is not None:
        to.mkdir(parents=True, exist_ok=True)
        report = _report(bundle, asked, server, workers, memory, result, found)
        write_json(to / "serve.json", report)
        pictures = {"serve.svg": latency_picture(trace.latency_ms, asked.title)}
        if found is not None:
            pictures["saturation.svg"] = saturation_picture(found, f"{asked.route}: latency by rate")
        for name, picture in pictures.items():
            write_bytes(to / name, picture.encode())
        out.print(f"report {', '.join(str(to / name) for name in ('serve.json', *pictures))}", soft_wrap=True)


def serve_command(folder: Path, workers: int = 1) -> list[str]:
    """`recsys serve` on a free port, as this interpreter runs it."""
    command = [sys.executable, "-m", "recsys", "serve", str(folder), "--port", "0"]
    return command if workers == 1 else [*command, "--workers", str(workers)]


def _server_of(bundle: Bundle, url: str) -> str:
    """The URL without a slash at its end, once a server of this very bundle has answered there."""
    if urlsplit(url).scheme != "http" or not urlsplit(url).hostname:
        raise ConfigError(f"--url {url!r}", expected="http://HOST:PORT")
    where = url.rstrip("/")
    try:
        with urllib.request.urlopen(f"{where}/readyz", timeout=10) as answer:
            found = json.loads(answer.read()).get("bundle_id")
    except (OSError, ValueError, AttributeError) as error:
        raise ServingError(f"no recsys server is ready here ({error})", where=where) from None
    if found != bundle.id:
        raise ServingError(
            f"serves bundle {found}", where=where, expected=f"{bundle.id}, that of {bundle.path}"
        )
    return where


def _print_result(result: Result, asked: Asked, server: Server | None) -> None:
    table = Table(title=asked.title)
    table.add_column("milliseconds")
    for name in QUANTILES:
        table.add_column(name, justify="right")
    rows = {"latency": result.latency_ms}
    rows |= {f"  stage {escape(name)}": values for name, values in result.stages_ms.items()}
    rows["client late"] = result.late_ms
    for name, values in rows.items():
        table.add_row(name, *(f"{values[quantile]:.2f}" for quantile in QUANTILES))
    out.print(table)
    out.print(
        f"{result.achieved:.1f} of {result.asked:g} requests/s answered; {result.requests:,} requests, "
        f"{_errors(result.errors)}"
    )
    if server is not None:
        memory = server.resident_mb()
        held = "" if memory is None else f", {memory:.0f} MB resident"
        out.print(f"server: ready after {server.start_seconds:.1f} s{held}")


def _print_saturation(found: Saturation) -> None:
    table = Table(title=f"saturation: 95 % of the rate answered, p99 at most {found.limit_ms:g} ms, no error")
    for heading in ("requests/s", "answered", "p50 ms", "p99 ms", "errors", ""):
        table.add_column(heading, justify="right")
    for step in sorted(found.steps, key=lambda step: step.asked):
        held = "held" if step.holds(found.limit_ms) else "too much"
        numbers = (step.asked, step.achieved, step.latency_ms["p50"], step.latency_ms["p99"])
        table.add_row(*(f"{number:.1f}" for number in numbers), str(sum(step.errors.values())), held)
    out.print(table)
    out.print(f"saturation: {rate_of(found.rate)} requests/s")


def _errors(errors: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} x {escape(what)}" for what, count in errors.items()) or "no error"


def _report(
    bundle: Bundle,
    asked: Asked,
    server: Server | None,
    workers: int,
    memory: float | None,
    result: Result,
    found: Saturation | None,
) -> dict[str, Any]:
    return {
        "bundle_id": bundle.id,
        "model": bundle.manifest["model"],
        "counts": bundle.manifest["counts"],
        "package_version": bundle.manifest["package_version"],
        "machine": {
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        "asked": asdict(asked),
        "server": None
        if server is None
        else {"workers": workers, "start_seconds": server.start_seconds, "resident_mb": memory},
        "result": asdict(result),
        "saturation": None if found is None else asdict(found),
    }
