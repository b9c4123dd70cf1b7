"""What a prompt says and shows, and what it must not say."""

import hashlib

import pytest
from PIL import Image
from zeroshot_case import experiment, planted

from recsys.errors import ConfigError
from recsys.zeroshot.clients.mock import read_prompt
from recsys.zeroshot.config import load_experiment, shipped_experiments
from recsys.zeroshot.lab import Lab
from recsys.zeroshot.messages import canonical
from recsys.zeroshot.prompts import Case, Example, PromptConfig, Prompter, labels
from recsys.zeroshot.shelf import Shelf
from recsys.zeroshot.wording import DOMAINS

TITLES = ["Alien", "Heat", "Big", "Up", "Jaws", "Cars"]
CASE = Case(7, (0, 1, 2), (3, 4, 5), (2, 0, 1), (Example((3, 1), 5),))


@pytest.fixture
def shelf(tmp_path) -> Shelf:
    paths = []
    for number in range(6):
        Image.new("RGB", (40, 60), (40 * number, 10, 10)).save(tmp_path / f"{number}.png")
        paths.append(tmp_path / f"{number}.png")
    captions = [f"picture {number}" if number % 2 else "" for number in range(6)]
    return Shelf(TITLES, captions, [["Horror"], ["Crime"], ["Crime"], [], [], []], [*paths[:5], None])


def said(shelf: Shelf, *, case: Case = CASE, places=(0, 1, 2), **settings) -> str:
    settings = {"domain": "movies"} | settings
    return Prompter(PromptConfig(**settings), shelf).letter(case, places)[-1].text


def test_version_1_stays_as_it_is(shelf):
    """Recorded answers rest on it: a change of wording is a new version."""
    settings = PromptConfig(domain="movies", base_order=True, profile=True, examples=1)
    asked = Prompter(settings, shelf)
    made = [
        asked.listwise(CASE, [1, 0, 2]),
        asked.letter(CASE, [0, 1, 2]),
        asked.pair(CASE, [0, 1]),
        asked.yes_no(CASE, 2),
    ]
    others = [settings.model_copy(update={"strategy": strategy}) for strategy in ("recency", "icl")]
    made += [Prompter(other, shelf).letter(CASE, [0, 1, 2]) for other in others]
    found = hashlib.sha256(repr([canonical(messages) for messages in made]).encode()).hexdigest()
    assert found[:16] == "e9d2498dafe3b86a", found


def test_history_and_candidates_stand_as_shown(shelf):
    history, candidates = read_prompt(Prompter(PromptConfig(), shelf).letter(CASE, [2, 0, 1]))
    assert history == ["Alien", "Heat", "Big"]
    assert candidates == [("A", "Cars"), ("B", "Up"), ("C", "Jaws")]
    assert read_prompt(Prompter(PromptConfig(length=2), shelf).letter(CASE, [0]))[0] == ["Heat", "Big"]


def test_strategies(shelf):
    assert "I watched last is: Big" in said(shelf, strategy="recency")
    icl = said(shelf, strategy="icl")
    assert "3. Big" not in icl and "right answer would have been: Big" in icl
    assert "last is" not in said(shelf) and "Big" in said(shelf)


def test_what_is_told_of_the_user_and_of_others(shelf):
    assert "Crime (2), Horror (1)" in said(shelf, profile=True)
    assert "Crime" not in said(shelf)
    assert "Somebody like me watched: Up; Heat; and then: Cars" in said(shelf)
    empty = said(shelf, case=CASE.without_history(), profile=True, strategy="icl")
    assert "Nothing is known" in empty and "Alien" not in empty and "Somebody" not in empty


def test_the_base_rankers_order_is_told_in_labels_of_the_order_shown(shelf):
    assert "best first: C, A, B." in said(shelf, base_order=True)
    assert "best first: A, C, B." in said(shelf, base_order=True, places=(2, 1, 0))
    assert "best first" not in said(shelf)


