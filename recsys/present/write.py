"""What `recsys write` shows. Answers go to stdout, folders to stderr."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from recsys import schema
from recsys.config import override, parse
from recsys.dataset import Dataset
from recsys.errors import ConfigError
from recsys.features.field_table import load_table
from recsys.features.makers import default_folder
from recsys.features.table import Table
from recsys.written_text import WriterRecipe, WriterRun, fill_text, train_writer

out, err = Console(), Console(stderr=True)
_SHOWN = 3


def train(folder: Path, to: Path, tables: Path | None, settings: list[str], seed: int, device: str) -> None:
    """Train a writer, and say what it learnt from and how well."""
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"--device {device!r}", expected="cpu or cuda")
    recipe = parse(WriterRecipe, override({}, settings), where="--set")
    dataset = Dataset.open(folder)
    run = train_writer(dataset, recipe, _tables(dataset, recipe, tables), to, seed=seed, device=device)
    losses = " ".join(f"{epoch['loss']:.3f}" for epoch in run.facts["training"])
    out.print(f"{run.facts['learnt_from']:,} texts; loss a token, epoch by epoch: {losses}", soft_wrap=True)
    err.print(f"[green]ok[/]  {escape(str(run.folder))}", soft_wrap=True)


def fill(folder: Path, run: Path, to: Path, tables: Path | None) -> None:
    """Fill a Dataset, and show the first texts."""
    dataset, opened = Dataset.open(folder), WriterRun.open(run)
    made = fill_text(dataset, opened, _tables(dataset, opened.recipe, tables), to)
    column = opened.recipe.column
    before, after = dataset.items[column], made.items[column]
    written = (before.is_null() & after.is_not_null()).arg_true().to_list()
    out.print(f"{len(written):,} texts written, {after.null_count():,} items still have none")
    for row in written[:_SHOWN]:
        out.print(escape(f"  {dataset.items[schema.ITEM][row]}: {after[row]}"), soft_wrap=True)
    err.print(f"[green]ok[/]  {escape(str(to))}", soft_wrap=True)


def _tables(dataset: Dataset, recipe: WriterRecipe, folder: Path | None) -> dict[str, Table]:
    """Those that the recipe names. Raises FeatureError where one is not there."""
    root = default_folder(dataset) if folder is None else folder
    return {name: load_table(root / name) for name in recipe.tables}
