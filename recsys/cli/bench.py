"""`recsys bench`: what this machine makes of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from recsys.errors import ConfigError


def attach_bench(app: typer.Typer, folder_of: Callable[[str, str | None], Path]) -> None:
    """Put the commands into `app`. folder_of: a bundle's folder from what the user gave and the tracking URI."""
    bench = typer.Typer(
        help="Measure on this machine.\n\nExample: recsys bench serve runs/movielens-100k/bundle",
        no_args_is_help=True,
    )
    app.add_typer(bench, name="bench")

    @bench.command("serve")
    def bench_serve(
        bundle: Annotated[
            str, typer.Argument(help="Bundle folder, or models:/NAME@ALIAS of the MLflow registry.")
        ],
        url: Annotated[
            str | None, typer.Option("--url", help="A server of this bundle; default: one is started.")
        ] = None,
        route: Annotated[str, typer.Option("--route", help="rank, recommend or events.")] = "rank",
        rate: Annotated[float, typer.Option("--rate", help="Requests a second.")] = 200.0,
        seconds: Annotated[float, typer.Option("--seconds", help="Length of each measurement.")] = 10.0,
        arrivals: Annotated[
            str, typer.Option("--arrivals", help="poisson (users at random) or fixed (equal gaps).")
        ] = "poisson",
        candidates: Annotated[
            int | None, typer.Option("--candidates", help="Items of a rank request; default: 200.")
        ] = None,
        workers: Annotated[
            int | None, typer.Option("--workers", help="Processes of the server that is started; default: 1.")
        ] = None,
        saturation: Annotated[
            bool, typer.Option("--saturation", help="Also search the rate at which the server gives way.")
        ] = False,
        limit: Annotated[
            float | None,
            typer.Option("--limit", help="For --saturation: what p99 may be, in ms; default: 100."),
        ] = None,
        seed: Annotated[int, typer.Option("--seed", help="Of arrival times, users and items.", min=0)] = 0,
        out: Annotated[
            Path | None, typer.Option("--out", help="Folder that gets serve.json and the pictures.")
        ] = None,
        tracking_uri: Annotated[
            str | None, typer.Option("--tracking-uri", help="MLflow store; default: runs/mlflow.db.")
        ] = None,
    ) -> None:
        """Latency of a server under a stated load, from the time each request was due.

        Requests leave on schedule whatever became of the earlier ones, so that a
        server that stalls is charged with everybody who waited. Client and server
        share the machine. A server given by --url keeps the events of --route
        events: do not aim at one in use.

        Examples:

          recsys bench serve runs/movielens-100k/bundle

          recsys bench serve runs/movielens-100k/bundle --route recommend --saturation --out bench

          recsys bench serve runs/movielens-100k/bundle --url http://127.0.0.1:8000 --rate 50
        """
        if candidates is not None and route != "rank":
            raise ConfigError(f"--candidates with --route {route}", expected="--route rank")
        if workers is not None and (url is not None or workers < 1):
            raise ConfigError(f"--workers {workers}", expected="1 or more, of a server that is started here")
        if limit is not None and not (saturation and limit > 0):
            raise ConfigError(f"--limit {limit:g}", expected="milliseconds above 0, with --saturation")
        from recsys.present import bench as present

        asked = present.Asked(
            route=route,
            rate=rate,
            seconds=seconds,
            arrivals=arrivals,
            candidates=200 if candidates is None else candidates,
            seed=seed,
            saturation=saturation,
            limit_ms=100.0 if limit is None else limit,
        )
        present.serve(folder_of(bundle, tracking_uri), asked, url, workers or 1, out)
