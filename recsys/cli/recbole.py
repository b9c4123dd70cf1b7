"""`recsys recbole`: a RecBole model on one of our splits."""

from pathlib import Path
from typing import Annotated

import typer

from recsys.errors import ConfigError


def attach_recbole(app: typer.Typer) -> None:
    """Put the command into `app`."""

    @app.command()
    def recbole(
        model: Annotated[str, typer.Argument(help="A model of RecBole, by its name: BPR, SASRec, LightGCN.")],
        data: Annotated[
            Path, typer.Option("--data", help="The prepared Dataset that the split was made from.")
        ],
        split: Annotated[
            str,
            typer.Option("--split", help="A split folder, or the beginning of the id of one in OUT/boxes."),
        ],
        set_: Annotated[
            list[str] | None, typer.Option("--set", help="RecBole's own settings: --set epochs=20")
        ] = None,
        protocol: Annotated[
            list[str] | None, typer.Option("--protocol", help="Ours: --protocol mask=off --protocol ks=[10]")
        ] = None,
        window: Annotated[
            int, typer.Option("--window", help="Sequence models: longest history.", min=1)
        ] = 50,
        seed: Annotated[int, typer.Option("--seed", help="RecBole's seed.", min=0)] = 0,
        out: Annotated[
            Path, typer.Option("--out", help="Folder of boxes, results and the MLflow store.")
        ] = Path("runs"),
        track: Annotated[bool, typer.Option("--track/--no-track", help="Record it in MLflow.")] = True,
        tracking_uri: Annotated[
            str | None, typer.Option("--tracking-uri", help="MLflow store; default: OUT/mlflow.db.")
        ] = None,
    ) -> None:
        """Train a RecBole model on our split and judge its lists by our metrics, beside its own.

        It runs in an environment of its own, made once (some minutes, 1.6 GB),
        with Python 3.11 or older.

        Examples:

          recsys recbole BPR --data my-dataset --split runs/boxes/split-1a2b3c4d5e6f

          recsys recbole SASRec --data my-dataset --split 1a2b3c --set epochs=20 --protocol mask=off
        """
        from recsys.config import override, parse
        from recsys.present.recbole import recbole as present
        from recsys.protocol import Protocol
        from recsys.recbole.run import Job

        rules = parse(Protocol, override({}, protocol or []), where="--protocol")
        job = Job(model, seed, window, override({}, set_ or []))
        if {"seed", "topk", "data_path"} & set(job.settings or {}):
            raise ConfigError(
                "--set seed, topk and data_path are ours to say", fix="use --seed and --protocol ks=[...]"
            )
        present(job, data, split, rules, out, track, tracking_uri)
