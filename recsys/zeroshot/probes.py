"""Questions about the model rather than the users: slots, popularity, sameness, memory, diversity."""

import re
from collections.abc import Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from recsys.candidates import Candidates
from recsys.metrics import query_metrics
from recsys.schema import Ragged
from recsys.serving.diversity import mmr
from recsys.zeroshot.asking import Contest, contest
from recsys.zeroshot.cache import CachedClient
from recsys.zeroshot.cases import Asked
from recsys.zeroshot.clients.base import ClientError
from recsys.zeroshot.messages import Message
from recsys.zeroshot.modes import RankConfig, Ranker
from recsys.zeroshot.prompts import Case
from recsys.zeroshot.shelf import Shelf
from recsys.zeroshot.wording import Wording

_PERSISTENCE = 0.9
_KNOWN = 0.9


def ndcg_Q(lists_QC: np.ndarray, asked: Asked, k: int, rows: np.ndarray | None = None) -> np.ndarray:
    """NDCG@k of lists of item indices, for these rows of the queries or all."""
    targets = asked.queries.targets if rows is None else asked.queries.targets.take(rows)
    columns = Candidates.columns(lists_QC, targets)
    at, places = columns.flat()
    return query_metrics(places + 1, at, targets.lengths, k)["ndcg"]


def position_bias(
    ranker: Ranker, cases: Sequence[Case], asked: Asked, rows: Sequence[int], k: int, concurrency: int
) -> dict[str, Any]:
    """The first target in the first slot, a quarter, half, three quarters of the way, and the last, the others as they
    were: NDCG@k by slot, and its spread. What does not care for slots has none.

    rows: of the queries; those whose target is not among the candidates are left out.
    """
    places = {}
    for row in rows:
        columns = Candidates.columns(asked.lists_QC[[row]], asked.queries.targets.take(np.array([row])))
        inside = columns.values[columns.values >= 0]
        if len(inside):
            places[row] = int(inside[0])
    size = min(len(cases[row].candidates) for row in places) if places else 0
    slots = sorted({round(share * (size - 1)) for share in (0, 0.25, 0.5, 0.75, 1)}) if size else []
    kept = np.array(list(places), np.int64)
    fixed = Ranker(ranker.client, ranker.prompter, _one_round(ranker), ranker.seed)
    found = {}
    for slot in slots:
        moved = [_moved(cases[row], place, slot, ranker.seed) for row, place in places.items()]
        judged = contest("position", fixed, moved, concurrency).judged
        lists = Ragged.of([np.array(one.case.candidates)[one.order] for one in judged]).padded()
        found[slot] = float(ndcg_Q(lists, asked, k, kept).mean())
    spread = max(found.values()) - min(found.values()) if found else float("nan")
    return {
        "ndcg_by_slot": {str(slot): value for slot, value in found.items()},
        "spread": spread,
        "users": len(places),
    }


def _one_round(ranker: Ranker) -> RankConfig:
    return ranker.config.model_copy(update={"rounds": 1, "orders": "fixed"})


def _moved(case: Case, place: int, slot: int, seed: int) -> Case:
    others = [at for at in range(len(case.candidates)) if at != place]
    order = np.random.default_rng([seed, case.query_id]).permutation(others).tolist()
    order.insert(slot, place)
    items = tuple(case.candidates[at] for at in order)
    base = None if case.base is None else tuple(order.index(at) for at in case.base)
    return replace(case, candidates=items, base=base)


def slot_preference(found: Contest) -> dict[str, Any] | None:
    """In which slots the favourites stood: the share of the most frequent, and the distance from an even spread (0 to
    1, half the sum of differences). Of the answers as they came: with one round only, all slots are equally likely to
    hold the best item, for orders are drawn. None where candidates are not shown together."""
    slots = np.concatenate([one.slots_R for one in found.judged])
    if not len(slots):
        return None
    size = max(len(one.order) for one in found.judged)
    shares = np.bincount(slots, minlength=size) / len(slots)
    return {
        "favourite_slot": int(shares.argmax()), "share": float(shares.max()), "even": 1 / size,
        "distance": float(np.abs(shares - 1 / size).sum() / 2),
    }  # fmt: skip


def log_popularity_difference(lists_QC: np.ndarray, asked: Asked, k: int) -> float:
    """LPD (arXiv 2406.01285): mean log train count of the first k items, less that of the user's history; above 0 =
    the list is more popular than the user's taste. Users without a history are left out."""
    log_I = np.log1p(asked.split.fit_log().item_counts())
    history = asked.queries.queries.history
    values = [
        log_I[items[items >= 0]].mean() - log_I[history[row]].mean()
        for row, items in enumerate(lists_QC[:, :k])
        if len(history[row])
    ]
    return float(np.mean(values)) if values else float("nan")


def rbo(a: Sequence[int] | np.ndarray, b: Sequence[int] | np.ndarray, p: float = _PERSISTENCE) -> float:
    """Rank-biased overlap of two equally long lists, scaled so that equal ones give 1 (Webber et al., TOIS 2010)."""
    depths = np.arange(1, len(a) + 1)
    shared = np.array([len(set(a[:depth]) & set(b[:depth])) for depth in depths.tolist()]) / depths
    weights = p ** (depths - 1)
    return float((shared * weights).sum() / weights.sum())


