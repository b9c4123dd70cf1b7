"""A slow, obvious evaluation: sort every list, walk it, count. Nothing here is vectorised."""

import math


def rank_of(scores: list[float], targets: list[int], target: int) -> int:
    """1-based place of `target`; -inf scores are not in the list; 0 = a miss."""
    if target < 0 or scores[target] == -math.inf:
        return 0
    positives = set(targets)
    ahead = 0
    for item, score in enumerate(scores):
        if item in positives or score == -math.inf:
            continue
        if score >= scores[target]:
            ahead += 1
    # positives among themselves: by score, then by their order in the target list
    for other in targets:
        if other < 0 or other == target or scores[other] == -math.inf:
            continue
        earlier = targets.index(other) < targets.index(target)
        if scores[other] > scores[target] or (scores[other] == scores[target] and earlier):
            ahead += 1
    return ahead + 1


def metrics(ranks: list[int], k: int) -> dict[str, float]:
    """Of one query with one rank per target (0 = miss)."""
    hits = sorted(rank for rank in ranks if 0 < rank <= k)
    ideal = sum(1 / math.log2(place + 1) for place in range(1, min(len(ranks), k) + 1))
    return {
        "recall": len(hits) / len(ranks),
        "hr": 1.0 if hits else 0.0,
        "ndcg": sum(1 / math.log2(rank + 1) for rank in hits) / ideal,
        "mrr": 1 / hits[0] if hits else 0.0,
        "map": sum((number + 1) / rank for number, rank in enumerate(hits)) / min(len(ranks), k),
    }


def evaluate(scores, histories, targets, *, mask: bool, repeat: str, k: int) -> list[dict[str, float]]:
    """Metrics of every query from plain lists; a query without targets gives an empty dict."""
    out = []
    for row, history, wanted in zip(scores, histories, targets, strict=True):
        row = list(row)
        if mask:
            for item in set(history):
                if repeat == "miss" or item not in wanted:
                    row[item] = -math.inf
        out.append(metrics([rank_of(row, wanted, target) for target in wanted], k) if wanted else {})
    return out
