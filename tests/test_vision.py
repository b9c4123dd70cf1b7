"""Image encoders by name: vectors and pixels are those of the libraries themselves, and mistakes are told in a line."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from vision_models import (
    TINY_CLIP,
    picture,
    processor,
    register_open_clip,
    save_open_clip,
    save_pictures,
    save_transformers,
)

from recsys.errors import ConfigError, FeatureError
from recsys.features.extract import make_extractor
from recsys.features.image.backends import load_vision
from recsys.features.image.decode import decode
from recsys.features.image.extractor import ImageExtractor

pytest.importorskip("open_clip", reason="the extra `clip` is not installed")
import torch

KINDS = ("clip", "clip_tower", "siglip", "siglip2", "dinov2", "dinov3")
SIZES = [(60, 40), (33, 71), (32, 32), (20, 17), (101, 55), (31, 64), (257, 255), (64, 31)]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, dict]:
    """name -> settings of an image table; all of them tiny."""
    folder = tmp_path_factory.mktemp("models")
    weights = save_open_clip(folder / "open_clip")
    name = register_open_clip(folder)
    found = {kind: {"encoder": save_transformers(folder / kind, kind)} for kind in KINDS}
    found["open_clip"] = {"encoder": f"open_clip:{name}", "weights": weights}
    found["open_clip folder"] = {"encoder": f"open_clip:local-dir:{folder / 'open_clip'}"}
    found["open_clip random"] = {"encoder": f"open_clip:{name}", "random_weights": True}
    found["timm"] = {"encoder": "timm:test_vit", "random_weights": True}
    return found


def extractor(**settings) -> ImageExtractor:
    made = make_extractor({"kind": "image", **settings}, where="features.image")
    made.workers = 0
    return made


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    return save_pictures(tmp_path_factory.mktemp("pictures"), 5)


def opened(files: list[Path]) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in files]


def prepared(settings: dict, path: Path) -> np.ndarray:
    """What the network is given for one picture."""
    vision = extractor(**settings).vision
    return vision._prepared([decode(path, vision.geometry)])[0][0].numpy()


def test_every_backend(models, files):
    """Finite, of the width that it says, the same twice, whatever the batch, and another for another picture."""
    for name, settings in models.items():
        made = extractor(**settings)
        vectors = made.encode(files)
        assert vectors.dtype == np.float32 and vectors.shape == (5, made.vision.width), name
        assert np.isfinite(vectors).all() and len(np.unique(vectors.round(4), axis=0)) == 5, name
        np.testing.assert_array_equal(vectors, extractor(**settings).encode(files), err_msg=name)
        for size in (1, 2, 4):
            np.testing.assert_allclose(
                vectors, extractor(**settings, batch_size=size).encode(files), atol=1e-5, err_msg=name
            )
        norms = np.linalg.norm(vectors, axis=1)
        joint = name.startswith(("clip", "siglip", "open_clip"))
        assert made.unit == joint == made.identity()["normalised"], name
        assert np.allclose(norms, 1, atol=1e-5) == joint, name


def test_identity(models, tmp_path):
    """Two encoders never share a key; the same weights in another place have the same one."""
    identities = {name: extractor(**settings).identity() for name, settings in models.items()}
    for name, facts in identities.items():
        json.dumps(facts)
        assert len(facts["weights"]) == 64 and "/" not in facts["encoder"], name  # no paths
        assert facts["preprocessing"]["mean"] and facts["preprocessing"]["resample"] in (
            "bicubic",
            "bilinear",
        )
        assert ("random_weights" in facts) == ("random" in name or name == "timm")
        assert facts["encoder"] == extractor(**models[name]).identity()["encoder"]
    keys = {name: extractor(**settings).key() for name, settings in models.items()}
    assert len(set(keys.values())) == len(keys)
    assert identities["open_clip"]["weights"] == identities["open_clip folder"]["weights"]
    assert identities["open_clip"]["weights"] != identities["open_clip random"]["weights"]

    moved = extractor(encoder=save_transformers(tmp_path / "elsewhere", "clip"))
    assert moved.key() == keys["clip"]
    assert extractor(**models["clip"], columns=["other"]).key() == keys["clip"]
    assert extractor(**models["clip"], columns=["other"]).identity() != moved.identity()
    save_open_clip(tmp_path / "numbers", preprocess={"mean": [0.5, 0.5, 0.5]})
    assert extractor(encoder=f"open_clip:local-dir:{tmp_path / 'numbers'}").key() != keys["open_clip folder"]


def test_open_clip_gives_its_own_vectors(models, files, tmp_path):
    import open_clip

    folder = models["open_clip folder"]["encoder"].removeprefix("open_clip:")
    model, _, transform = open_clip.create_model_and_transforms(folder)
    with torch.inference_mode():
        expected = model.eval().encode_image(torch.stack([transform(image) for image in opened(files)]), True)
    for name in ("open_clip", "open_clip folder"):
        np.testing.assert_allclose(extractor(**models[name]).encode(files), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(32, 32), (40, 24)])
def test_pixels_of_open_clip(tmp_path, resize_mode, size):
    from open_clip.transform import PreprocessCfg, image_transform_v2

    # for "shortest" and no square it takes bicubic whatever is asked
    interpolation = "bicubic" if resize_mode == "shortest" and size[0] != size[1] else "bilinear"
    numbers = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "fill_color": 90}
    numbers |= {"size": size, "interpolation": interpolation, "resize_mode": resize_mode}
    config = TINY_CLIP | {"vision_cfg": TINY_CLIP["vision_cfg"] | {"image_size": size, "patch_size": 8}}
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": numbers})
    )
    vision = load_vision(f"open_clip:local-dir:{tmp_path}", random_weights=True)
    transform = image_transform_v2(PreprocessCfg(**numbers), is_train=False)
    for number, shape in enumerate(SIZES):
        picture(number, shape).save(tmp_path / "picture.png")
        ours = vision._prepared([decode(tmp_path / "picture.png", vision.geometry)])[0][0].numpy()
        expected = transform(picture(number, shape)).numpy()
        np.testing.assert_allclose(ours, expected, atol=1e-6, err_msg=str(shape))


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_gives_its_own_vectors_and_pixels(models, tmp_path, kind):
    """DINOv3's own processor resizes floating point numbers and so is not met to the last bit."""
    from transformers import AutoModel, CLIPVisionModelWithProjection

    own, folder = processor(kind), models[kind]["encoder"].removeprefix("transformers:")
    loader = CLIPVisionModelWithProjection if kind == "clip_tower" else AutoModel
    model = loader.from_pretrained(folder).eval()
    path = tmp_path / "picture.png"
    for number, shape in enumerate(SIZES):
        picture(number, shape).save(path)
        given = own(picture(number, shape), return_tensors="pt")
        pixels, step = given["pixel_values"][0].numpy(), 2.5 / 255 if kind == "dinov3" else 1e-5 / 2
        np.testing.assert_allclose(prepared(models[kind], path), pixels, atol=2 * step, err_msg=str(shape))
        with torch.inference_mode():
            joint = hasattr(model, "get_image_features")
            found = model.get_image_features(**given) if joint else model(**given)
        vector = (found.image_embeds if kind == "clip_tower" else found.pooler_output)[0]
        vector = vector / vector.norm() if extractor(**models[kind]).unit else vector
        ours = extractor(**models[kind]).encode([path])[0]
        np.testing.assert_allclose(ours, vector.numpy(), atol=0.05 if kind == "dinov3" else 1e-5)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(32, 32), (40, 24)])
