"""What the probes say of models whose habits are planted."""

from dataclasses import replace

import numpy as np
import pytest
from zeroshot_case import GROUPS, SIZE, experiment, headline, planted, run

from recsys.zeroshot import probes
from recsys.zeroshot.asking import contest
from recsys.zeroshot.blending import Blend, margins, standard, tuned
from recsys.zeroshot.cases import controlled
from recsys.zeroshot.clients.base import Answer, Usage
from recsys.zeroshot.clients.mock import Mock, overlap_taste
from recsys.zeroshot.lab import Lab, Step


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return planted(tmp_path_factory.mktemp("probes") / "data")


def laid(data, root, client=None, **tables) -> tuple[Lab, Step]:
    config = experiment(data, client={"kind": "mock", "model": "overlap", "cache": "off"}, **tables)
    (name,) = config.variant_names
    return Lab.open(config, root, client), Step(name, *config.variant(name), "test", 24)


def test_the_position_probe_tells_who_cares_for_slots(data, tmp_path):
    found = {}
    for name, client in {"fair": Mock(_distinct), "biased": Mock(_distinct, slot_bias=4.0)}.items():
        lab, step = laid(data, tmp_path / name, client)
        asked, rows = lab.asked("test", 24), list(range(24))
        found[name] = probes.position_bias(lab.ranker(step), lab.step_cases(step), asked, rows, 10, 2)
    assert list(found["fair"]["ndcg_by_slot"]) == ["0", "2", "4", "7", "9"]  # quarters of ten slots
    assert found["fair"]["spread"] < 1e-9 and found["fair"]["users"] == 24
    slots = list(found["biased"]["ndcg_by_slot"].values())
    assert found["biased"]["spread"] > 0.2 and slots == sorted(slots, reverse=True)


def _distinct(history, title) -> float:
    """No two titles are liked alike, so that nothing hangs on ties."""
    return overlap_taste()(history, title) + 0.001 * int(title.split()[-1])


def test_squares_of_orders_take_a_slot_preference_out_of_the_result(data, tmp_path):
    biased = Mock(_distinct, slot_bias=30.0)
    values = {}
    for name, rank in {"one": {}, "square": {"rounds": 10, "combine": "scores"}}.items():
        config = experiment(data, rank={"mode": "letters"} | rank)
        result = run(config, tmp_path / name, biased)
        values[name] = headline(result, result.outcome.facts["main"])
        slots = result.outcome.contenders[result.outcome.facts["main"]]["slots"]
        assert slots["share"] > 0.9 and slots["distance"] > 0.8  # seen in the answers either way
    assert values["square"] > values["one"] + 0.1


def test_similar_users_get_similar_answers_and_a_deaf_model_gives_one_answer(data, tmp_path):
    deaf = Mock(lambda history, title: 0.01 * int(title.split()[-1]))
    found = {}
    for name, client in {"listens": Mock(_distinct), "deaf": deaf}.items():
        lab, step = laid(data, tmp_path / name, client)
        found[name] = probes.answer_similarity(
            lab.ranker(step), lab.step_cases(step), list(range(20)), lab.vectors_ID, 0, 2
        )
    assert found["deaf"]["slope"] == pytest.approx(0, abs=1e-9) and found["deaf"]["mean_overlap"] == 1.0
    assert found["listens"]["slope"] > 0.1 > found["deaf"]["slope"]
    assert found["listens"]["intercept"] < 1.0 and 0.2 < found["listens"]["chance"] < 0.8


def test_popularity_of_lists_against_the_taste_of_users(data, tmp_path):
    lab, _ = laid(data, tmp_path)
    asked = lab.asked("test", 24)
    counts = lab.split.fit_log().item_counts()
    popular = np.take_along_axis(asked.lists_QC, np.argsort(-counts[asked.lists_QC], axis=1), axis=1)
    up, down = (probes.log_popularity_difference(lists, asked, 3) for lists in (popular, popular[:, ::-1]))
    assert up > down and down < 0
    row_0 = (
        np.log1p(counts[popular[0, :3]]).mean() - np.log1p(counts[asked.queries.queries.history[0]]).mean()
    )
    one = replace(asked, queries=asked.queries.take(np.array([0])))
    assert probes.log_popularity_difference(popular[:1], one, 3) == pytest.approx(row_0)


def test_a_model_that_knows_titles_by_heart(data, tmp_path):
    class Learned(Mock):
        def chat(self, messages, schema=None):
            known = {"dragon": "castle", "rocket": "planet"}
            first = messages[-1].text.split('"')[1]
            return Answer(known.get(first, "no idea"), Usage(5, 5))

    lab, _ = laid(data, tmp_path, Learned(_distinct))
    shelf = replace(lab.plain_shelf, titles=[" ".join(title.split()[:2]) for title in lab.plain_shelf.titles])
    items = [0, SIZE, 2 * SIZE, 3 * SIZE]
    assert len(items) == GROUPS
    assert probes.memory(lab.client, shelf, items, lab.config.prompt.wording) == {"share": 0.5, "titles": 4}


