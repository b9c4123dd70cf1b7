"""Pretrained models that image and text extractors share: names checked, weights found and hashed, or refused.

An encoder is named by one string: "open_clip:MODEL[:PRETRAINED]", "open_clip:local-dir:FOLDER" or
"transformers:NAME_OR_FOLDER". What is loaded here is the whole model, so that an image table and a text table of one
encoder carry one weights hash: where these agree, the two live in one space.
"""

import contextlib
import difflib
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from recsys.errors import FeatureError, require
from recsys.files import digest

_LOCAL = "local-dir:"
_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
T = TypeVar("T")


@dataclass(frozen=True)
class OpenClip:
    """model: in eval mode, float32. preprocess: open_clip's numbers (size, mean, std, interpolation, resize_mode,
    fill_color). tokenizer: makes the tokenizer; raises FeatureError where its files are missing. facts: what a
    manifest says of the model, without paths."""

    model: Any
    preprocess: Mapping[str, Any]
    tokenizer: Callable[[], Any]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Pretrained:
    """A transformers model in eval mode, float32. facts: what a manifest says of it, without paths."""

    model: Any
    facts: Mapping[str, Any]


def load_open_clip(name: str, weights: Path | None = None, random_weights: bool = False) -> OpenClip:
    """name: "MODEL", "MODEL:PRETRAINED" or "local-dir:FOLDER". weights: a local file for MODEL; a tag beside it says
    which preprocessing and activation go with the file.

    Raises FeatureError for an unknown name, and where there are no weights unless `random_weights` says that this is
    meant (they are drawn with a fixed seed).
    """
    where = f"open_clip:{name}"
    # open_clip imports torchvision, and would be to blame where it is missing
    require("torchvision", "clip", purpose=f"the encoder {where!r}")
    open_clip = require("open_clip", "clip", purpose=f"the encoder {where!r}")
    if name.startswith(_LOCAL):
        model_name, tag = f"{_LOCAL}{_checked_folder(name, random_weights)}", ""
    else:
        model_name, tag = _checked_name(open_clip, name)
        _check_weights(open_clip, model_name, tag, weights, random_weights)
    settings: dict[str, Any] = {"require_pretrained": not random_weights, "pretrained_text": False}
    tag_config = open_clip.get_pretrained_cfg(model_name, tag) if tag else {}
    if tag_config.get("quick_gelu"):
        settings["force_quick_gelu"] = True  # open_clip only warns where model and weights differ in this
    if weights is not None:
        settings |= {"pretrained": str(weights), "force_preprocess_cfg": tag_config}
    elif tag:
        settings["pretrained"] = tag
    with _quietly(), explained(where, "give the weights file (`weights`) or `open_clip:local-dir:FOLDER`"):
        model = seeded(lambda: open_clip.create_model(model_name, **settings)).eval()
        architecture = open_clip.get_model_config(model_name)
    shown = _LOCAL[:-1] if name.startswith(_LOCAL) else ":".join(filter(None, (model_name, tag)))
    facts = {
        "encoder": f"open_clip:{shown}",
        "architecture": digest(architecture)[:16],
        "weights": weights_sha256(model),
        "library": f"open_clip_torch {version('open_clip_torch')}",
    }

    def tokenizer() -> Any:
        with (
            _quietly(),
            explained(where, "give a folder with the tokenizer's files: open_clip:local-dir:FOLDER"),
        ):
            return open_clip.get_tokenizer(model_name)

    random_fact = {"random_weights": True} if random_weights else {}
    return OpenClip(model, open_clip.get_model_preprocess_cfg(model), tokenizer, facts | random_fact)


