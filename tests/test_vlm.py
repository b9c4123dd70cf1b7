"""Vision-language models as embedders: what is read, where the vector is taken, what a key depends on."""

import numpy as np
import polars as pl
import pytest
import text_models
import torch
import vision_models
import vlm_models
from transformers import AutoProcessor, LlavaModel

import recsys
from recsys.errors import FeatureError
from recsys.features.extract import make_extractor
from recsys.features.image.decode import decode


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return text_models.save_llava(tmp_path_factory.mktemp("llava") / "model")


@pytest.fixture(scope="module", params=["llava", "qwen3_vl"])
def each(request, encoder, tmp_path_factory) -> str:
    """One picture size and several; plain positions and multimodal ones."""
    if request.param == "llava":
        return encoder
    pytest.importorskip("torchvision")  # the video half of its processor needs it
    return vlm_models.save_qwen3_vl(tmp_path_factory.mktemp("qwen") / "model")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Both, both, picture alone, both, text alone, neither."""
    folder = tmp_path_factory.mktemp("items")
    vision_models.save_pictures(folder / "media", 4)
    items = pl.DataFrame(
        {
            "item_id": range(6),
            "title": ["w1 w2", "w3", None, "w4", "w5 w6 w7", None],
            "image_path": ["0.png", "1.png", "2.png", "3.png", None, None],
        }
    )
    pairs = pl.DataFrame({"item_id": [0], "other_id": [1]})
    return recsys.Dataset.from_frames(folder / "data", items=items, pairs=pairs, media_root=folder / "media")


def extracted(dataset, encoder, out, **settings):
    table = {"kind": "multimodal", "encoder": encoder, "template": "{title}"} | settings
    return recsys.extract_features(dataset, {"notes": table}, out=out, progress=False)["notes"]


def test_every_item_by_what_it_has(dataset, each, tmp_path):
    both = extracted(dataset, each, tmp_path)
    assert both.present_E.tolist() == [True] * 5 + [False]
    np.testing.assert_allclose(np.linalg.norm(both.values_EF[:5], axis=1), 1, atol=1e-5)
    text = extracted(dataset, each, tmp_path, column=None)
    image = extracted(dataset, each, tmp_path, template=None)
    assert text.present_E.tolist() == [True, True, False, True, True, False]
    assert image.present_E.tolist() == [True] * 4 + [False] * 2
    for row in (0, 1, 3):
        assert not np.allclose(both.values_EF[row], text.values_EF[row], atol=1e-3)
        assert not np.allclose(both.values_EF[row], image.values_EF[row], atol=1e-3)
    np.testing.assert_allclose(both.values_EF[4], text.values_EF[4], atol=1e-5)
    np.testing.assert_allclose(both.values_EF[2], image.values_EF[2], atol=1e-5)


def test_batching_changes_nothing(dataset, each, tmp_path):
    one, many = (extracted(dataset, each, tmp_path / str(size), batch_size=size) for size in (1, 8))
    np.testing.assert_allclose(one.values_EF[:5], many.values_EF[:5], atol=1e-5)
    assert one.fingerprint == many.fingerprint


def state(dataset, encoder, text: str, picture: str) -> torch.Tensor:
    """[L, D] by hand, one item."""
    from PIL import Image

    name = encoder.partition(":")[2]
    processor, model = AutoProcessor.from_pretrained(name), LlavaModel.from_pretrained(name).eval()
    canvas = make_extractor({"kind": "multimodal", "encoder": encoder}, where="test")._canvas
    image = Image.fromarray(decode(dataset.media_root / picture, canvas))
    given = processor(text=[text], images=[image], return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        return model(**given).last_hidden_state[0]


@pytest.mark.parametrize(("pooling", "take"), [("last", lambda x: x[-1]), ("mean", lambda x: x.mean(0))])
def test_the_vector_by_hand(dataset, encoder, tmp_path, pooling, take):
    made = extracted(
        dataset, encoder, tmp_path, pooling=pooling, instruction="w8", ending=" w9", normalise=False
    )
    expected = take(state(dataset, encoder, "w8<image> w1 w2 w9", "0.png"))
    np.testing.assert_allclose(made.values_EF[0], expected.numpy(), atol=1e-5)


def test_nested_width(dataset, encoder, tmp_path):
    whole, cut = extracted(dataset, encoder, tmp_path), extracted(dataset, encoder, tmp_path, width=5)
    expected = whole.values_EF[:5, :5] / np.linalg.norm(whole.values_EF[:5, :5], axis=1, keepdims=True)
    np.testing.assert_allclose(cut.values_EF[:5], expected, atol=1e-5)
    with pytest.raises(FeatureError, match="at most 16"):
        extracted(dataset, encoder, tmp_path, width=99)


@pytest.mark.parametrize(
    "change",
    [{"instruction": "w1"}, {"pooling": "mean"}, {"prompt": "plain"}, {"ending": " w1"}, {"width": 4}, {"max_side": 64},
     {"template": None}, {"column": None}, {"generation_prompt": False}, {"normalise": False}],
)  # fmt: skip
def test_a_key_changes_with_what_changes_vectors(encoder, change):
    base = {"kind": "multimodal", "encoder": encoder, "template": "{title}"}
    first, other = (make_extractor(table, where="test").key() for table in (base, base | change))
    assert first != other
    assert make_extractor(base | {"batch_size": 3}, where="test").key() == first


def test_another_picture_under_the_same_name_is_another_content(encoder, tmp_path):
    vision_models.save_pictures(tmp_path / "media", 2)
    items = pl.DataFrame({"item_id": [0, 1], "title": ["w1", "w2"], "image_path": ["0.png", "1.png"]})
    pairs = pl.DataFrame({"item_id": [0], "other_id": [1]})
    data = recsys.Dataset.from_frames(
        tmp_path / "data", items=items, pairs=pairs, media_root=tmp_path / "media"
    )
    before = extracted(data, encoder, tmp_path / "out")
    vision_models.picture(9).save(tmp_path / "media" / "0.png")
    after = extracted(data, encoder, tmp_path / "out")
    assert not np.allclose(before.values_EF[0], after.values_EF[0], atol=1e-4)
    assert np.array_equal(before.values_EF[1], after.values_EF[1])
    (tmp_path / "media" / "0.png").write_bytes(b"no picture")
    left = extracted(data, encoder, tmp_path / "out")
    assert left.present_E.tolist() == [False, True]


def test_mistakes_are_told_in_one_line(dataset, encoder, tmp_path):
    with pytest.raises(FeatureError, match="does not read text and pictures together"):
        extracted(dataset, text_models.save_llama(tmp_path / "llama"), tmp_path / "out", prompt="plain")
    with pytest.raises(FeatureError, match="does not read text and pictures together"):
        extracted(dataset, text_models.save_blip(tmp_path / "plain"), tmp_path / "out", prompt="plain")
    with pytest.raises(FeatureError, match="no chat template"):
        extracted(dataset, text_models.save_blip(tmp_path / "blip"), tmp_path / "out")
    with pytest.raises(FeatureError, match="cannot be loaded"):
        extracted(dataset, f"transformers:{tmp_path / 'nowhere'}", tmp_path / "out")
    with pytest.raises(FeatureError, match="no column 'photo'"):
        extracted(dataset, encoder, tmp_path / "out", column="photo")
