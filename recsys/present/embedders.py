"""What `recsys features learn` shows, and the tables that a trained embedder stands on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from recsys.config import override, parse
from recsys.dataset import Dataset
from recsys.embedder_recipe import EmbedderRecipe, sources_of
from recsys.embedder_run import EmbedderRun
from recsys.embedder_training import train_embedder
from recsys.errors import ConfigError
from recsys.features.extract import make_extractor
from recsys.features.makers import default_folder, make_tables, stored_settings
from recsys.features.table import FeatureTable
from recsys.registry import EMBEDDERS
from recsys.splits import Split

out, err = Console(), Console(stderr=True)


def learn(
    folder: Path,
    to: Path,
    split: Path | None,
    settings: list[str],
    tables: Path | None,
    teacher: Path | None,
    seed: int,
    device: str,
) -> None:
    """Make the tables that the embedder reads, as they were made before where the recipe says nothing of them; train
    it, and say what came out."""
    dataset, opened = Dataset.open(folder), None if split is None else Split.load(split)
    root = default_folder(dataset) if tables is None else tables
    recipe = parse(EmbedderRecipe, override({}, settings), where="--set").filled(stored_settings(root))
    taught = None if teacher is None else FeatureTable.load(teacher)
    made = {one.name: one.table for one in make_tables(dataset, recipe.tables, root, split=opened)}
    run = train_embedder(dataset, recipe, made, to, split=opened, teacher=taught, seed=seed, device=device)
    training, pairs = run.facts["training"], run.facts["pairs"]
    best = "" if training["best"] is None else f", recall@10 of validation partners {training['best']:.4f}"
    loss = training["history"][training["best_epoch"]]["loss"]
    out.print(
        f"{pairs['count']:,} pairs, epoch {training['best_epoch'] + 1}, loss {loss:.4f}{best}; "
        f"{run.facts['seconds']:.0f} s",
        soft_wrap=True,
    )
    err.print(f"[green]ok[/]  {escape(str(run.folder))}", soft_wrap=True)


def with_embedder(
    asked: Mapping[str, dict[str, Any]], encoder: str, stored: Mapping[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The tables that are asked for, with that of a trained embedder and those that it stands on. stored: kind and
    settings of the tables that are there; one that was made otherwise than the run's is left alone."""
    model, run = _named(encoder)
    opened = EmbedderRun.open(run)
    if opened.name != model:
        raise ConfigError(f"--encoder {encoder}: a run of {opened.name!r}", fix=f"give {opened.name}:{run}")
    name = model.rpartition(":")[2]
    tables = opened.tables
    below = {other for known, one in tables.items() for other in sources_of(one, where=f"tables.{known}")}
    found, of = dict(asked), {}
    for known, settings in tables.items():
        there = asked.get(known, stored.get(known))
        if known != name and (there is None or _alike(there, settings, known)):
            found.setdefault(known, settings)
        elif known in below:  # what stands on it knows it by this name
            raise ConfigError(
                f"table {known!r} is made otherwise than the one that the run learnt with", where=run,
                expected=f"kind and settings {settings}", fix="give another folder with --out",
            )  # fmt: skip
        else:
            of[known] = f"{known}-of-{name}"
            found[of[known]] = settings
    return found | {name: {"kind": "embedder", "run": run, "of": of}}


def _named(encoder: str) -> tuple[str, str]:
    """(model, folder) of MODEL:RUN; a model of somebody else's is "package.module:Class"."""
    own = encoder.partition(":")[0] in EMBEDDERS
    *model, run = encoder.split(":", 1 if own else 2)
    if not run or not model or not (own or len(model) == 2):
        known = ", ".join(f"{name}:RUN" for name in EMBEDDERS)
        raise ConfigError(f"--encoder {encoder!r}", expected=f"one of {known}, with the folder of a run")
    return ":".join(model), run


def _alike(one: Mapping[str, Any], other: Mapping[str, Any], name: str) -> bool:
    """Whether two settings make one table."""
    makers = [make_extractor(settings, where=f"features.{name}") for settings in (one, other)]
    kinds = {settings["kind"] for settings in (one, other)}
    return len(kinds) == 1 and makers[0].config == makers[1].config