def answer_similarity(
    ranker: Ranker,
    cases: Sequence[Case],
    rows: Sequence[int],
    vectors_ID: np.ndarray,
    seed: int,
    concurrency: int,
) -> dict[str, Any]:
    """All users get the same candidates, which none of them had. Pairs of users: the overlap of answers (RBO) over the
    cosine of histories, by a straight line. The intercept is what users with nothing in common get alike: near 1 =
    everybody gets the same list (the limit that arXiv 2311.04199 names); slope: how much more alike similar users'
    lists are. chance: the overlap of random lists."""
    chosen = [cases[row] for row in rows]
    size = max(len(case.candidates) for case in chosen)
    free = np.setdiff1d(
        np.arange(len(vectors_ID)), np.concatenate([np.array(case.history, int) for case in chosen])
    )
    rng = np.random.default_rng(seed)
    if len(free) < size:
        free = np.arange(len(vectors_ID))
    common = tuple(rng.choice(free, size, replace=False).tolist())
    judged = contest(
        "similarity", ranker, [replace(case, candidates=common, base=None) for case in chosen], concurrency
    ).judged
    profiles = np.stack(
        [vectors_ID[list(case.history)].sum(axis=0) if case.history else 0 * vectors_ID[0] for case in chosen]
    )
    profiles /= np.maximum(np.linalg.norm(profiles, axis=1, keepdims=True), 1e-12)
    a, b = np.triu_indices(len(chosen), 1)
    likeness = (profiles[a] * profiles[b]).sum(axis=1)
    overlap = np.array([rbo(judged[i].order, judged[j].order) for i, j in zip(a, b, strict=True)])
    random = [rbo(rng.permutation(size), rng.permutation(size)) for _ in range(200)]
    level = likeness.std() < 1e-9
    slope, intercept = (0.0, float(overlap.mean())) if level else np.polyfit(likeness, overlap, 1).tolist()
    return {
        "slope": slope, "intercept": intercept, "mean_overlap": float(overlap.mean()),
        "chance": float(np.mean(random)), "pairs": len(a), "users": len(chosen),
    }  # fmt: skip


def memory(client: CachedClient, shelf: Shelf, items: Sequence[int], words: Wording) -> dict[str, Any]:
    """Share of titles whose second half the model writes when shown the first: known by heart, so that its rankings may
    be, too. Titles of one word are left out."""
    asked, known = 0, 0
    for item in items:
        parts = re.sub(r"\s*\(\d{4}\)\s*$", "", shelf.titles[item]).split()
        if len(parts) < 2:
            continue
        first, rest = " ".join(parts[: len(parts) // 2]), " ".join(parts[len(parts) // 2 :])
        ask = (
            f'The title of a {words.one} begins with "{first}". Write the rest of the title and nothing else.'
        )
        try:
            answer = client.chat([Message("user", (ask,))], probe="memory")
        except ClientError:
            continue
        asked += 1
        said = answer.text.strip(' ."\n').casefold()
        said = said.removeprefix(first.casefold()).strip()
        known += SequenceMatcher(None, said, rest.casefold()).ratio() >= _KNOWN
    return {"share": known / asked if asked else float("nan"), "titles": asked}


def content_vectors(shelf: Shelf) -> np.ndarray:
    """[I, D] unit vectors of words of titles and of categories, rare ones counting more: for likeness alone."""
    bags = [
        [f"c:{name}" for name in categories] + [f"w:{w}" for w in re.findall(r"[^\W\d]\w+", title.casefold())]
        for title, categories in zip(shelf.titles, shelf.categories, strict=True)
    ]
    counts: dict[str, int] = {}
    for bag in bags:
        for word in set(bag):
            counts[word] = counts.get(word, 0) + 1
    names = {
        word: number
        for number, word in enumerate(sorted(word for word, count in counts.items() if count > 1))
    }
    vectors = np.zeros((len(bags), max(len(names), 1)), np.float32)
    for row, bag in enumerate(bags):
        for word in bag:
            if word in names:
                vectors[row, names[word]] = np.log(len(bags) / counts[word]) + 1e-6
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def spread_lists(lists_QC: np.ndarray, vectors_ID: np.ndarray, weight: float) -> np.ndarray:
    """Every list after an MMR stage; relevance falls evenly from the first place to the last."""
    out_QC = lists_QC.copy()
    for row, items in enumerate(lists_QC):
        items = items[items >= 0]
        relevance = np.linspace(1, 0, len(items))
        out_QC[row, : len(items)] = mmr(items, relevance, vectors_ID[items], len(items), weight)
    return out_QC


def intra_list_distance(lists_QC: np.ndarray, vectors_ID: np.ndarray, k: int) -> float:
    """Mean of 1 - cosine over the pairs of the first k items."""
    values = []
    for items in lists_QC[:, :k]:
        rows = vectors_ID[items[items >= 0]]
        if len(rows) > 1:
            count = len(rows)
            values.append(
                1 - (np.linalg.norm(rows.sum(axis=0)) ** 2 - (rows**2).sum()) / (count * (count - 1))
            )
    return float(np.mean(values)) if values else float("nan")
