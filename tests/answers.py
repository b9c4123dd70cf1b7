"""Whether an answer of the server is the offline one, to 1e-5. Standard library only: the base-only check uses it."""

from collections.abc import Mapping
from typing import Any


def differences(asked: Mapping[str, Any], answer: Mapping[str, Any]) -> list[str]:
    """What is wrong with `answer` to the request `asked` (see `serving_case.requests`); empty where it is right.

    Scores may be apart by 1e-5 of the largest one (at least 1); items that close may change places.
    """
    expected = {item: score for item, score in asked["scores"]}
    slack = 1e-5 * max(1.0, *(abs(score) for score in expected.values()))
    found = [(line["item_id"], line["score"]) for line in answer["items"]]
    wrong = []
    strangers = [item for item, _ in found if item not in expected]
    if strangers:
        return [f"items that may not be ranked: {strangers}"]
    for item, score in found:
        if abs(score - expected[item]) > slack:
            wrong.append(f"item {item}: {score} served, {expected[item]} offline")
    wanted = sorted(expected.values(), reverse=True)[: asked["body"].get("k", len(expected))]
    if len(found) != len(wanted) or len({item for item, _ in found}) != len(found):
        return [
            *wrong,
            f"{len(found)} lines with {len({item for item, _ in found})} items, not {len(wanted)}",
        ]
    for (item, _), best in zip(found, wanted, strict=True):
        if abs(expected[item] - best) > slack:
            wrong.append(f"item {item} ({expected[item]}) stands where the score should be {best}")
    if answer["fallback"] != asked["fallback"]:
        wrong.append(f"fallback {answer['fallback']!r}, expected {asked['fallback']!r}")
    if answer["request_id"] != asked["body"]["request_id"]:
        wrong.append("another request_id")
    return wrong
