"""The text of an item: what is cleaned away, how long texts are cut, how batches are filled, what a key rests on."""

import logging
import shutil
from itertools import pairwise

import numpy as np
import pytest
import text_models
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import ConfigError, FeatureError
from recsys.features.base import UnreadableContent
from recsys.features.extract import make_extractor
from recsys.features.text.base import TextEncoder, TextEncoderConfig
from recsys.features.text.clean import clean_text
from recsys.features.text.extractor import TextConfig, TextExtractor, fill
from recsys.features.text.windows import Cut, encode_texts, pieces, spans


class Words(TextEncoder):
    """A word is a token; a text's vector: (sum of the words' numbers, 1), as far as 6 tokens go. It keeps its batches
    and the longest text that it was asked to count."""

    def __init__(self, limit: float = 6, special: int = 0):
        super().__init__(TextEncoderConfig())
        self._limit, self._special = limit, special
        self.batches: list[list[int]] = []
        self.counted = 0

    def identity(self):
        return {}

    @property
    def limit(self):
        return self._limit

    @property
    def special(self):
        return self._special

    def count(self, texts):
        self.counted = max([self.counted, *map(len, texts)])
        return [len(text.split()) for text in texts]

    def vectors(self, texts):
        room = self.limit - self.special
        lengths = [min(room, len(text.split())) for text in texts]
        self.batches.append(lengths)
        return np.array(
            [
                [sum(map(float, text.split()[: int(length)])), 1]
                for text, length in zip(texts, lengths, strict=True)
            ],
            np.float32,
        )


def extractor(**settings) -> TextExtractor:
    return make_extractor({"kind": "text", "template": "{title}"} | settings, where="features.x")


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("  two\n\n words\t", "two words"),
        ("a\x00b\x07", "a b"),
        ("half \ud83d a pair", "half a pair"),
        ("\ufeffmarked", "marked"),
        ("no-break\u00a0space", "no-break space"),
        ("\u200b\u200b", None),
        ("\x00\n\ud800", None),
        ("", None),
        ("—", "—"),
        ("naïve 東京 😀", "naïve 東京 😀"),
        ("R&amp;B <b>loud</b>", "R&amp;B <b>loud</b>"),
    ],
)
def test_cleaning_by_hand(raw, text):
    assert clean_text(raw) == text
    if text:
        assert text.encode() and clean_text(text) == text


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("R&amp;B <b>loud</b>", "R&B loud"),
        ("<p>One</p><p>two<br/>three</p>", "One two three"),
        ('<a href="x">link</a> &lt;kept&gt;', "link <kept>"),
        ("2 < 3 and 5 > 4", "2 < 3 and 5 > 4"),
        ("<!-- note --><div></div>&nbsp;", None),
        ("<" * 50_000, "<" * 50_000),
    ],
)
def test_markup_by_hand(raw, text):
    assert clean_text(raw, markup=True) == text


def test_a_value_without_anything_visible_is_missing():
    template = "{title}. {plot}"
    assert fill(template, {"title": "\x00", "plot": "a\x00 plot"}) == "a plot"
    assert fill(template, {"title": "\u200b", "plot": float("nan")}) is None
    assert fill("{tags}", {"tags": ["\t", "a", None, " b "]}) == "a, b"
    assert (
        fill("{title}\n{plot}", {"title": "a\nb", "plot": "c"}) == "a b\nc"
    )  # the template's own line stays


def test_contents_may_be_cleaned_of_markup(tmp_path):
    import polars as pl

    rows = pl.DataFrame({"title": ["<i>A</i> &amp; B", "<br>", None]})
    assert extractor().contents(rows, None) == ["<i>A</i> &amp; B", "<br>", None]
    assert extractor(clean_html=True).contents(rows, None) == ["A & B", None, None]


@pytest.mark.parametrize("template", ["{title:>10}", "{title!r}", "{}: {title}", "{title", "no column"])
def test_templates_are_plain(template):
    with pytest.raises(ConfigError, match=r"features\.x: template = "):
        extractor(template=template)


@pytest.mark.parametrize(
    ("costs", "room", "overlap", "windows"),
    [
        ([1, 1, 1, 1, 1], 5, 0, [(0, 5)]),
        ([1, 1, 1, 1, 1], 2, 0, [(0, 2), (2, 4), (4, 5)]),
        ([1, 1, 1, 1, 1], 3, 1, [(0, 3), (2, 5)]),
        ([1, 1, 1, 1, 1], 3, 2, [(0, 3), (1, 4), (2, 5)]),
        ([2, 2, 2], 4, 1, [(0, 2), (2, 3)]),  # nothing of the window is as short as the overlap
        ([9, 1, 1], 4, 1, [(0, 1), (1, 3)]),  # larger than the room: alone
        ([5, 5, 9], 10, 5, [(0, 2), (2, 3)]),  # shared and new do not fit together: nothing is shared
        ([0, 3, 0, 3], 3, 1, [(0, 3), (2, 4)]),
    ],
)
def test_spans_by_hand(costs, room, overlap, windows):
    assert list(spans(costs, room, overlap)) == windows


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(1, 12), st.data())
def test_spans_cover_every_piece_once_and_share_no_more_than_asked(costs, room, data):
    overlap = data.draw(st.integers(0, room - 1))
    windows = list(spans(costs, room, overlap))
    assert windows[0][0] == 0 and windows[-1][1] == len(costs)
    for start, stop in windows:
        assert stop > start and (sum(costs[start:stop]) <= room or stop == start + 1)
    for (start, stop), (following, end) in pairwise(windows):
        assert start < following <= stop < end and sum(costs[following:stop]) <= overlap


