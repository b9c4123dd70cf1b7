"""From answers to full rankings: every fault is counted, every ranking is complete."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.zeroshot.clients.base import Answer
from recsys.zeroshot.parsing import Faults, parse_choice, parse_ranking

NAMES, TITLES, TAIL = list("ABCD"), ["Alien (1979)", "Heat (1995)", "Big (1988)", "Up (2009)"], [3, 2, 1, 0]


def parsed(text: str, finish: str = "stop", history=("Jaws (1975)",)):
    return parse_ranking(Answer(text, finish=finish), NAMES, TITLES, TAIL, history)


@pytest.mark.parametrize(
    ("text", "order", "faults"),
    [
        ('{"ranking": ["B", "A", "D", "C"]}', (1, 0, 3, 2), {}),
        ('```json\n{"ranking": ["b", "a", "d", "c"]}\n```', (1, 0, 3, 2), {}),
        ('["B", "A", "D", "C"]', (1, 0, 3, 2), {}),
        ('{"ranking": ["B", "B", "A"]}', (1, 0, 3, 2), {"duplicate": 1, "missing": 2}),
        ('{"ranking": ["C", "Z", "Titanic (1997)"]}', (2, 3, 1, 0), {"foreign": 2, "missing": 3}),
        ('{"ranking": ["C", "Jaws (1975)"]}', (2, 3, 1, 0), {"foreign": 1, "history": 1, "missing": 3}),
        ('{"ranking": ["heat (1995)", "Alien  (1979)"]}', (1, 0, 3, 2), {"missing": 2}),
        ("1. Heat (1995)\n2. Big (1988)\n", (1, 2, 3, 0), {"invalid": 1, "missing": 2}),
        ("B. Heat\nD. Up\n", (1, 3, 2, 0), {"invalid": 1, "missing": 2}),
        ('{"ranking": ["B", "A", ', (1, 0, 3, 2), {"invalid": 1, "missing": 2}),
        ("I cannot help with that.", (3, 2, 1, 0), {"invalid": 1, "missing": 4, "refused": 1}),
        ("", (3, 2, 1, 0), {"invalid": 1, "missing": 4}),
        ("{}", (3, 2, 1, 0), {"missing": 4}),
    ],
)
def test_known_answers(text, order, faults):
    found = parsed(text)
    assert found.order == order
    assert found.faults == Faults(answers=1, **faults)


def test_how_it_ended_is_counted():
    assert parsed('["A"]', "length").faults.truncated == 1
    assert parsed("no", "refusal").faults == Faults(1, invalid=1, missing=4, refused=1)


@given(
    st.text(max_size=80)
    | st.lists(st.text(max_size=6) | st.sampled_from([*NAMES, *TITLES]) | st.integers()).map(json.dumps)
)
def test_any_text_gives_a_full_ranking_and_counts_add_up(text):
    found = parsed(text)
    assert sorted(found.order) == [0, 1, 2, 3]
    named = 4 - found.faults.missing
    rest = [place for place in TAIL if place not in found.order[:named]]
    assert list(found.order[named:]) == rest


@given(st.permutations(NAMES), st.lists(st.sampled_from(NAMES), max_size=3), st.integers(0, 4))
def test_duplicates_and_holes_in_json(order, again, kept):
    found = parsed(
        json.dumps({"ranking": [*order[:kept], *[name for name in again if name in order[:kept]]]})
    )
    assert [NAMES[place] for place in found.order[:kept]] == list(order[:kept])
    assert found.faults.missing == 4 - kept
    assert found.faults.duplicate == sum(name in order[:kept] for name in again)


@pytest.mark.parametrize(
    ("text", "place"),
    [('{"choice": "B"}', 1), ("B", 1), ("B. Heat (1995)", 1), ("Heat (1995)", 1), ("none", None)],
)
def test_choices(text, place):
    found, faults = parse_choice(Answer(text), NAMES, TITLES)
    assert found == place and faults.missing == (place is None)
    assert parse_choice(Answer("yes."), ("Yes", "No"))[0] == 0
