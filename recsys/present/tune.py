"""What `recsys tune` shows and writes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from recsys.errors import require
from recsys.files import write_bytes
from recsys.present import out, told
from recsys.recipe import Recipe, merge
from recsys.tuning import Tuned, nested
from recsys.tuning import tune as search


def tune(recipe: Recipe, root: Path, trials: int, models: tuple[str, ...]) -> None:
    """The table of what each model got and reached, and the best settings as a recipe."""
    found = search(recipe, root, trials, models=models, told=told())
    table = Table(
        title=f"validation {recipe.train.monitor.metric}, {trials} trials a model; test was out of reach"
    )
    for heading in ("model", "best", "complete", "pruned", "failed", "minutes", "settings"):
        table.add_column(heading, overflow="fold")
    for one in found:
        settings = ", ".join(f"{key} = {_short(value)}" for key, value in one.settings.items())
        counts = (str(one.trials[state]) for state in ("complete", "pruned", "fail"))
        table.add_row(
            escape(one.model), f"{one.best:.4f}", *counts, f"{one.seconds / 60:.1f}", escape(settings)
        )
    out.print(table)
    path = root / "tune" / f"{recipe.name}.toml"
    write_bytes(path, written(recipe, found).encode())
    out.print(f"recipe {path}  (recsys run {path})", soft_wrap=True)


def written(recipe: Recipe, found: Sequence[Tuned]) -> str:
    """The recipe with the settings that were found, as TOML; models that were not tuned stay as they are."""
    tomli_w = require("tomli_w", "tune", purpose="writing a recipe")
    values = _without_none(recipe.model_dump(mode="json", exclude_defaults=True))
    for one in found:
        table = values["models"][one.model]
        for key, value in one.settings.items():
            table = merge(table, nested(key, value))
        values["models"][one.model] = table
    return tomli_w.dumps(values)


def _without_none(value: Any) -> Any:
    """TOML has no null: a key that is left out says the same."""
    if isinstance(value, dict):
        return {key: _without_none(entry) for key, entry in value.items() if entry is not None}
    return [_without_none(entry) for entry in value] if isinstance(value, list) else value


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
