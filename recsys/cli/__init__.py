"""The command line. Commands import what they need when they run, so that `recsys --help` is quick."""

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recsys.cli.bench import attach_bench
from recsys.cli.compare import attach_compare
from recsys.cli.export import attach_export
from recsys.cli.features import features_app
from recsys.cli.recbole import attach_recbole
from recsys.cli.serve import attach_serve
from recsys.cli.tune import attach_tune
from recsys.cli.write import write_app
from recsys.cli.zeroshot import attach_zeroshot
from recsys.errors import ConfigError, RecsysError

if TYPE_CHECKING:
    from recsys.recipe import Recipe

app = typer.Typer(
    name="recsys",
    help="Recommendation from raw content to a served ranking.\n\n"
    "Start with: recsys run movielens-100k, then: recsys serve runs/movielens-100k/bundle",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(
    help="Sources and Datasets.\n\nExample: recsys data prepare movielens-100k my-dataset",
    no_args_is_help=True,
)
app.add_typer(data_app, name="data")
app.add_typer(features_app, name="features")
app.add_typer(write_app, name="write")

BundleArgument = Annotated[
    str, typer.Argument(help="Bundle folder, or models:/NAME@ALIAS of the MLflow registry.")
]
OutOption = Annotated[
    Path, typer.Option("--out", help="Folder of boxes, reports and the default MLflow store.")
]
UriOption = Annotated[
    str | None, typer.Option("--tracking-uri", help="MLflow store; default: runs/mlflow.db.")
]


RecipeArgument = Annotated[str, typer.Argument(help="A shipped recipe by name, or a TOML file.")]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="Your own prepared Dataset, in place of the recipe's.")
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override a key: --set train.epochs=3")]
SeedsOption = Annotated[str | None, typer.Option("--seeds", help="Seeds of looped models, e.g. 0,1,2")]


def _device(name: str) -> str:
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name!r}", expected="cpu or cuda")
    if name == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ConfigError("--device cuda", expected="a CUDA device", fix="see recsys doctor, or use cpu")
    return name


DeviceOption = Annotated[str, typer.Option("--device", help="cpu or cuda.", callback=_device)]


@app.command()
def run(
    recipe: RecipeArgument,
    data: DataOption = None,
    set_: SetOption = None,
    seeds: SeedsOption = None,
    out: OutOption = Path("runs"),
    device: DeviceOption = "cpu",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the boxes, cached or not, and stop.")
    ] = False,
) -> None:
    """Walk a recipe from source to report; what is unchanged since the last run is skipped.

    Examples:

      recsys run movielens-100k

      recsys run movielens-100k --set split.method=leave_last_out --seeds 0,1,2

      recsys run movielens-100k --data my-dataset --dry-run
    """
    chosen = _recipe(recipe, data, set_, seeds)
    from recsys import present

    if dry_run:
        present.dry_run(chosen, out, device)
    else:
        present.run(chosen, out, device)


@app.command()
def train(
    recipe: RecipeArgument,
    data: DataOption = None,
    set_: SetOption = None,
    seeds: SeedsOption = None,
    out: OutOption = Path("runs"),
    device: DeviceOption = "cpu",
) -> None:
    """Fit a recipe's models and compare them on validation; test data is not looked at.

    `recsys run` with the same recipe goes on from there.

    Example: recsys train movielens-100k --set models.fmrlrec.dropout=0.4
    """
    chosen = _recipe(recipe, data, set_, seeds)
    from recsys import present

    present.train(chosen, out, device)


@data_app.command("list")
def data_list() -> None:
    """Kinds of sources, and the recipes that come with the package.

    Example: recsys data list
    """
    from recsys import present

    present.sources()


@data_app.command("prepare")
def data_prepare(
    recipe: Annotated[
        str, typer.Argument(help="A recipe (name or TOML file) whose [data] table is prepared.")
    ],
    out: Annotated[Path, typer.Argument(help="The Dataset folder to write.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override: --set data.variant=1m")] = None,
) -> None:
    """Source files to a Dataset folder.

    Example: recsys data prepare movielens-100k my-dataset
    """
    from recsys import present
    from recsys.config import override, read_recipe
    from recsys.sources import open_source

    values = override(read_recipe(recipe), set_ or [])
    if "data" not in values:
        raise ConfigError("no [data] table", where=recipe, expected="kind and its settings")
    present.inspect(open_source(values["data"]).prepare(out))


@data_app.command("inspect")
def data_inspect(dataset: Annotated[Path, typer.Argument(help="A Dataset folder.")]) -> None:
    """Counts, times, coverage of content, licence.

    Example: recsys data inspect my-dataset
    """
    from recsys import present
    from recsys.dataset import Dataset

    present.inspect(Dataset.open(dataset))