def load_transformers(name: str, *, auto: str = "AutoModel", pooler: bool = True) -> Pretrained:
    """name: a hub name or a local folder. auto: the class of transformers that picks the model's own. pooler: off where
    only token states are read; many checkpoints of text models come without that layer.
    Raises FeatureError where either cannot be had, or weights are missing."""
    where = f"transformers:{name}"
    transformers = require("transformers", "train", purpose=f"the encoder {where!r}")
    torch = require("torch", "train", purpose=f"the encoder {where!r}")
    folder = Path(name).expanduser()
    source = str(folder) if folder.is_dir() else name
    with (
        _quietly(),
        explained(where, "give a local folder with config.json and model.safetensors: transformers:FOLDER"),
    ):
        config = transformers.AutoConfig.from_pretrained(source)
        saved_as = (config.architectures or [""])[0]
        # AutoModel would leave the projection of a tower saved alone out
        kind = getattr(transformers, saved_as if saved_as.endswith("WithProjection") else auto)
        model, loading = kind.from_pretrained(
            source, config=config, dtype=torch.float32, output_loading_info=True
        )
    absent = sorted(loading["missing_keys"])
    if not pooler and absent and all(key.startswith("pooler.") for key in absent):
        model.pooler, absent = None, []
    if absent:
        raise FeatureError(
            f"the weights lack {len(absent)} tensors, first {absent[0]!r}; they would be random",
            where=where,
            fix="give a complete checkpoint of this model",
        )
    architecture = json.loads(config.to_json_string(use_diff=False))
    for changing in ("_name_or_path", "transformers_version", "dtype"):
        architecture.pop(changing, None)
    facts = {
        "encoder": "transformers:folder" if folder.is_dir() else where,
        "architecture": digest(architecture)[:16],
        "weights": weights_sha256(model),
        "library": f"transformers {version('transformers')}",
    }
    return Pretrained(model.eval(), facts)


def weights_sha256(model: Any) -> str:
    """sha256 over the state dict, tensor by tensor: the same for every file format that the weights come in."""
    import torch

    whole = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


def seeded(build: Callable[[], T]) -> T:
    """Random weights are the same in every process, and drawing them leaves torch's own state as it was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def near(name: str, legal: Iterable[str], *, see: str) -> str:
    """Up to three near names; where there are none, where to look (the lists are hundreds of names long)."""
    close = difflib.get_close_matches(name, list(legal), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"see {see}"


@contextlib.contextmanager
def explained(where: str, fix: str) -> Iterator[None]:
    """A library that cannot load what the user named may raise anything: told in one line."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise FeatureError(f"cannot be loaded ({lines[0][:300]})", where=where, fix=fix) from error


def _checked_folder(name: str, random_weights: bool) -> Path:
    folder = Path(name.removeprefix(_LOCAL)).expanduser()
    if not (folder / "open_clip_config.json").is_file():
        raise FeatureError(
            "no open_clip_config.json in this folder",
            where=folder,
            fix="save the model's configuration there",
        )
    found = [path for end in (".safetensors", ".bin", ".pth") for path in folder.glob(f"*{end}")]
    if not found and not random_weights:
        raise FeatureError("no weights in this folder", where=folder, expected="open_clip_model.safetensors")
    if found and random_weights:
        raise FeatureError("there are weights in this folder", where=folder, fix="leave random_weights out")
    return folder


def _checked_name(open_clip: Any, name: str) -> tuple[str, str]:
    """(model, pretrained tag or ""). open_clip would take another tokenizer for a model it does not know."""
    asked, _, tag = name.partition(":")
    model = asked.replace("/", "-")
    if model not in open_clip.list_models():
        raise FeatureError(
            f"open_clip has no model {asked!r}",
            fix=near(model, open_clip.list_models(), see="open_clip.list_models()"),
        )
    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag and not open_clip.is_pretrained_cfg(model, tag):
        raise FeatureError(
            f"open_clip has no weights {tag!r} of {model}", expected=f"one of: {', '.join(tags) or 'none'}"
        )
    return model, tag


def _check_weights(open_clip: Any, model: str, tag: str, weights: Path | None, random_weights: bool) -> None:
    where, tags = f"open_clip:{model}", open_clip.list_pretrained_tags_by_model(model)
    if not (tag or weights or random_weights):
        raise FeatureError(
            "no weights named: every vector would be random",
            where=where,
            fix=f"open_clip:{model}:TAG (one of: {', '.join(tags) or 'none'}), or give the file (`weights`)",
        )
    if random_weights and (tag or weights):
        raise FeatureError(
            "names weights, and asks for random ones", where=where, fix="leave random_weights out"
        )
    if weights is None:
        return
    if not weights.is_file():
        raise FeatureError("no such weights file", where=weights)
    usual = open_clip.transform.PreprocessCfg()
    configs = [open_clip.get_pretrained_cfg(model, known) for known in tags]
    if not tag and configs and not any(all(
        config.get(key) in (None, getattr(usual, key)) for key in _PREPROCESSING
    ) for config in configs):  # fmt: skip
        raise FeatureError(
            "this model's weights come with preprocessing of their own",
            where=where,
            fix=f"name the tag that the file is of, or started from: open_clip:{model}:{tags[0]}",
        )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """open_clip speaks through the root logger, which installs a handler there that prints all later messages twice."""
    root, silent, before = logging.getLogger(), logging.NullHandler(), logging.root.manager.disable
    root.addHandler(silent)
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
        root.removeHandler(silent)