@given(st.text(max_size=200).map(clean_text).filter(bool))
def test_pieces_make_the_text(text):
    assert "".join(pieces(text)) == text and all(len(piece) <= 33 for piece in pieces(text))


def test_batches_hold_texts_of_one_length_and_rows_keep_their_order():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 60, 100)
    texts = [" ".join(map(str, rng.integers(0, 9, length))) for length in lengths]
    encoder = Words(limit=64)
    vectors, unread = encode_texts(encoder, texts, 8)
    assert unread == 0 and [len(batch) for batch in encoder.batches] == [8] * 12 + [4]
    assert [length for batch in encoder.batches for length in batch] == sorted(lengths, reverse=True)
    padded = sum(max(batch) * len(batch) for batch in encoder.batches) / lengths.sum()
    unsorted = sum(max(lengths[at : at + 8]) * len(lengths[at : at + 8]) for at in range(0, 100, 8))
    assert padded < 1.1 and unsorted / lengths.sum() > 1.4
    np.testing.assert_allclose(vectors[:, 0], [sum(map(int, text.split())) for text in texts])


def test_long_texts_by_hand():
    texts = ["1 2 3 4 5 6 7 8", "1", "9 9 9 9"]
    vectors, unread = encode_texts(Words(limit=4), texts, 2)
    assert vectors[:, 0].tolist() == [10, 1, 36] and unread == 1  # the head alone
    vectors, unread = encode_texts(Words(limit=4), texts, 2, Cut(5, 0))
    assert vectors[:, 0].tolist() == [(4 * 10 + 4 * 26) / 8, 1, 36] and unread == 0
    # with one shared token: 1..4, 4..7, 7..8
    vectors, unread = encode_texts(Words(limit=4), texts, 2, Cut(5, 1))
    assert vectors[0, 0] == np.float32((4 * 10 + 4 * 22 + 2 * 15) / 10) and unread == 0
    vectors, unread = encode_texts(Words(limit=4), texts, 2, Cut(2, 1))
    assert vectors[0, 0] == (4 * 10 + 4 * 22) / 8 and unread == 1  # what lies behind two windows is not read
    # the instruction's tokens are in every window
    vectors, _ = encode_texts(Words(limit=4, special=2), texts, 2, Cut(5, 0))
    assert vectors[0, 0] == (3 + 7 + 11 + 15) / 4
    with pytest.raises(FeatureError, match=r"4 tokens leave 2 for the text .*more than the overlap of 2"):
        encode_texts(Words(limit=4, special=2), texts, 2, Cut(5, 2))


def test_a_text_without_a_limit_is_read_whole():
    vectors, unread = encode_texts(Words(limit=float("inf")), ["1 " * 5000], 2, Cut(2, 1))
    assert vectors[0, 0] == 5000 and unread == 0


def test_a_text_of_a_megabyte_costs_no_more_than_its_windows():
    text = "1 " * 500_000
    encoder = Words(limit=16)
    vectors, unread = encode_texts(encoder, ["1 2", text], 4, Cut(8, 4))
    assert unread == 1 and sum(map(len, encoder.batches)) == 8 + 1
    assert encoder.counted <= 16 * 8 * 32 and vectors[1, 0] == 16
    encoder = Words(limit=16)
    assert encode_texts(encoder, [text], 4)[1] == 1 and encoder.counted <= 16 * 32
    (word,) = encode_texts(Words(limit=16), ["1" * 20], 1, Cut(8, 4))[0]
    assert word[1] == 1


def test_a_text_without_a_token_is_unreadable():
    class Deaf(Words):
        def count(self, texts):
            return [0 if "?" in text else 1 for text in texts]

    with pytest.raises(
        UnreadableContent, match=r"'\?\?': the encoder knows none of its characters"
    ) as raised:
        encode_texts(Deaf(), ["1", "??"], 2)
    assert raised.value.positions == [1]


