"""Visual tokens of every kind of encoder, and what NoteLLM-2 makes of them."""

import numpy as np
import polars as pl
import pytest
import torch
import vision_models

import recsys
from recsys.errors import FeatureError
from recsys.features.extract import make_extractor
from recsys.features.image.tokens import pooled


def made(encoder: str, folder, grid: int = 2, **settings):
    """(tokens [1 + grid², F] of four pictures, the extractor)."""
    paths = vision_models.save_pictures(folder / "pictures", 4)
    extractor = make_extractor(
        {"kind": "image_tokens", "encoder": encoder, "grid": grid, **settings}, where="test"
    )
    extractor.workers = 0
    return extractor.encode(paths).reshape(4, 1 + grid * grid, -1), extractor


def test_places_are_averaged_by_hand():
    states = torch.arange(2 * 17 * 3, dtype=torch.float32).reshape(2, 17, 3)
    found = pooled(states, 2)
    places = states[:, 1:].reshape(2, 4, 4, 3)
    assert torch.equal(found[:, 0], states[:, 0])
    torch.testing.assert_close(found[:, 2], places[:, :2, 2:].mean((1, 2)))
    torch.testing.assert_close(found[:, 3], places[:, 2:, :2].mean((1, 2)))
    without = pooled(states[:, 1:], 1)
    torch.testing.assert_close(without[:, 0], states[:, 1:].mean(1))
    torch.testing.assert_close(without[:, 1], states[:, 1:].mean(1))
    with pytest.raises(FeatureError, match="at most 4"):
        pooled(states, 5)


@pytest.mark.parametrize(
    ("kind", "tower"), [("clip", "CLIPModel"), ("siglip", "SiglipModel"), ("dinov2", None), ("dinov3", None)]
)
def test_towers_of_transformers(kind, tower, tmp_path):
    import transformers

    encoder = vision_models.save_transformers(tmp_path / "model", kind)
    tokens, extractor = made(encoder, tmp_path)
    assert tokens.shape == (4, 5, 16)
    name = encoder.partition(":")[2]
    model = (getattr(transformers, tower) if tower else transformers.AutoModel).from_pretrained(name).eval()
    model = model.vision_model if tower else model
    from recsys.features.image.decode import decode

    pixels = [decode(path, extractor.vision.geometry) for path in sorted((tmp_path / "pictures").iterdir())]
    with torch.inference_mode():
        states = model(pixel_values=extractor.vision._prepared(pixels)[0]).last_hidden_state
    np.testing.assert_allclose(tokens, pooled(states, 2).numpy(), atol=1e-5)


def test_towers_of_open_clip(tmp_path):
    pytest.importorskip("open_clip")
    vision_models.save_open_clip(tmp_path / "model")
    tokens, extractor = made(f"open_clip:local-dir:{tmp_path / 'model'}", tmp_path)
    assert tokens.shape == (4, 5, 64)
    # the places' mean is what the four places average to, whatever the projection
    assert not np.allclose(tokens[:, 0], tokens[:, 1:].mean(1), atol=1e-3)
    assert extractor.unit is False


def test_towers_of_timm(tmp_path):
    pytest.importorskip("timm")
    for name, width in (
        ("resnet18", 512),
        ("vit_tiny_patch16_224", 192),
        ("swin_tiny_patch4_window7_224", 768),
    ):
        tokens, _ = made(f"timm:{name}", tmp_path, random_weights=True)
        assert tokens.shape == (4, 5, width), name
        assert np.isfinite(tokens).all()


def test_a_tower_without_a_square_is_refused(tmp_path):
    encoder = vision_models.save_transformers(tmp_path / "model", "siglip2")
    with pytest.raises(FeatureError, match="no square of places"):
        made(encoder, tmp_path)


@pytest.mark.parametrize("connector", ["linear", "mlp", "qformer"])
def test_a_connector_takes_all_tokens(connector, tmp_path):
    from notellm2_case import SMALL, language

    from recsys.models.embedders.contract import ItemContent, PairContext
    from recsys.models.notellm2.config import NoteLLM2Config
    from recsys.models.notellm2.embedder import NoteLLM2
    from recsys.schema import Dense

    tokens, _ = made(vision_models.save_transformers(tmp_path / "model", "clip"), tmp_path)

    def content(values):
        return ItemContent(
            ["w1", "w2", "w3", None], {"image": Dense(values.reshape(4, -1), np.ones(4, bool))}
        )

    model = NoteLLM2(NoteLLM2Config(**SMALL, image_tokens=5, connector=connector, qformer_width=16))
    model.setup(PairContext(np.array([[0, 1], [2, 3]]), content(tokens), open_language=language))
    before = model.encode(content(tokens))["visual"]
    for token in range(5):
        changed = tokens.copy()
        changed[:, token] += 1
        assert not np.allclose(model.encode(content(changed))["visual"], before, atol=1e-6), token


def test_a_table_of_tokens(tmp_path):
    encoder = vision_models.save_transformers(tmp_path / "model", "clip")
    vision_models.save_pictures(tmp_path / "media", 3)
    items = pl.DataFrame({"item_id": range(4), "image_path": ["0.png", "1.png", "2.png", None]})
    pairs = pl.DataFrame({"item_id": [0], "other_id": [1]})
    data = recsys.Dataset.from_frames(
        tmp_path / "data", items=items, pairs=pairs, media_root=tmp_path / "media"
    )
    asked = {"image": {"kind": "image_tokens", "encoder": encoder, "grid": 1}}
    table = recsys.extract_features(data, asked, out=tmp_path / "out", workers=0, progress=False)["image"]
    assert table.width == 32 and table.present_E.tolist() == [True] * 3 + [False]
    assert table.manifest["extractor"] == "image_tokens" and table.manifest["grid"] == 1
    other = make_extractor(asked["image"] | {"grid": 2}, where="test")
    assert other.key() != make_extractor(asked["image"], where="test").key()
