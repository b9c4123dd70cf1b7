"""The rules of the source tree: who may import whom, what is shipped, what stays out."""

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from source_tree import FOLDERS, PROJECT, ROOT, modules, name_of, reach, sources, within

from recsys.registry import EMBEDDERS, EXTRACTORS, MODELS
from recsys.sources import SOURCES

LAYERS = (
    ("recsys.errors",),
    ("recsys.schema",),
    ("recsys.dataset", "recsys.splits", "recsys.metrics"),
    ("recsys.features",),
    ("recsys.models",),
    ("recsys.train", "recsys.evaluate"),
    ("recsys.pipeline",),
    ("recsys.zeroshot",),
    ("recsys.cli",),
)
"""Lowest first: a layer reaches the layers below it, never one above."""
SERVED = ("recsys.bundle", "recsys.bundle_writing", "recsys.serving")
FORBIDDEN = {
    **{name: (*SERVED, "recsys.tracking") for layer in LAYERS[:6] for name in layer},
    **{
        name: (
            "recsys.models",
            "recsys.features",
            "recsys.train",
            "recsys.evaluate",
            "recsys.pipeline",
            "torch",
        )
        for name in SERVED
    },
}
"""And these, however far down: what is fitted knows nothing of serving, what serves nothing of fitting."""
FORBIDDEN["recsys.models"] += (
    "recsys.files",
    "recsys.dataset",
    "recsys.splits",
    "pandas",
    "polars",
    "fastapi",
)
ONLY = {
    "mlflow": ("recsys.tracking",),
    "accelerate": ("recsys.train",),
    "fastapi": (
        "recsys.serving.admin",
        "recsys.serving.api",
        "recsys.serving.browse",
        "recsys.serving.routes",
    ),
    "uvicorn": ("recsys.serving.run",),
    "redis": ("recsys.serving.state.redis",),
    # the last but one say whether there is one; RecBole's driver runs in its own environment
    "torch": (
        "recsys.models", "recsys.features", "recsys.train", "recsys.averaging", "recsys.checkpoint", "recsys.cli",
        "recsys.leaks", "recsys.zeroshot.clients",
        "recsys.doctor", "recsys.torchvision_cure", "recsys.recbole.driver",
    ),
    **{
        name: ("recsys.features", "recsys.models.notellm2", "recsys.zeroshot.clients")
        for name in ("transformers", "sentence_transformers", "open_clip", "timm")
    },
    "openai": ("recsys.zeroshot.clients.openai_endpoint",),
    "pandas": (),
    "ray": ("recsys.features.ray_engine",),
    "matplotlib": ("recsys.plots",),
    **{name: () for name in ("pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")},
}  # fmt: skip
"""Package -> the only modules that import it themselves."""
ON_REQUEST = {"faiss", "redis"}
"""Extras that serving imports when it is asked for what needs them."""
DISTRIBUTIONS = {"pillow": "PIL", "prometheus-client": "prometheus_client"}
"""Distributions that are imported under another name."""


def shown(rule: str, found: dict[str, set[str]]) -> str:
    lines = [f"{name} -> {', '.join(sorted(targets))}" for name, targets in sorted(found.items())]
    return "\n".join([rule, *lines])


def members(prefix: str) -> list[str]:
    return [name for name in modules() if within(name, prefix)]


def test_layers_reach_downwards_only():
    wrong: dict[str, set[str]] = {}
    for level, layer in enumerate(LAYERS):
        above = [prefix for higher in LAYERS[level + 1 :] for prefix in higher]
        for name in (name for prefix in layer for name in members(prefix)):
            found = {target for target in reach(name) if any(within(target, prefix) for prefix in above)}
            if found:
                wrong[name] = found
    assert not wrong, shown("a layer reaches one above it", wrong)


@pytest.mark.parametrize("prefix", FORBIDDEN)
def test_forbidden_reach(prefix):
    assert members(prefix), f"{prefix} is gone: change the table"
    wrong = {
        name: found
        for name in members(prefix)
        if (found := {target for target in reach(name) for wall in FORBIDDEN[prefix] if within(target, wall)})
    }
    assert not wrong, shown(f"{prefix} reaches what it must not", wrong)


def test_errors_and_schema_stand_alone():
    assert not any(within(target, "recsys") for target in reach("recsys.errors"))
    assert {target for target in reach("recsys.schema") if within(target, "recsys")} == {"recsys.errors"}


def test_no_import_circles():
    """Not even through an import inside a function."""
    wrong = {
        name: {name} for name in modules() if name in {t for d in modules()[name].imports for t in around(d)}
    }
    assert not wrong, shown("these can reach themselves", wrong)


def around(name: str) -> frozenset[str]:
    return reach(name) | {name} if name in modules() else frozenset()


