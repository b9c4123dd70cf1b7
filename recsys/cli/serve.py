"""`recsys serve`: a bundle over HTTP."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from recsys.errors import ConfigError


def attach_serve(app: typer.Typer, folder_of: Callable[[str, str | None], Path]) -> None:
    """Put the command into `app`. folder_of: a bundle's folder from what the user gave and the tracking URI."""

    @app.command()
    def serve(
        bundle: Annotated[
            str,
            typer.Argument(
                help="Bundle folder, or models:/NAME@ALIAS of the MLflow registry, which is followed."
            ),
        ],
        host: Annotated[
            str, typer.Option(help="Address to listen on; others than this machine's need --keys.")
        ] = "127.0.0.1",
        port: Annotated[
            int, typer.Option(help="Port to listen on; 0 = any free one.", min=0, max=65_535)
        ] = 8000,
        workers: Annotated[
            int, typer.Option(help="Processes; more than one need --state.", min=1, max=64)
        ] = 1,
        state: Annotated[
            str | None,
            typer.Option(help="SQLite file, or redis://HOST:PORT/DB, of live state; default: memory."),
        ] = None,
        keys: Annotated[
            Path | None, typer.Option(help="File of API keys, one a line; clients send X-API-Key.")
        ] = None,
        admin_port: Annotated[
            int | None, typer.Option(help="Port of /admin on 127.0.0.1; default: off.", min=0, max=65_535)
        ] = None,
        follow: Annotated[
            float, typer.Option(help="Seconds between looks at a models:/ alias.", min=0.1)
        ] = 30.0,
        variant: Annotated[
            list[str] | None,
            typer.Option(help="NAME=SHARE=BUNDLE: another bundle for a share of the users. Repeatable."),
        ] = None,
        shadow: Annotated[
            Path | None, typer.Option(help="Bundle that answers along, unseen, to be compared.")
        ] = None,
        exposures: Annotated[Path | None, typer.Option(help="Folder of the log of what was shown.")] = None,
        max_in_flight: Annotated[
            int, typer.Option(help="Requests taken in at once; more get a 503.", min=1)
        ] = 256,
        deadline: Annotated[
            float, typer.Option(help="Seconds that a request may wait for its turn.", min=0.01)
        ] = 5.0,
        threads: Annotated[
            int, typer.Option(help="Native threads a process; a question is too small for more.", min=1)
        ] = 1,
        coarse: Annotated[
            int | None,
            typer.Option(help="Width that picks the items which the full width ranks; default: none."),
        ] = None,
        pool: Annotated[int, typer.Option(help="Items that --coarse picks.", min=1)] = 500,
        clock: Annotated[str, typer.Option(help="now, or data: start at the bundle's last event.")] = "now",
        tracking_uri: Annotated[
            str | None, typer.Option("--tracking-uri", help="MLflow store; default: runs/mlflow.db.")
        ] = None,
    ) -> None:
        """Serve a bundle over HTTP, with a page to explore it at /; needs no torch.

        Examples:

          recsys serve runs/movielens-100k/bundle

          recsys serve models:/movielens-100k@champion --state live.db --workers 2

          recsys serve runs/a/bundle --variant b=0.1=runs/b/bundle --exposures shown --admin-port 8001
        """
        from recsys.serving.threads import pin_threads

        pin_threads(threads)
        if clock not in ("now", "data"):
            raise ConfigError(f"--clock {clock!r}", expected="now or data")
        from recsys.serving import run as server

        remembered = Path("runs") / "last-good.json"
        followed = bundle.startswith("models:/")
        folder = (
            _first(bundle, tracking_uri, folder_of, remembered)
            if followed
            else folder_of(bundle, tracking_uri)
        )
        options = server.Options(
            host, port, workers, state, clock, keys, admin_port,
            (lambda: folder_of(bundle, tracking_uri)) if followed else None,
            follow, remembered if followed else None, [_variant(text) for text in variant or []], shadow, exposures,
            max_in_flight, deadline, None if coarse is None else (coarse, pool),
        )  # fmt: skip

        def listening(url: str) -> None:
            typer.echo(f"serving {folder} on {url} (explorer at {url}/, docs at {url}/docs)", err=True)
            typer.echo(f"{workers} process(es), {threads} native thread(s) each", err=True)

        server.serve(folder, options, listening)


def _first(
    bundle: str, tracking_uri: str | None, folder_of: Callable[[str, str | None], Path], remembered: Path
) -> Path:
    """The bundle to start with: what the registry says, or the last good one where it is away."""
    from recsys.errors import RecsysError
    from recsys.serving.follow import last_good

    try:
        return folder_of(bundle, tracking_uri)
    except RecsysError as error:
        known = last_good(remembered)
        if known is None:
            raise
        typer.echo(f"{error}; starting with the last good bundle, {known}", err=True)
        return known


def _variant(text: str) -> tuple[str, Path, float]:
    name, _, rest = text.partition("=")
    share, _, folder = rest.partition("=")
    try:
        value = float(share)
    except ValueError:
        value = -1.0
    if not name or not folder or not 0 < value <= 1:
        raise ConfigError(f"--variant {text!r}", expected="NAME=SHARE=BUNDLE with a share above 0, at most 1")
    return name, Path(folder), value
