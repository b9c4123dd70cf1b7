"""Swaps under load, refusals that leave the old bundle serving, variants, the shadow."""

import json
import shutil
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.bundle import Bundle
from recsys.bundle_writing import BundleContent, write_bundle
from recsys.errors import BundleError, ServingError
from recsys.schema import Form
from recsys.serving.engine import Query, Ranked, RankingEngine
from recsys.serving.rollout import Rollout, place
from recsys.serving.shadow import WAITING

ITEMS, HISTORY = [5, 3, 9, 1, 7, 2], [3, 9]


def weighted(path: Path, factor: float, text_ids: bool = False) -> Path:
    """A bundle that scores item number i with factor * (i + 1) after any history."""
    size = len(ITEMS)
    prior = factor * np.arange(1, size + 1, dtype=np.float32)
    form = Form("item_item", {"dense": np.zeros((size, size), np.float32), "prior": prior})
    ids = [str(item) for item in ITEMS] if text_ids else ITEMS
    types = {"user": "int", "item": "str" if text_ids else "int"}
    content = BundleContent(
        "weighted", form, pl.DataFrame({"item_id": ids}), np.ones(size, np.int64), None, types, "split", 0
    )
    write_bundle(path, content)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("bundles")
    for name, factor in {"one": 1.0, "two": 2.0, "three": -3.0, "broken": np.nan}.items():
        weighted(made / name, factor)
    weighted(made / "texts", 1.0, text_ids=True)
    return made


def opened(path: Path) -> RankingEngine:
    return RankingEngine(Bundle.open(path))


def make(folder: Path, first: str | None = "one", **options) -> Rollout:
    rollout = Rollout(opened, lambda engine: None, **options)
    if first is not None:
        rollout.load(folder / first)
    return rollout


def top(engine: RankingEngine) -> Ranked:
    return engine.recommend(Query(history=HISTORY), 3, exclude_seen=False)


# Loading and going back


def test_load_and_rollback(folder):
    results: list[str] = []
    warmed: list[str] = []
    rollout = Rollout(
        opened,
        lambda engine: warmed.append(engine.bundle.id),
        clock=iter([50.0, 10.0]).__next__,  # it goes backwards between the loads
        told=results.append,
    )
    with pytest.raises(ServingError, match="no bundle"):
        _ = rollout.current
    one = rollout.load(folder / "one")
    with pytest.raises(ServingError, match="go back"):
        rollout.rollback()
    two = rollout.load(folder / "two")
    assert warmed == [one.bundle_id, two.bundle_id] and one.bundle_id != two.bundle_id
    assert (one.loaded_at, two.loaded_at) == (50.0, 10.0)
    assert (rollout.current, rollout.previous) == (two, one)
    assert rollout.rollback() is one and rollout.current is one and rollout.previous is two
    assert rollout.rollback() is two
    assert results == ["loaded", "loaded", "rolled_back", "rolled_back"]


def test_the_same_bundle_changes_nothing(folder, tmp_path):
    results: list[str] = []
    rollout = make(folder, told=results.append)
    before = rollout.current
    shutil.copytree(folder / "one", tmp_path / "copy")
    assert rollout.load(tmp_path / "copy") is before
    assert rollout.current is before and rollout.previous is None
    assert results == ["loaded", "same"]


