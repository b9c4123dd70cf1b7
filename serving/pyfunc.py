"""What MLflow's pyfunc flavour loads: `loader_module = "recsys.serving.pyfunc"`, data path = the bundle."""

from collections.abc import Mapping
from typing import Any

from recsys.bundle import Bundle
from recsys.errors import RequestError
from recsys.serving.engine import Query, RankingEngine

_KEYS = {"user_id", "history", "candidates", "k", "width"}


class BundlePredictor:
    """predict: one answer per row of user_id or history, optional candidates, k and width."""

    def __init__(self, engine: RankingEngine):
        self.engine = engine

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """model_input: a DataFrame, a list of dicts, or one dict. Raises RequestError for unknown columns."""
        return [self._one(row) for row in _rows(model_input)]

    def _one(self, row: Mapping[str, Any]) -> dict[str, Any]:
        given = {key: value for key, value in row.items() if not _absent(value)}
        unknown = set(given) - _KEYS
        if unknown:
            raise RequestError(
                f"unknown column {min(unknown)!r}", expected=f"some of: {', '.join(sorted(_KEYS))}"
            )
        width = None if "width" not in given else int(given["width"])
        history = None if "history" not in given else [self._id("item", item) for item in given["history"]]
        user = None if "user_id" not in given else self._id("user", given["user_id"])
        query = Query(user, history, width)
        if "candidates" in given:
            ranked = self.engine.rank(query, [self._id("item", item) for item in given["candidates"]])
        else:
            ranked = self.engine.recommend(query, int(given.get("k", 10)))
        return {
            "items": ranked.items.ids,
            "scores": ranked.items.told,
            "fallback": ranked.fallback,
        }

    def _id(self, entity: str, value: Any) -> Any:
        """A DataFrame's value as an id: NumPy scalars as Python's, and 3.0 as 3 where ids are integers, since pandas
        turns a column of integers with a gap into floats."""
        value = value.item() if hasattr(value, "item") else value
        whole = isinstance(value, float) and value.is_integer()
        return int(value) if whole and self.engine.bundle.id_type[entity] == "int" else value


def _rows(model_input: Any) -> list[Mapping[str, Any]]:
    if hasattr(model_input, "to_dict"):
        return model_input.to_dict(orient="records")
    return [model_input] if isinstance(model_input, Mapping) else list(model_input)


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _load_pyfunc(data_path: str) -> BundlePredictor:
    return BundlePredictor(RankingEngine(Bundle.open(data_path)))
