"""What the sources import, read from their syntax trees."""

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = {
    "recsys": "recsys",
    "features": "recsys.features",
    "models": "recsys.models",
    "serving": "recsys.serving",
}
"""Source folder -> package."""


@dataclass(frozen=True)
class Module:
    """A module's imports: everything that running it, or any function of it, can import by name."""

    name: str
    path: Path
    tree: ast.Module = field(repr=False)
    imports: frozenset[str]


def sources() -> list[Path]:
    """Every Python file of the package."""
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    folder, *inner = path.relative_to(ROOT).with_suffix("").parts
    parts = [FOLDERS[folder], *inner]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Module]:
    """Dotted name -> module, in the whole package."""
    names = {name_of(path): path for path in sources()}
    found = {}
    for name, path in names.items():
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        found[name] = Module(name, path, tree, frozenset(_imports(tree, set(names))))
    return found


def _imports(tree: ast.Module, known: set[str]) -> Iterator[str]:
    """Dotted names; `from a import b` is a.b where that is a module. TYPE_CHECKING blocks never run."""
    for node in _running(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in known else base
        elif isinstance(node, ast.Call) and _called(node) in ("require", "import_module"):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _running(child)


def _called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")


@cache
def reach(name: str) -> frozenset[str]:
    """Everything that can be imported from a module on, own modules and others, itself not included."""
    found: set[str] = set()
    todo = [name]
    while todo:
        for target in modules()[todo.pop()].imports - found:
            found.add(target)
            if target in modules():
                todo.append(target)
    return frozenset(found - {name})


def within(name: str, prefix: str) -> bool:
    """`recsys.models.base` lies within `recsys.models`, `recsys.models_extra` does not."""
    return name == prefix or name.startswith(prefix + ".")
