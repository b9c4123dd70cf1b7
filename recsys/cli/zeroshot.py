"""`recsys zeroshot`: a prompted model ranks candidates, judged as trained models are."""

from pathlib import Path
from typing import Annotated

import typer


def attach_zeroshot(app: typer.Typer) -> None:
    """Put the command into `app`."""

    @app.command()
    def zeroshot(
        experiment: Annotated[str, typer.Argument(help="A shipped experiment by name, or a TOML file.")],
        set_: Annotated[
            list[str] | None, typer.Option("--set", help="Override: --set users=50 --set client.kind=openai")
        ] = None,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Count requests, tokens and money, and ask nothing.")
        ] = False,
        out: Annotated[
            Path, typer.Option("--out", help="Folder of boxes, answers, results and the MLflow store.")
        ] = Path("runs"),
    ) -> None:
        """Rank candidates by a prompted language or vision-language model, beside floors and trained bundles.

        Answers are kept: a killed run goes on where it stood, a repeated one
        asks nothing, and client.cache=replay needs no model at all.

        Examples:

          recsys zeroshot movielens-100k

          recsys zeroshot ml-1m --set bundles.fmrlrec=runs/fmrlrec-ml-1m/bundle --dry-run

          recsys zeroshot ml-1m --set client.kind=openai --set client.model=NAME --set budget.cost=2.0
        """
        from recsys.zeroshot.config import load_experiment

        chosen = load_experiment(experiment, set_)
        from recsys.present import zeroshot as present

        if dry_run:
            present.dry_run(chosen, out)
        else:
            present.run(chosen, out)