def test_texts_read_in_part_are_counted(tmp_path, caplog):
    encoder = text_models.save_bert(tmp_path / "bert")
    texts = ["w1 " * 200, "w2", "w3 " * 300]
    with caplog.at_level(logging.INFO):
        extractor(encoder=encoder, max_tokens=16).encode(texts)
    assert caplog.records[-1].levelno == logging.INFO and "2 of 3 texts are read in part" in caplog.text
    extractor(encoder=encoder, long="average", max_tokens=16, overlap=2, max_windows=20).encode(texts)
    assert caplog.records[-1].levelno == logging.WARNING and "1 of 3 texts are read in part" in caplog.text


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Encoder strings by name; "tiny" is a model that open_clip knows by name."""
    import open_clip

    root = tmp_path_factory.mktemp("models")
    tower = text_models.save_open_clip(root / "open_clip")
    text_models.save_open_clip(root / "other_clip", seed=2)
    (root / "configs").mkdir()
    config = text_models.open_clip_config()["model_cfg"]
    text_models.write_json(root / "configs" / "tiny-text.json", config)
    open_clip.add_model_config(root / "configs")
    return {
        "bert": text_models.save_bert(root / "bert"),
        "other": text_models.save_bert(root / "other", seed=1),
        "tower": tower,
        "weights": root / "open_clip" / "open_clip_model.safetensors",
        "other weights": root / "other_clip" / "open_clip_model.safetensors",
    }


LONG = " ".join(f"w{number}" for number in range(120))
KEYS = {
    # field: (the other settings, before, after, whether vectors and key change)
    "encoder": ({}, "bert", "other", True),
    "weights": ({"encoder": "open_clip:tiny-text"}, "weights", "other weights", True),
    "random_weights": (
        {"encoder": "open_clip:tiny-text"},
        False,
        True,
        True,
    ),  # False: with a file, see `made`
    "pooling": ({}, "mean", "last", True),
    "instruction": ({}, None, "w5 w6 ", True),
    "max_tokens": ({}, None, 12, True),
    "normalise": ({}, True, False, True),
    "centre": ({}, None, "imagenet_labels", True),
    "template": ({}, "{title}", "{title} w9", True),
    "clean_html": ({}, False, True, True),
    "long": ({}, "truncate", "average", True),
    "overlap": ({"long": "average"}, 32, 10, True),
    "max_windows": ({"long": "average"}, 32, 2, True),
    "batch_size": ({}, 64, 1, False),
    # entity, hide and hide_seed are in a table's key beside the extractor's; see test_boxes
    "entity": ({}, "item", "user", False),
    "required": ({}, True, False, False),
    "hide": ({}, 0.0, 0.5, False),
    "hide_seed": ({}, 0, 1, False),
}


def test_the_table_names_every_setting():
    assert KEYS.keys() == TextConfig.model_fields.keys()


@pytest.mark.parametrize("field", KEYS)
def test_a_key_changes_with_what_changes_vectors(field, models):
    import polars as pl

    settings, before, after, changes = KEYS[field]
    rows = pl.DataFrame({"title": [LONG, "w1 <w2> w3", "w4"]})

    def made(value):
        given = {"encoder": "bert"} | settings | ({} if value is None else {field: value})
        if field == "random_weights" and not value:
            given["weights"] = "weights"
        given = {
            key: models.get(entry, entry) if isinstance(entry, str) else entry for key, entry in given.items()
        }
        one = extractor(**given)
        return one.key(), one.encode(one.contents(rows, None))

    (key, vectors), (other_key, other_vectors) = made(before), made(after)
    assert (key != other_key) == changes
    same = vectors.shape == other_vectors.shape and np.allclose(vectors, other_vectors, atol=1e-5)
    assert same != changes


def test_a_key_rests_on_the_files_and_not_on_their_place(models, tmp_path):
    folder = models["bert"].removeprefix("transformers:")
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    assert extractor(encoder=f"transformers:{moved}").key() == extractor(encoder=models["bert"]).key()
    tokenizer = moved / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"w1"', '"v1"'))
    assert extractor(encoder=f"transformers:{moved}").key() != extractor(encoder=models["bert"]).key()
    assert str(tmp_path) not in str(extractor(encoder=f"transformers:{moved}").identity())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "open-clip:ViT-B-32"}, r"encoder = 'open-clip:ViT-B-32'; .*did you mean 'open_clip'\?"),
        ({"encoder": "transformers:"}, "the name of an encoder"),
        ({"pooling": "cls"}, "pooling for 'transformers:...' only; 'minilm' brings its own"),
        ({"random_weights": True}, "weights and random_weights for 'open_clip:MODEL' only"),
        (
            {"encoder": "open_clip:local-dir:x", "weights": "x.pt"},
            "no weights beside random_weights, or a folder that holds them",
        ),
        ({"encoder": "open_clip:ViT-B-32", "max_tokens": 16}, "no max_tokens for 'open_clip:...'"),
        ({"long": "averages"}, "long = 'averages'"),
        ({"max_windows": 1}, "max_windows = 1"),
    ],
)
def test_settings_that_do_not_fit_are_told_in_one_line(settings, message):
    with pytest.raises(ConfigError, match=message) as raised:
        extractor(**settings)
    assert "\n" not in str(raised.value)