@pytest.mark.parametrize("package", ONLY)
def test_packages_in_few_hands(package):
    wrong = {
        name: {package}
        for name, module in modules().items()
        if any(within(target, package) for target in module.imports)
        and not any(within(name, prefix) for prefix in ONLY[package])
    }
    assert not wrong, shown(f"{package} is imported outside {', '.join(ONLY[package]) or 'no module'}", wrong)


def test_serving_needs_the_base_install_only():
    """Everything that bundle and serving can reach comes with `pip install recsys`."""
    base = {
        requirement.split(">")[0].split("=")[0].split("<")[0]
        for requirement in PROJECT["project"]["dependencies"]
    }
    allowed = {DISTRIBUTIONS.get(name, name) for name in base} | {
        "recsys",
        "starlette",
        "anyio",
    }  # fastapi brings starlette, and starlette anyio
    wrong: dict[str, set[str]] = {}
    for name in (name for prefix in SERVED for name in members(prefix)):
        found = {target.split(".")[0] for target in reach(name)} - allowed - set(sys.stdlib_module_names)
        found -= ON_REQUEST  # inside functions, and a missing one is told
        if found:
            wrong[name] = found
    assert not wrong, shown("outside the base install", wrong)


def test_imports_inside_name_the_package():
    """`import models.x` or `from . import x` would load a module a second time under another name."""
    bare = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"recsys"}
    wrong = {
        name: found
        for name, module in modules().items()
        if (found := {t for t in module.imports if t.startswith(".") or t.split(".")[0] in bare})
    }
    assert not wrong, shown("inside the package import recsys....", wrong)


def test_own_imports_exist():
    wrong = {
        name: found
        for name, module in modules().items()
        if (found := {t for t in module.imports if within(t, "recsys") and t not in modules()})
    }
    assert not wrong, shown("no such module", wrong)


def test_no_eval_and_no_bare_except():
    wrong: dict[str, set[str]] = {}
    for name, module in modules().items():
        for node in ast.walk(module.tree):
            found = None
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("eval", "exec")
            ):
                found = node.func.id
            elif isinstance(node, ast.ExceptHandler) and node.type is None:
                found = "bare except"
            elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                found = None if ast.unparse(node.value) == "False" else "allow_pickle"
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "torch.save"):
                found = ast.unparse(node.func)
            if found:
                wrong.setdefault(name, set()).add(f"{found} in line {node.lineno}")
    assert not wrong, shown("not in this package", wrong)


def test_files_stay_short():
    files = [*sources(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files
    }
    assert not {name: length for name, length in lengths.items() if length > 400}


@pytest.mark.parametrize(
    "table",
    [MODELS, EMBEDDERS, EXTRACTORS, SOURCES],
    ids=["models", "embedders", "extractors", "sources"],
)
def test_registered_names_lead_somewhere(table):
    for name, target in table.items():
        module, _, attribute = target.partition(":")
        assert module in modules(), f"{name}: no module {module}"
        defined = {node.name for node in modules()[module].tree.body if isinstance(node, ast.ClassDef)}
        assert attribute in defined, f"{name}: no class {attribute} in {module}"


def test_every_package_is_listed():
    tree = {name_of(path.parent / "__init__.py") for path in sources()}
    settings = PROJECT["tool"]["setuptools"]
    assert set(settings["packages"]) == tree
    assert settings["package-dir"] == {package: folder for folder, package in FOLDERS.items()}


def shipped() -> set[str]:
    """Files of the tree as the wheel should hold them."""
    found = set()
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("."):
                found.add(f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder).as_posix()}")
    return found


def test_the_wheel_holds_the_tree(tmp_path):
    """Built from a copy, so that no build folder is left behind."""
    pytest.importorskip("build", reason="the package `build` is not installed")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == shipped()


HEAVY = ("torch", "polars", "mlflow", "transformers", "lightgbm", "fastapi", "scipy")
PROGRAMS = {
    "import recsys": "import recsys",
    "recsys --help": (
        "import sys\nfrom recsys.cli import main\nsys.argv = ['recsys', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code"
    ),
}


def loaded_by(program: str, folder: Path) -> set[str]:
    """Top-level packages that a program leaves in sys.modules."""
    report = "import sys\nprint('LOADED', *sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\n{report}"], capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("LOADED ")[2].split())


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_light_start(program, tmp_path):
    loaded = loaded_by(PROGRAMS[program], tmp_path)
    assert "recsys" in loaded
    assert not loaded & set(HEAVY)


def test_the_server_loads_neither_torch_nor_mlflow(tmp_path):
    loaded = loaded_by("import recsys.bundle, recsys.serving.api, recsys.serving.pyfunc", tmp_path)
    assert "fastapi" in loaded
    assert not loaded & {"torch", "transformers", "mlflow", "scipy", "sklearn", "pandas"}
