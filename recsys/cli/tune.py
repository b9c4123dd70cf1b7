"""`recsys tune`: search for settings on validation."""

from pathlib import Path
from typing import Annotated

import typer

from recsys.errors import ConfigError


def attach_tune(app: typer.Typer) -> None:
    """Put the command into `app`."""

    @app.command()
    def tune(
        recipe: Annotated[str, typer.Argument(help="A shipped recipe by name, or a TOML file.")],
        trials: Annotated[int, typer.Option("--trials", help="Trials of every model.", min=1)] = 20,
        models: Annotated[
            str | None, typer.Option("--models", help="Only these, separated by commas; default: all.")
        ] = None,
        data: Annotated[
            Path | None, typer.Option("--data", help="Your own prepared Dataset, in place of the recipe's.")
        ] = None,
        set_: Annotated[
            list[str] | None, typer.Option("--set", help="Override: --set train.epochs=3")
        ] = None,
        out: Annotated[
            Path, typer.Option("--out", help="Folder of boxes, studies and the MLflow store.")
        ] = Path("runs"),
    ) -> None:
        """Search for settings with Optuna; the validation part judges, the test part is not within reach.

        Every model gets as many trials, the first of them the recipe as it
        stands. Trials are kept: the same command goes on where it stood. Spaces
        come with the package, or stand in the recipe, e.g. tune.sasrec.dropout =
        { low = 0.1, high = 0.6 }. The best settings are written as a recipe, for
        recsys run.

        Examples:

          recsys tune movielens-100k --trials 10

          recsys tune baselines-beauty --models ease,itemknn --trials 30
        """
        from recsys.present.tune import tune as present
        from recsys.recipe import load_recipe

        chosen = load_recipe(recipe, set_, data=None if data is None else str(data))
        names = () if models is None else tuple(name.strip() for name in models.split(","))
        if "" in names:
            raise ConfigError(f"--models {models!r}", expected="names separated by commas")
        present(chosen, out, trials, names)