@pytest.mark.parametrize(
    ("view", "pictures", "words"),
    [("title", 0, "A. Up"), ("caption", 0, "A. picture 3"), ("title_caption", 0, "A. Up - picture 3"),
     ("image", 2, "A. "), ("title_image", 2, "A. Up"), ("contact_sheet", 1, "A. Up")],
)  # fmt: skip
def test_views(shelf, view, pictures, words):
    message = Prompter(PromptConfig(candidates=view), shelf).letter(CASE, [0, 1, 2])[-1]
    assert len(message.pictures) == pictures and words in message.text
    if view == "image":
        assert "Up" not in message.text.rpartition("Candidates:")[2] and "(no picture)" in message.text
    if view == "caption":
        assert "B. Jaws" in message.text  # without a caption: the title


def test_history_as_pictures(shelf):
    message = Prompter(PromptConfig(history="image", image_side=32), shelf).letter(CASE, [0])[-1]
    assert len(message.pictures) == 3 and max(message.pictures[0].image.size) == 32
    assert "Alien" not in message.text.rpartition("Candidates:")[0].rpartition("History")[2]


@pytest.mark.parametrize("domain", DOMAINS)
def test_domains_have_words_of_their_own(shelf, domain):
    words = DOMAINS[domain]
    text = said(shelf, domain=domain)
    assert f"I have {words.did} these {words.many}" in text and f"will I {words.do} next" in text


def test_wrong_settings_are_told(shelf):
    with pytest.raises(ConfigError, match="did you mean 'movies'"):
        said(shelf, domain="movie")
    with pytest.raises(ConfigError, match=r"prompt\.version"):
        said(shelf, version="9")


def test_labels_are_letters_where_they_suffice():
    assert labels(3) == ["A", "B", "C"] and labels(26)[-1] == "Z" and labels(27)[-1] == "27"


def test_shuffled_pictures_are_all_another_items(shelf):
    moved = shelf.shuffled_pictures(0)
    pairs = list(zip(shelf.paths, moved.paths, strict=True))
    assert all(old != new for old, new in pairs if old is not None) and moved.paths[5] is None
    assert sorted(map(str, moved.paths)) == sorted(map(str, shelf.paths))
    assert moved.titles == shelf.titles and sorted(moved.captions) == sorted(shelf.captions)


def test_no_prompt_holds_what_the_user_took(tmp_path):
    """The truth is among the candidates and nowhere else; examples are of others and of the train part."""
    config = experiment(
        planted(tmp_path / "data"), prompt={"examples": 2, "profile": True, "length": 50}, users=None
    )
    lab = Lab.open(config, tmp_path)
    asked = lab.asked("test", None)
    train = lab.split.fit_log().sequences
    for row, case in enumerate(lab.cases(asked, config.prompt)):
        user = asked.queries.queries.user_Q[row]
        assert case.history == tuple(asked.queries.queries.history[row])
        assert not set(asked.queries.targets[row]) & set(case.history)
        assert len(case.examples) == 2
        for example in case.examples:
            owners = [
                u
                for u in range(lab.split.num_users)
                if train[u].tolist() == [*example.history, example.taken]
            ]
            assert owners and user not in owners


@pytest.mark.parametrize("name", shipped_experiments())
def test_shipped_experiments_are_right(name):
    config = load_experiment(name)
    assert [config.variant(variant) for variant in config.variant_names]


@pytest.mark.parametrize(
    ("assignment", "told"),
    [("users=none", "users"), ("rank.mod='x'", "did you mean 'mode'"),
     ("variants.letters.rank.round=2", "did you mean 'rounds'"), ("variants.letters.x=1", "prompt and rank"),
     ("candidates.base='x'", "candidates.base"), ("hybrid.enabled=true", "names no ranker"),
     ("split.queries='event'", "one query a user"), ("candidates.method='retrieved'", "candidates.retriever")],
)  # fmt: skip
def test_wrong_experiments_are_told(assignment, told):
    with pytest.raises(ConfigError, match=told):
        load_experiment("movielens-100k", [assignment])


def test_unknown_experiments_are_told():
    with pytest.raises(ConfigError, match="did you mean 'ml-1m'"):
        load_experiment("ml-1")