def test_pixels_of_timm(tmp_path, monkeypatch, crop_mode, size):
    import timm

    numbers = {
        "input_size": (3, *size), "crop_pct": 0.9, "crop_mode": crop_mode, "interpolation": "bicubic",
        "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4),
    }  # fmt: skip
    monkeypatch.setattr(timm.data, "resolve_model_data_config", lambda model: numbers)
    vision = load_vision("timm:test_vit", random_weights=True)
    transform = timm.data.create_transform(**numbers, is_training=False)
    for number, shape in enumerate(SIZES):
        picture(number, shape).save(tmp_path / "picture.png")
        ours = vision._prepared([decode(tmp_path / "picture.png", vision.geometry)])[0][0].numpy()
        expected = transform(picture(number, shape)).numpy()
        np.testing.assert_allclose(ours, expected, atol=1e-6, err_msg=str(shape))


def test_timm_reads_its_own_files(tmp_path, files):
    """With the classifier that is not wanted, and without it; what does not fit is no file of this model."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(3)
    model = timm.create_model("test_resnet").eval()
    save_file(model.state_dict(), tmp_path / "whole.safetensors")
    rest = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("fc.")}
    save_file(rest, tmp_path / "headless.safetensors")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    with torch.inference_mode():
        batch = torch.stack([transform(image) for image in opened(files)])
        expected = model.forward_head(model.forward_features(batch), pre_logits=True).numpy()
    found = [
        extractor(encoder="timm:test_resnet", weights=tmp_path / f"{name}.safetensors")
        for name in ("whole", "headless")
    ]
    for made in found:
        np.testing.assert_allclose(made.encode(files), expected, atol=1e-5)
    assert found[0].key() == found[1].key()
    del rest[min(name for name in rest if name.endswith(".weight"))]
    save_file(rest, tmp_path / "holes.safetensors")
    with pytest.raises(FeatureError, match=r"timm:test_resnet: cannot be loaded .*as timm saves them"):
        extractor(encoder="timm:test_resnet", weights=tmp_path / "holes.safetensors").key()


def test_a_tag_brings_its_preprocessing_and_activation(tmp_path, monkeypatch):
    """A weights file that was fetched by hand is used as the tag it belongs to would be."""
    import open_clip

    name, weights = register_open_clip(tmp_path), save_open_clip(tmp_path / "saved")
    tag = {
        "url": "",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "resize_mode": "squash",
        "quick_gelu": True,
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, {"ours": tag})
    with pytest.raises(
        FeatureError, match=rf"preprocessing of their own; name the tag .*open_clip:{name}:ours"
    ):
        load_vision(f"open_clip:{name}", weights)
    vision = load_vision(f"open_clip:{name}:ours", weights)
    assert vision.geometry.fit == "squash" and vision.mean == (0.5, 0.5, 0.5)
    assert vision.facts["encoder"] == f"open_clip:{name}:ours"
    pixels = [decode(path, vision.geometry) for path in save_pictures(tmp_path / "pictures", 2)]
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, {"ours": tag | {"quick_gelu": False}})
    assert not np.allclose(vision(pixels), load_vision(f"open_clip:{name}:ours", weights)(pixels), atol=1e-4)


def test_mistakes_are_told_in_one_line(models, tmp_path):
    """Nothing falls back in silence, least of all to random weights."""
    name = models["open_clip"]["encoder"].removeprefix("open_clip:")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_CLIP}))
    (tmp_path / "words.safetensors").write_text("these are words")
    absent = tmp_path / "absent.safetensors"
    wrong = {
        "open_clip:ViT-B-33": ({}, "no model 'ViT-B-33'; did you mean 'ViT-B-32'"),
        "open_clip:qqqqqq": ({}, r"open_clip\.list_models\(\)"),
        "open_clip:ViT-B-32:openia": ({}, "no weights 'openia' of ViT-B-32; expected one of: openai"),
        "open_clip:ViT-B-32": ({}, r"would be random; open_clip:ViT-B-32:TAG \(one of: openai"),
        "open_clip:ViT-B-32:openai": ({}, "cannot be loaded .*give the weights file"),
        f"open_clip:{name}": ({"weights": absent}, f"{absent}: no such weights file"),
        f"open_clip:{name}:": ({"weights": tmp_path / "words.safetensors"}, "cannot be loaded"),
        f"open_clip:local-dir:{tmp_path}/empty": ({}, "empty: no open_clip_config.json"),
        f"open_clip:local-dir:{tmp_path}/bare": ({}, "bare: no weights in this folder"),
        "timm:resnet51": ({}, "no model 'resnet51'; did you mean .*'resnet50'"),
        "timm:resnet18": ({}, r"would be random; timm:resnet18\.TAG \(one of: a1_in1k"),
        "timm:resnet18.a9": ({}, "no weights 'a9' of resnet18; expected one of: a1_in1k"),
        "timm:resnet18.a1_in1k": ({}, "cannot be loaded .*give the weights file"),
        "timm:resnet18 ": ({"weights": tmp_path / "words.safetensors"}, "differ in their preprocessing"),
        "timm:test_vit": ({"weights": absent}, "no such weights file"),
        "transformers:openai/clip-vit-base-patch32": (
            {},
            r"cannot be loaded .*give a local folder with config\.json",
        ),
        f"transformers:{tmp_path}/empty": ({}, "cannot be loaded"),
    }
    for encoder, (settings, words) in wrong.items():
        with pytest.raises(FeatureError, match=words) as raised:
            extractor(encoder=encoder.rstrip(": "), **settings).key()
        assert "\n" not in str(raised.value)
    assert not [kept for kept in logging.getLogger().handlers if type(kept) is logging.StreamHandler]


def test_an_incomplete_checkpoint_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    save_transformers(tmp_path, "dinov2")
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if "layernorm" not in name},
              tmp_path / "model.safetensors", {"format": "pt"})  # fmt: skip
    with pytest.raises(FeatureError, match=r"lack 2 tensors, first 'layernorm\.bias'; they would be random"):
        load_vision(f"transformers:{tmp_path}")


def test_what_transformers_cannot_encode(tmp_path):
    import transformers

    config = transformers.BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(FeatureError, match="BertModel does not encode pictures"):
        load_vision(f"transformers:{tmp_path / 'bert'}")
    save_transformers(tmp_path / "clip", "clip")
    (tmp_path / "clip/preprocessor_config.json").unlink()
    (tmp_path / "clip/processor_config.json").unlink(missing_ok=True)
    with pytest.raises(FeatureError, match=r"put the model's preprocessor_config\.json into its folder"):
        load_vision(f"transformers:{tmp_path / 'clip'}")
    for change, words in (
        ({"do_resize": False}, "preprocessing with do_resize is not supported"),
        ({"do_center_crop": False}, "pictures of any shape are not supported"),
        ({"rescale_factor": 1.0}, "preprocessing with rescale_factor is not supported"),
        ({"size": {"longest_edge": 40}}, "preprocessing to size .* is not supported"),
    ):
        numbers = processor("clip").to_dict() | change
        (tmp_path / "clip/preprocessor_config.json").write_text(json.dumps(numbers))
        with pytest.raises(FeatureError, match=words):
            load_vision(f"transformers:{tmp_path / 'clip'}")


def test_settings_that_do_not_go_together():
    for settings, words in (
        ({"encoder": "efficientnet"}, "did you mean 'efficientnet_lite0'"),
        ({"encoder": "openclip:ViT-B-32"}, "did you mean 'open_clip:NAME'"),
        ({"encoder": "timm:"}, "an image encoder"),
        ({"random_weights": True}, "no weights or random_weights"),
        ({"encoder": "transformers:x", "weights": "w.safetensors"}, "no weights or random_weights"),
        ({"encoder": "open_clip:local-dir:x", "weights": "w.safetensors"}, "they lie in the folder"),
        ({"encoder": "open_clip:x", "weights": "w", "random_weights": True}, "not both"),
        ({"columns": []}, "at least 1"),
    ):
        with pytest.raises(ConfigError, match=words):
            make_extractor({"kind": "image", **settings}, where="features.image")
    for encoder in ("open_clip:ViT-B-32:openai", "timm:resnet18.a1_in1k"):
        with pytest.raises(FeatureError, match="names weights, and asks for random ones"):
            extractor(encoder=encoder, random_weights=True).key()


def test_a_model_of_the_usual_size(files):
    made = extractor(encoder="open_clip:ViT-B-32", random_weights=True)
    vectors = made.encode(files[:2])
    assert vectors.shape == (2, 512) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert made.vision.geometry.crop == (224, 224)