def damaged(folder: Path, kind: str, tmp_path: Path) -> Path:
    path = tmp_path / kind
    shutil.copytree(folder / "two", path)
    manifest = json.loads((path / "manifest.json").read_text())
    if kind == "corrupted":
        weights = path / "weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    elif kind == "half":
        (path / "weights.safetensors").unlink()
    elif kind == "torn":
        text = (path / "manifest.json").read_text()
        (path / "manifest.json").write_text(text[: len(text) // 2])
    elif kind == "nothing":
        shutil.rmtree(path)
    else:
        manifest["format_version"] += 1 if kind == "newer" else -1
        (path / "manifest.json").write_text(json.dumps(manifest))
    return path


@pytest.mark.parametrize("kind", ["corrupted", "half", "torn", "nothing", "newer", "older"])
def test_a_damaged_bundle_leaves_the_old_one(folder, tmp_path, kind):
    rollout = make(folder)
    before = rollout.current
    with pytest.raises(BundleError) as caught:
        rollout.load(damaged(folder, kind, tmp_path))
    assert rollout.current is before and rollout.previous is None
    assert rollout.failures == {"open": 1} and rollout.last_failure == str(caught.value)
    assert top(rollout.current.engine).items[0].score == 6.0
    assert rollout.load(folder / "two").bundle_id != before.bundle_id, (
        "a refusal must not block the next load"
    )


def test_other_ids_are_refused(folder):
    rollout = make(folder)
    with pytest.raises(ServingError, match="ids of type"):
        rollout.load(folder / "texts")
    with pytest.raises(ServingError, match="ids of type"):
        rollout.set_variants([("b", folder / "texts", 0.5)])
    assert rollout.failures == {"ids": 2}
    assert rollout.of("u", "r")[0] == "main"


def test_scores_that_are_no_numbers_are_refused(folder):
    rollout = make(folder)
    with pytest.raises(BundleError, match="is scored None"):
        rollout.load(folder / "broken")
    assert rollout.failures == {"answers": 1}


def test_a_failing_warm_up_is_refused(folder):
    def warm_up(engine: RankingEngine) -> None:
        if engine.bundle.path.name == "two":
            raise ZeroDivisionError("cold")

    rollout = Rollout(opened, warm_up)
    rollout.load(folder / "one")
    with pytest.raises(ServingError, match="ZeroDivisionError: cold"):
        rollout.load(folder / "two")
    assert rollout.current.path.name == "one" and rollout.failures == {"warm_up": 1}


def test_real_models_pass(cases):
    rollout = Rollout(opened, lambda engine: None)
    for name in ("fmrlrec", "ease", "itemknn", "popularity"):
        assert rollout.load(cases(name).path).bundle_id == cases(name).bundle.id


def test_loads_wait_for_each_other(folder):
    inside, most = [], []

    def slow(path: Path) -> RankingEngine:
        inside.append(path)
        most.append(len(inside))
        engine = opened(path)
        inside.pop()
        return engine

    rollout = Rollout(slow, lambda engine: None)
    names = ["one", "two", "three"] * 3
    threads = [threading.Thread(target=rollout.load, args=(folder / name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert rollout.previous is not None and rollout.previous.bundle_id != rollout.current.bundle_id


def test_swaps_under_load(folder):
    """Twenty swaps while four threads ask: each answer is one bundle's, and none is lost."""
    rollout = make(folder)
    factors = {Bundle.open(folder / name).id: factor for name, factor in (("one", 1.0), ("two", 2.0))}
    over, wrong, answers = threading.Event(), [], Counter()
    asked = [0] * 4

    def client(number: int) -> None:
        while not over.is_set():
            asked[number] += 1
            try:
                deployed = rollout.current
                items = top(deployed.engine).items
                expected = [factors[deployed.bundle_id] * place for place in (6, 5, 4)]
                if [item.score for item in items] != expected:
                    wrong.append((deployed.bundle_id, items))
                answers[number, deployed.bundle_id] += 1
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for swap in range(20):
        rollout.load(folder / ("two" if swap % 2 == 0 else "one"))
        seen = sum(answers.values())
        while sum(answers.values()) == seen and not wrong:
            pass  # at least one answer between two swaps
    over.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert sum(answers.values()) == sum(asked)
    assert {bundle_id for _, bundle_id in answers} == set(factors)


def test_a_request_ends_on_the_bundle_it_began_on(folder):
    rollout = make(folder)
    held = rollout.current
    rollout.load(folder / "two")
    rollout.load(folder / "three")  # `held` is neither current nor previous now
    assert [item.score for item in top(held.engine).items] == [6.0, 5.0, 4.0]


# Variants

USERS = [f"user-{number}" for number in range(20_000)]


def dealt(rollout: Rollout) -> dict[str, str]:
    return {user: rollout.of(user, "")[0] for user in USERS}


def test_places_are_fixed_and_even():
    # printf 'salt\0key' | sha256sum begins with these digits
    assert place("salt", "key") == (0x6E5D6C6F47D14756 >> 11) / 2**53
    places = sorted(place("recsys", user) for user in USERS)
    gap = max(abs(value - (rank + 0.5) / len(USERS)) for rank, value in enumerate(places))
    assert gap < 1.63 / len(USERS) ** 0.5  # Kolmogorov-Smirnov at 1 %
    assert places[0] >= 0 and places[-1] < 1


def test_shares_and_stability(folder):
    rollout = make(folder)
    rollout.set_variants([("b", folder / "two", 0.1), ("c", folder / "three", 0.2)])
    before = dealt(rollout)
    shares = Counter(before.values())
    for name, share in {"b": 0.1, "c": 0.2, "main": 0.7}.items():
        spread = (len(USERS) * share * (1 - share)) ** 0.5
        assert abs(shares[name] - len(USERS) * share) < 4 * spread
    assert rollout.of(USERS[0], "x") == rollout.of(USERS[0], "y")
    rollout.set_variants([("b", folder / "two", 0.1), ("c", folder / "three", 0.4)])
    after = dealt(rollout)
    moves = Counter((before[user], after[user]) for user in USERS if before[user] != after[user])
    assert set(moves) == {("main", "c")}
    rollout.set_variants([("b", folder / "two", 0.15), ("c", folder / "three", 0.4)])
    grown = dealt(rollout)
    moves = Counter((after[user], grown[user]) for user in USERS if after[user] != grown[user])
    assert set(moves) == {("c", "b"), ("main", "c")}
    assert sum(moves.values()) < 0.12 * len(USERS)
    other = make(folder, salt="another")
    other.set_variants([("b", folder / "two", 0.15), ("c", folder / "three", 0.4)])
    assert dealt(other) != grown


def test_nobody_is_dealt_by_the_request(folder):
    rollout = make(folder)
    rollout.set_variants([("b", folder / "two", 0.5)])
    names = Counter(rollout.of(None, f"r{number}")[0] for number in range(1000))
    assert 400 < names["b"] < 600
    assert all(rollout.of(None, "r7") == rollout.of("r7", "other") for _ in range(3))


def test_shares_of_one_leave_nobody_over(folder, monkeypatch):
    rollout = make(folder)
    rollout.set_variants([(f"v{number}", folder / "two", 0.1) for number in range(10)])
    monkeypatch.setattr("recsys.serving.rollout.place", lambda salt, key: (2**53 - 1) / 2**53)
    assert rollout.of("u", "")[0] == "v9"


def test_variants_answer_with_their_bundles(folder):
    rollout = make(folder)
    rollout.set_variants([(f"v{number}", folder / "two", 0.1) for number in range(10)])
    found = {rollout.of(user, "") for user in USERS}
    assert {name for name, _ in found} == {f"v{number}" for number in range(10)}, (
        "shares of 1 leave nobody over"
    )
    assert len({id(deployed) for _, deployed in found}) == 1, "one bundle is opened once"
    rollout.load(folder / "two")
    rollout.set_variants([])
    assert rollout.of("u", "") == ("main", rollout.current)


@pytest.mark.parametrize(
    "variants",
    [
        [("main", "two", 0.1)],
        [("", "two", 0.1)],
        [("b", "two", 0.1), ("b", "three", 0.1)],
        [("b", "two", 0.0)],
        [("b", "two", -0.1)],
        [("b", "two", float("nan"))],
        [("b", "two", 0.6), ("c", "three", 0.5)],
    ],
)
def test_impossible_variants(folder, variants):
    rollout = make(folder)
    rollout.set_variants([("kept", folder / "two", 1.0)])
    with pytest.raises(ServingError):
        rollout.set_variants([(name, folder / path, share) for name, path, share in variants])
    assert rollout.of("u", "")[0] == "kept"


# Shadow


def settle(rollout: Rollout, count: int) -> None:
    """Wait until that many questions are through."""
    waiting = threading.Event()
    for _ in range(1000):
        shadow = rollout.shadow
        if shadow is not None and shadow.compared + shadow.failed >= count:
            return
        waiting.wait(0.01)
    raise AssertionError("the shadow did not answer")


def test_shadow_overlap(folder):
    rollout = make(folder)
    rollout.shadowed(top, top(rollout.current.engine))
    assert rollout.shadow is None
    rollout.set_shadow(folder / "three")  # ranks the six the other way round
    for k in (6, 3, 4):

        def ask(engine: RankingEngine, k: int = k) -> Ranked:
            return engine.recommend(Query(history=HISTORY), k, exclude_seen=False)

        rollout.shadowed(ask, ask(rollout.current.engine))
    settle(rollout, 3)
    assert rollout.shadow.overlap == pytest.approx((1 + 0 + 2 / 4) / 3)
    assert (rollout.shadow.dropped, rollout.shadow.failed) == (0, 0)
    assert rollout.current.path.name == "one"
    rollout.close()
    assert rollout.shadow is None


def test_a_shadow_never_holds_anybody_up(folder, caplog):
    rollout = make(folder)
    rollout.set_shadow(folder / "two")
    answer = top(rollout.current.engine)
    begun, free = threading.Event(), threading.Event()

    def stuck(engine: RankingEngine) -> Ranked:
        begun.set()
        free.wait()
        raise ZeroDivisionError("no answer")

    rollout.shadowed(stuck, answer)
    assert begun.wait(10)
    for _ in range(WAITING + 5):
        rollout.shadowed(stuck, answer)
    assert rollout.shadow.dropped == 5
    free.set()
    settle(rollout, WAITING + 1)
    assert (rollout.shadow.failed, rollout.shadow.compared) == (WAITING + 1, 0)
    assert rollout.shadow.overlap is None
    assert caplog.text.count("the shadow cannot answer") == 1
    rollout.shadowed(top, answer)
    settle(rollout, WAITING + 2)
    assert rollout.shadow.overlap == 1.0, "it goes on after errors"
    rollout.close()


def test_a_bad_shadow_leaves_the_old_one(folder):
    rollout = make(folder)
    rollout.set_shadow(folder / "two")
    before = rollout.shadow
    with pytest.raises(BundleError):
        rollout.set_shadow(folder / "nowhere")
    assert rollout.shadow is before
    rollout.close()