def test_diversity_before_and_after_mmr(data, tmp_path):
    lab, _ = laid(data, tmp_path)
    lists = lab.asked("test", 24).lists_QC
    lists = np.take_along_axis(
        lists, np.argsort(lists // SIZE, axis=1, kind="stable"), axis=1
    )  # group by group
    spread = probes.spread_lists(lists, lab.vectors_ID, 0.3)
    assert (np.sort(spread, axis=1) == np.sort(lists, axis=1)).all()
    before, after = (probes.intra_list_distance(found, lab.vectors_ID, 4) for found in (lists, spread))
    assert after > before + 0.1
    assert (probes.spread_lists(lists, lab.vectors_ID, 1.0) == lists).all()
    same = np.tile(lists[:, :1], (1, 3))
    assert probes.intra_list_distance(same, lab.vectors_ID, 3) == pytest.approx(0, abs=1e-6)


def test_rank_biased_overlap():
    assert probes.rbo([1, 2, 3], [1, 2, 3]) == pytest.approx(1.0)
    assert probes.rbo([1, 2], [3, 4]) == 0
    weights = np.array([1, 0.9, 0.81])
    by_hand = (weights * [0, 1, 1]).sum() / weights.sum()
    assert probes.rbo([1, 2, 3], [2, 1, 3]) == pytest.approx(by_hand)


def test_controls_change_histories_alone(data, tmp_path):
    lab, step = laid(data, tmp_path, prompt={"examples": 1, "length": 5})
    cases = lab.step_cases(step)
    for control in ("no_history", "shuffled", "other_user"):
        changed = controlled(cases, control, 0)
        assert [case.candidates for case in changed] == [case.candidates for case in cases]
        if control == "shuffled":
            assert all(sorted(a.history) == sorted(b.history) for a, b in zip(cases, changed, strict=True))
            assert sum(a.history != b.history for a, b in zip(cases, changed, strict=True)) > 20
        if control == "other_user":
            assert sorted(case.history for case in changed) == sorted(case.history for case in cases)
            assert all(a.history is not b.history for a, b in zip(cases, changed, strict=True))
        if control == "no_history":
            assert not any(case.history or case.examples for case in changed)


def test_shuffled_pictures_tell_who_looks_at_them(data, tmp_path):
    """A model that ranks by captions alone falls to chance where these are other items'."""
    shown = {"history": "caption", "candidates": "caption", "length": 5}
    config = experiment(
        data, prompt=shown, captions={"source": "text", "words": 3}, controls=["shuffled_images"], users=60
    )
    result = run(config, tmp_path)
    own, shuffled = headline(result, "overlap"), headline(result, "overlap.shuffled_images")
    assert own > shuffled + 0.1 and abs(shuffled - headline(result, "random")) < 0.15


def test_blends(data, tmp_path):
    lab, step = laid(data, tmp_path, candidates={"n": 10, "base": "popularity"})
    asked = lab.asked("test", 24)
    truth = np.array(
        [[item in asked.queries.targets[row] for item in items] for row, items in enumerate(asked.lists_QC)]
    )
    noise = np.random.default_rng(0).random(truth.shape)
    knows, guesses = truth + 0.1 * noise, noise
    blend, reached = tuned(guesses, knows, asked, 10)
    assert reached == 1.0 and blend.weight >= 0.5
    useless, base_alone = tuned(knows, noise, asked, 10)
    assert base_alone == 1.0 and useless == Blend(
        0.0, useless.margin
    )  # equal ones: that which asks the model least
    assert not useless.asked_Q(knows).any()
    gate = Blend(1.0, float(np.median(margins(guesses))))
    lists = gate.lists_QC(guesses, knows, asked.lists_QC)
    best = np.take_along_axis(asked.lists_QC, np.argsort(-guesses, axis=1, kind="stable"), axis=1)
    sure = ~gate.asked_Q(guesses)
    assert 8 <= sure.sum() <= 16 and (lists[sure] == best[sure]).all()
    assert (probes.ndcg_Q(lists, asked, 10)[~sure] == 1.0).all()
    assert standard(np.ones((1, 3))).tolist() == [[0, 0, 0]]
    found = contest("x", lab.ranker(step), lab.step_cases(step), 2)
    assert (np.argsort(-found.preferences_QC(), axis=1, kind="stable") == found.places_QC).all()


def test_posters_are_described_once_by_the_offline_captioner(tmp_path, monkeypatch):
    """The caption path of prompts; what the classifier sees is tested with its extractor."""
    from recsys.features.image import labels

    described: list[int] = []

    def label_texts(paths):
        described.append(len(paths))
        return [f"seen {path.stem} and very much more" for path in paths]

    monkeypatch.setattr(labels, "label_texts", label_texts)
    data = planted(tmp_path / "data", pictures=True)
    tables = {
        "captions": {"source": "labels", "words": 2},
        "prompt": {"history": "title_caption", "length": 3},
    }
    lab, step = laid(data, tmp_path / "runs", **tables)
    text = lab.ranker(step).rank(lab.step_cases(step)[0]).replies[0].messages[-1].text
    last = lab.step_cases(step)[0].history[-1]
    assert f"3. {lab.plain_shelf.titles[last]} - seen {last} ..." in text
    shown = {item for case in lab.step_cases(step) for item in case.history[-3:]} - {0}
    assert described == [len(shown)]
    again, step = laid(data, tmp_path / "runs", **tables)
    assert again.shelf.captions == lab.shelf.captions and described == [len(shown)]
    column, _ = laid(data, tmp_path / "runs", captions={"source": "text", "words": 2})
    assert column.shelf.captions[0] == "about dragon ..."
