"""What the README and the notebooks say is run: on a small stand-in for ml-100k, without the network."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import stand_in
from nbclient import NotebookClient

from recsys.recipe import load_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder to work in, where `recsys` is on the path and ml-100k is the stand-in."""
    folder = tmp_path_factory.mktemp("readme")
    stand_in.write_movielens_100k(folder / "data" / "ml-100k")
    return folder


@pytest.fixture(scope="module")
def surroundings(place) -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"RECSYS_DATA": str(place / "data"), "PATH": path, "COLUMNS": "160"}


def run(command: list[str], place: Path, surroundings: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=place, env=surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_commands(place, surroundings):
    (block,) = blocks("bash")
    printed = run(["bash", "-euc", block], place, surroundings)
    assert "look 1 at this test set" in printed
    assert "test data was not looked at" in printed
    assert "like Film 50 (1995)" in printed


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python(place, surroundings, number):
    code = blocks("python")[number]
    printed = run([sys.executable, "-c", code], place, surroundings)
    assert re.search(r"Film \d+|'rows'|5 of 6 rows", printed)


def test_recipe_is_the_shipped_one_in_short(tmp_path):
    (block,) = blocks("toml")
    assert tomllib.loads(block)["name"] == "my-run"
    (tmp_path / "my.toml").write_text(block, encoding="utf-8")
    recipe, shipped = (
        load_recipe(name).model_dump() for name in (str(tmp_path / "my.toml"), "movielens-100k")
    )
    for told in ("data", "split", "train", "evaluate"):
        assert recipe[told] == shipped[told]


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook(notebook, place, surroundings, monkeypatch):
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    book = nbformat.read(notebook, as_version=4)
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(place)}}).execute()
