"""Recipes: one TOML file, typed, with overrides, and an error that names the nearest legal key."""

import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from recsys.errors import ConfigError, nearest


class Config(BaseModel):
    """Base of every configuration: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


ConfigT = TypeVar("ConfigT", bound=Config)


def parse(kind: type[ConfigT], values: Mapping[str, Any], *, where: object) -> ConfigT:
    """Validate `values` as `kind`; raises ConfigError naming the first wrong key in one line."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        # a misspelt key makes two errors, "missing" and "extra": the second one says what is wrong
        found = sorted(error.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
        raise _explain(kind, found[0], where) from None


def _explain(kind: type[BaseModel], error: ErrorDetails, where: object) -> ConfigError:
    path = [str(part) for part in error["loc"]]
    if error["type"] == "extra_forbidden":
        owner: Any = kind
        for part in path[:-1]:
            field = owner.model_fields.get(part) if hasattr(owner, "model_fields") else None
            owner = field.annotation if field is not None else None
        legal = getattr(owner, "model_fields", {})
        fix = nearest(path[-1], legal) if legal else "remove it"
        return ConfigError(f"unknown key {'.'.join(path)!r}", where=where, fix=fix)
    place = ".".join(path) or kind.__name__
    if isinstance(error["input"], dict | BaseModel):  # keys that do not go together: the value is all of them
        return ConfigError(f"{place}: {error['msg']}", where=where)
    return ConfigError(f"{place} = {error['input']!r}", where=where, expected=error["msg"])


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(
            "no such recipe file", where=path, fix=f"shipped recipes: {', '.join(shipped())}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not valid TOML ({error})", where=path, fix="correct the line it names") from None


def shipped() -> list[str]:
    """Names of the recipes inside the package."""
    folder = resources.files("recsys.recipes")
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".toml"))


def read_recipe(name: str) -> dict[str, Any]:
    """A shipped recipe by name, or a TOML file by path."""
    if name in shipped():
        return tomllib.loads((resources.files("recsys.recipes") / f"{name}.toml").read_text(encoding="utf-8"))
    path = Path(name)
    if path.suffix != ".toml" and not path.exists():
        raise ConfigError(f"no recipe {name!r}", fix=f"{nearest(name, shipped())}; or give a .toml file")
    return read_toml(path)


def override(values: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """A copy with `a.b=v` assignments applied; v is read as TOML, else taken as a string."""
    merged = _copy(values)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise ConfigError(
                f"--set {assignment!r}", expected="key.path=value", fix="e.g. --set train.epochs=3"
            )
        *parents, last = key.strip().split(".")
        table = merged
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise ConfigError(f"--set {assignment!r}: {parent!r} is a value, not a table")
        table[last] = _value(text.strip())
    return merged


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(entry) for key, entry in value.items()}
    return list(value) if isinstance(value, list) else value