@data_app.command("export")
def data_export(
    dataset: Annotated[Path, typer.Argument(help="A Dataset folder.")],
    out: Annotated[Path, typer.Argument(help="The folder to write; its name is that of the files.")],
) -> None:
    """A Dataset as RecBole's atomic files: OUT/NAME.inter and NAME.item.

    Example: recsys data export my-dataset exports/my-dataset
    """
    from recsys.dataset import Dataset
    from recsys.recbole.atomic import write_dataset

    write_dataset(Dataset.open(dataset), out)
    typer.echo(f"{out / out.name}.inter and .item")


@app.command()
def evaluate(
    bundle: BundleArgument,
    split: Annotated[Path, typer.Argument(help="A split folder, e.g. runs/boxes/split-...")],
    part: Annotated[
        str, typer.Option(help="valid, or test (a look at the test part goes into the ledger).")
    ] = "valid",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Protocol: --set mask=off --set ks=[10]")
    ] = None,
    tracking_uri: UriOption = None,
    out: OutOption = Path("runs"),
) -> None:
    """Judge a bundle's torch-free program on a part of a split.

    Example: recsys evaluate runs/movielens-100k/bundle runs/boxes/split-1a2b3c4d5e6f --set ks=[5,50]
    """
    from recsys import present

    present.evaluate(_bundle(bundle, tracking_uri), split, part, set_ or [], out)


@app.command()
def recommend(
    bundle: BundleArgument,
    user: Annotated[str | None, typer.Option(help="A user id.")] = None,
    history: Annotated[str | None, typer.Option(help="Item ids, oldest first: 50,172,181")] = None,
    all_users: Annotated[
        bool, typer.Option("--all-users", help="Every user of the bundle, into --to.")
    ] = False,
    to: Annotated[Path | None, typer.Option("--out", help="Parquet file for --all-users.")] = None,
    k: Annotated[int, typer.Option("-k", help="Items per list.")] = 10,
    width: Annotated[int | None, typer.Option(help="Nested width of the model.")] = None,
    tracking_uri: UriOption = None,
) -> None:
    """A ranked list for a user, a history, or all users.

    Examples:

      recsys recommend runs/movielens-100k/bundle --user 42

      recsys recommend runs/movielens-100k/bundle --history 50,172,181 -k 5

      recsys recommend runs/movielens-100k/bundle --all-users --out lists.parquet
    """
    from recsys import present

    if [user is not None, history is not None, all_users].count(True) != 1 or all_users != (to is not None):
        raise ConfigError("who is it for?", expected="one of --user, --history, --all-users with --out FILE")
    engine = present.open_engine(_bundle(bundle, tracking_uri))
    if to is not None:
        present.recommend_all(engine, to, k, width)
    else:
        present.recommend(engine, user, history, k, width)


@app.command()
def similar(
    bundle: BundleArgument,
    item: Annotated[str, typer.Option(help="An item id.")],
    k: Annotated[int, typer.Option("-k", help="Items in the list.")] = 10,
    tracking_uri: UriOption = None,
) -> None:
    """Items that the model holds to be like this one.

    Example: recsys similar runs/movielens-100k/bundle --item 50
    """
    from recsys import present

    present.similar(present.open_engine(_bundle(bundle, tracking_uri)), item, k)


@app.command()
def promote(
    name: Annotated[str, typer.Argument(help="Registered model, e.g. movielens-100k.")],
    alias: Annotated[str, typer.Option(help="Alias of the version to promote.")] = "candidate",
    out: OutOption = Path("runs"),
    tracking_uri: UriOption = None,
) -> None:
    """Make the candidate the champion.

    Example: recsys promote movielens-100k
    """
    from recsys.tracking import promote as make_champion

    number = make_champion(name, out, tracking_uri, alias)
    typer.echo(f"{name} version {number} is the champion")


@app.command()
def doctor() -> None:
    """What is installed, what is missing, and how to get it.

    Example: recsys doctor
    """
    from recsys import present

    present.doctor()


def _recipe(name: str, data: Path | None, assignments: list[str] | None, seeds: str | None) -> "Recipe":
    from recsys.recipe import load_recipe

    return load_recipe(
        name,
        assignments,
        data=None if data is None else str(data),
        seeds=None if seeds is None else _seeds(seeds),
    )


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(seed) for seed in text.split(","))
    except ValueError:
        raise ConfigError(f"--seeds {text!r}", expected="integers separated by commas") from None


def _bundle(given: str, tracking_uri: str | None) -> Path:
    if given.startswith(("models:/", "runs:/")):
        from recsys.tracking import fetch_bundle

        return fetch_bundle(given, Path("runs"), tracking_uri)
    return Path(given)


attach_bench(app, _bundle)
attach_export(app, _bundle)
attach_compare(app)
attach_recbole(app)
attach_serve(app, _bundle)
attach_tune(app)
attach_zeroshot(app)


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 2; anything else is a bug and keeps its traceback."""
    # threads that wait do not spin: a full ranking, NumPy and torch by turns, then takes little more than half the time
    # on two cores, and with other work on the machine spinning costs up to ten times the work itself
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("recsys").setLevel(logging.INFO)
    try:
        app()
    except RecsysError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
