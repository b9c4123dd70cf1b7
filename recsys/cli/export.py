"""`recsys export`: narrower bundles, vectors for an index, ONNX graphs, and what each width is worth."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from recsys.errors import ConfigError


def attach_export(app: typer.Typer, folder_of: Callable[[str, str | None], Path]) -> None:
    """Put the command into `app`. folder_of: a bundle's folder from what the user gave and the tracking URI."""

    @app.command()
    def export(
        bundle: Annotated[
            str, typer.Argument(help="Bundle folder, or models:/NAME@ALIAS of the MLflow registry.")
        ],
        width: Annotated[
            str, typer.Option("--width", help="Nested widths, one folder each: 64,128,full")
        ] = "full",
        format_: Annotated[
            str,
            typer.Option("--format", help="bundle, int8 (a bundle), vectors (.npy), onnx (extra `onnx`)."),
        ] = "bundle",
        out: Annotated[Path, typer.Option("--out", help="Folder that gets width-64 and so on.")] = Path(
            "exports"
        ),
        split: Annotated[
            Path | None, typer.Option("--split", help="Split folder: judge and time every width on it.")
        ] = None,
        part: Annotated[
            str, typer.Option("--part", help="For --split: valid, or test (a look goes into the ledger).")
        ] = "valid",
        pool: Annotated[
            int,
            typer.Option(
                "--pool", help="For --split: items that a narrower width hands to the widest.", min=10
            ),
        ] = 200,
        runs: Annotated[Path, typer.Option("--runs", help="For --part test: folder of the ledger.")] = Path(
            "runs"
        ),
        tracking_uri: Annotated[
            str | None, typer.Option("--tracking-uri", help="MLflow store; default: runs/mlflow.db.")
        ] = None,
    ) -> None:
        """Cut a bundle to narrower widths, round it to int8, or turn it into vectors or ONNX graphs.

        With --split also width-report.json and .png: quality with intervals, bytes and milliseconds of every width,
        in float32, in int8, and with a narrower width picking what the widest ranks.

        Examples:

          recsys export runs/movielens-100k/bundle --width 64,128,full

          recsys export runs/movielens-100k/bundle --width 64 --format int8 --out small

          recsys export runs/movielens-100k/bundle --width full --format vectors

          recsys export runs/movielens-100k/bundle --width 16,64,full --split runs/boxes/split-1a2b3c4d5e6f
        """
        formats = ("bundle", "int8", "vectors", "onnx")
        if format_ not in formats:
            raise ConfigError(f"--format {format_!r}", expected=" or ".join(formats))
        from recsys.present import export as present

        chosen = present.Chosen(folder_of(bundle, tracking_uri), width, format_, out)
        if split is None:
            present.export(chosen)
        else:
            present.export_and_judge(chosen, split, part, pool, runs)
