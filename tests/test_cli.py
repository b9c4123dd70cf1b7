"""The command line: a user's mistake is one line and exit code 2, a bug keeps its traceback and exit code 1."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from recsys import cli
from recsys.files import locked

RECIPE = """
name = "tiny"

[data]
kind = "dataset"
path = "{data}"

[split]
method = "leave_last_out"
catalogue = "listed"

[models.popularity]

[models.ease]
regularisation = 5.0

[evaluate]
ks = [5]
bootstrap = 20

[track]
enabled = false
"""


@pytest.fixture
def tiny(tmp_path, chain) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE.format(data=chain.path))
    return path


# Recipes


def test_a_misspelt_required_key_names_the_right_one(refused, tmp_path):
    """Two errors in one: the key that is there is unknown, the one that is needed is missing."""
    (tmp_path / "typo.toml").write_text('name = "x"\n[dta]\nkind = "dataset"\n[models.ease]\n')
    assert "unknown key 'dta'" in refused("run", "typo.toml")
    assert "did you mean 'data'?" in refused("run", "typo.toml")


def test_unknown_recipe(refused):
    assert "did you mean 'movielens-100k'?" in refused("run", "movielens-10k")
    assert "movielens-100k" in refused("run", "zzz")
    assert "no such recipe file" in refused("run", "absent.toml")
    assert "no recipe 'zzz'" in refused("data", "prepare", "zzz", "somewhere")


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("train.epoch=3", "did you mean 'epochs'?"),
        ("trian.epochs=3", "did you mean 'train'?"),
        ("train.monitor.metrics=x", "did you mean 'metric'?"),
        ("split.metod=random", "did you mean 'method'?"),
        ("evaluate.mesk=off", "did you mean 'mask'?"),
        ("bundle.history=3", "did you mean 'histories'?"),
        ("models.ease.regularization=3", "did you mean 'regularisation'?"),
        ("models.eese.regularisation=3", "did you mean 'ease'?"),
        ("models.other.model='eas'", "did you mean 'ease'?"),
        ("data.kind='datasets'", "did you mean 'dataset'?"),
        ("data.pth='x'", "did you mean 'path'?"),
        ("features.text.kind='txt'", "did you mean 'text'?"),
        ("train.epochs='many'", "train.epochs = 'many'"),
        ("train.epochs=0", "train.epochs = 0"),
        ("train.lr=-1", "train.lr = -1"),
        ("train=3", "train = 3"),
        ("models=3", "models = 3"),
        ("models.ease=3", "models.ease = 3"),
        ("models.ease.train=3", "models.ease.train = 3"),
        ("split.method='leave_first_out'", "leave_first_out"),
        ("split.cuts=[0.9,0.8]", "ascending"),
        ("split.method.x=3", "is a value, not a table"),
        ("evaluate.ks=[]", "cut-offs"),
        ("seeds=[0,0]", "different seeds"),
        ("train.epochs", "key.path=value"),
        ("=3", "key.path=value"),
        ("models.ease.regularisation=", "models.ease: regularisation = ''; expected"),
    ],
)
def test_wrong_overrides(refused, tiny, assignment, expected):
    assert expected in refused("run", tiny, "--set", assignment)
    assert expected in refused("run", tiny, "--dry-run", "--set", assignment)


def test_a_legal_override(recsys, tiny):
    table = "features.words.kind=hash_text:HashText"
    code, out, _ = recsys("run", tiny, "--dry-run", "--set", table, "--set", "models.ease.regularisation=3")
    assert code == 0 and "features.words" in out


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("[evaluate]", "[evalute]", "did you mean 'evaluate'?"),
        ("ks = [5]", "kss = [5]", "did you mean 'ks'?"),
        ('method = "leave_last_out"', 'metod = "random"', "did you mean 'method'?"),
        ("ks = [5]", "ks = [5", "not valid TOML"),
        ("ks = [5]", 'ks = "five"', "evaluate.ks"),
        ('name = "tiny"', "", "name"),
        ("regularisation = 5.0", 'regularisation = "five"', "regularisation"),
        ("enabled = false", "enabled = 7", "track.enabled"),
    ],
)
def test_wrong_recipe_files(refused, tiny, old, new, expected):
    assert old in tiny.read_text()
    tiny.write_text(tiny.read_text().replace(old, new))
    message = refused("run", tiny)
    assert expected in message and ("tiny.toml" in message or "models." in message)


def test_files_that_are_no_recipes(refused, tmp_path):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    assert "not valid TOML" in refused("run", "binary.toml")


@pytest.mark.parametrize("seeds", ["", "a", "1,,2", "1;2", "0,1,x", "1.5", "-1", "1,1"])
def test_bad_seeds(refused, tiny, seeds):
    assert "seeds" in refused("run", tiny, f"--seeds={seeds}")


def test_device(refused, tiny):
    assert "expected cpu or cuda" in refused("run", tiny, "--device", "gpu")
    assert "expected cpu or cuda" in refused("train", tiny, "--device", "gpu")


def test_missing_dataset(refused, tiny, tmp_path):
    assert "no dataset.json" in refused("run", tiny, "--data", "nowhere")
    assert "no dataset.json" in refused("data", "inspect", "nowhere")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "dataset.json").write_text("{")
    assert "damaged" in refused("data", "inspect", "broken")
    assert "damaged" in refused("run", tiny, "--data", "broken")


def test_prepare_never_replaces_something_else(refused, tmp_path, tiny):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("keep me")
    assert "something else" in refused("data", "prepare", tiny, "home")
    assert "there is a file of this name" in refused("data", "prepare", tiny, "tiny.toml")


def test_prepare_and_inspect(recsys, tiny, tmp_path):
    for _ in range(2):  # a Dataset may be replaced by a Dataset
        code, out, _ = recsys("data", "prepare", tiny, "mine")
        assert code == 0 and "150" in out
    assert recsys("data", "inspect", "mine")[1] == out
    assert recsys("run", tiny, "--data", "mine")[0] == 0
    code, out, _ = recsys("data", "list")
    assert code == 0 and "movielens-100k" in out and "dataset" in out


def test_locked_output_folder(refused, recsys, tiny, tmp_path):
    with locked(tmp_path / "runs"):
        assert "in use by process" in refused("run", tiny)
    assert recsys("run", tiny)[0] == 0


def test_output_folder_that_is_none(refused, tiny):
    assert "cannot write here" in refused("run", tiny, "--out", "tiny.toml")
    assert "cannot write here" in refused("run", tiny, "--out", "tiny.toml/inside")


# Use


@pytest.mark.parametrize(
    "arguments",
    [("run",), ("serve",), ("frobnicate",), ("run", "x", "--no-such-option"), ("recommend", "b", "-k", "many"),
     ("similar", "b"), ("serve", "b", "--port", "99999"), ("data", "frobnicate"), ("data", "prepare", "x")],
    ids=" ".join,
)  # fmt: skip
def test_usage_errors(recsys, arguments):
    code, out, err = recsys(*arguments)
    assert (code, out) == (2, "") and "Traceback" not in err and "Usage" in err


def commands(group=None, path=("recsys",)):
    group = group or typer.main.get_command(cli.app)
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


@pytest.mark.parametrize(("path", "command"), list(commands()), ids=lambda value: str(value))
def test_every_help_has_an_example(recsys, path, command):
    code, out, _ = recsys(*path[1:], "--help")
    assert code == 0
    wanted = f"{' '.join(path)} " if path[-1] not in ("doctor", "list") else " ".join(path)
    words = " ".join(out.replace("Usage: ", "Usage:").split())
    assert words.count(wanted) >= 1 + words.startswith("Usage:"), f"no example of {wanted}"
    assert any(word in out for word in ("Example:", "Examples:", "Start with:"))


def test_a_run_end_to_end(recsys, tiny, tmp_path):
    code, out, err = recsys("run", tiny)
    assert code == 0 and "ease" in out and "look 1 at this test set" in out
    assert "error" not in err
    code, out, _ = recsys("run", tiny)
    assert code == 0 and out.startswith("Nothing to do")
    assert recsys("recommend", "runs/tiny/bundle", "--user", 3, "-k", 2)[0] == 0
    code, out, _ = recsys("run", tiny, "--dry-run")
    assert code == 0 and "to be made" not in out


def recsys_process(code: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    """The entry point in a process of its own, after `code`."""
    program = f"import sys; sys.argv = ['recsys', *{list(arguments)!r}]\n{code}\nfrom recsys.cli import main; main()"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=cwd)


def test_a_bug_keeps_its_traceback(tmp_path):
    code = "import recsys.present\nrecsys.present.sources = lambda: 1 / 0"
    done = recsys_process(code, "data", "list", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "ZeroDivisionError" in done.stderr and "error:" not in done.stderr


def test_a_mistake_in_a_process_of_its_own(tmp_path):
    done = recsys_process("", "run", "movielens-10k", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: no recipe 'movielens-10k'") and done.stderr.count("\n") == 1


def test_help_imports_nothing_heavy(tmp_path):
    code = """
import atexit
heavy = ("torch", "polars", "mlflow", "numpy", "fastapi", "transformers", "lightgbm")
atexit.register(lambda: print("HEAVY", [name for name in heavy if name in sys.modules], file=sys.stderr))
"""
    done = recsys_process(code, "--help", cwd=tmp_path)
    assert done.returncode == 0 and "HEAVY []" in done.stderr


def test_doctor(recsys):
    code, out, _ = recsys("doctor")
    assert code == 0
    for word in ("python", "torch", "libgomp", "accelerator", "safetensors"):
        assert word in out
