"""`recsys write`: texts for items that have none."""

from pathlib import Path
from typing import Annotated

import typer

write_app = typer.Typer(
    help="Texts for items that have none, by a language model that reads their neighbours.\n\n"
    "Example: recsys write train my-dataset --out writer, then: recsys write fill my-dataset writer --out filled",
    no_args_is_help=True,
)
DatasetArgument = Annotated[Path, typer.Argument(help="A Dataset folder.")]
TablesOption = Annotated[
    Path | None,
    typer.Option(
        "--tables", help="Folder of feature tables (recsys features extract); default: DATASET-features."
    ),
]


@write_app.command("train")
def train(
    dataset: DatasetArgument,
    out: Annotated[Path, typer.Option("--out", help="Folder of the writer.")],
    tables: TablesOption = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting: --set config.entry=cross, --set train.epochs=5"),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", help="Seed of new weights and of the order of items.", min=0)
    ] = 0,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda")] = "cpu",
) -> None:
    """Learn to write the text of items from those that have one.

    Examples:

      recsys write train my-dataset --out writer

      recsys write train my-dataset --out writer --set config.entry=cross --set config.lora_rank=0
    """
    from recsys.present import write

    write.train(dataset, out, tables, set_ or [], seed, device)


@write_app.command("fill")
def fill(
    dataset: DatasetArgument,
    run: Annotated[Path, typer.Argument(help="Folder of a writer.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the filled Dataset.")],
    tables: TablesOption = None,
) -> None:
    """A copy of a Dataset in which missing texts are written; written.json says of which items, and by what.

    Example:

      recsys write fill my-dataset writer --out filled
    """
    from recsys.present import write

    write.fill(dataset, run, out, tables)
