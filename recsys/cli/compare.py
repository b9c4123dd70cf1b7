"""`recsys compare`: models of several runs side by side."""

from pathlib import Path
from typing import Annotated

import typer


def attach_compare(app: typer.Typer) -> None:
    """Put the command into `app`."""

    @app.command()
    def compare(
        runs: Annotated[
            list[Path], typer.Argument(help="Folders runs/NAME of recsys run, or evaluations of other tools.")
        ],
        metric: Annotated[
            str | None, typer.Option("--metric", help="e.g. hr_at_10; default: NDCG at the first cut-off.")
        ] = None,
        out: Annotated[Path, typer.Option("--out", help="Folder for comparison.json and .html.")] = Path(
            "comparison"
        ),
        timing: Annotated[
            bool, typer.Option("--timing/--no-timing", help="Measure queries a second of every model.")
        ] = True,
    ) -> None:
        """All models of these runs: intervals, tests of every pair, slices, costs.

        Runs have to share data, split and protocol. What was measured is read;
        nothing is looked at again.

        Examples:

          recsys compare runs/movielens-100k

          recsys compare runs/fmrlrec-amazon runs/baselines-beauty --metric hr_at_10 --out beauty
        """
        from recsys.present.compare import compare as present

        present(runs, metric, out, timing)
