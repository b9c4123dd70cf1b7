"""What models share whose scores are dot products of item vectors with a profile (see `recsys.profile`)."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from recsys.models.base import ConfigT, Model
from recsys.profile import Profile
from recsys.schema import Form, Queries, legal_width
from recsys.scoring import dot_scores


class Vectors(NamedTuple):
    """What was fitted: how queries come about, item vectors and a bias an item."""

    profile: Profile
    items_ID: np.ndarray
    bias_I: np.ndarray


class VectorModel(Model[ConfigT]):
    """score = profile of the query . item vector + bias.

    shared: histories are read with the item vectors themselves. profile_settings: of `Profile`, where not its own.
    loaded: what a closed form found, or the state that a model comes from. Looped models say what they have `learnt`.
    """

    shared: ClassVar[bool] = True
    loaded: Vectors

    @property
    def profile_settings(self) -> dict[str, Any]:
        return {}

    @property
    def vectors(self) -> Vectors:
        """As they stand now."""
        return self.once(self.learnt) if hasattr(self, "module") else self.loaded

    def item_vectors(self, width: int | None = None) -> np.ndarray:
        return self.vectors.items_ID[:, : legal_width(width, self.widths)]

    def query_vectors(self, queries: Queries, width: int | None = None) -> np.ndarray:
        """[Q, width]."""
        return self.vectors.profile.vectors(queries)[:, : legal_width(width, self.widths)]

    def score(
        self, queries: Queries, candidates: np.ndarray | None = None, width: int | None = None
    ) -> np.ndarray:
        width = legal_width(width, self.widths)
        profile, items_ID, bias_I = self.vectors
        return dot_scores(profile.vectors(queries)[:, :width], items_ID[:, :width], bias_I, candidates)

    def state(self) -> dict[str, np.ndarray]:
        profile, items_ID, bias_I = self.vectors
        return {"items": items_ID, "bias": bias_I} | profile.arrays(shared=self.shared)

    @classmethod
    def from_state(cls, config: ConfigT, state: Mapping[str, np.ndarray]) -> Self:
        model = cls(config)
        names = Profile.array_names() & state.keys()
        arrays = {"inputs_ID": state["items"]} | {name: state[name] for name in names}
        model.loaded = Vectors(Profile(**arrays, **model.profile_settings), state["items"], state["bias"])
        return model

    def serving_form(self) -> Form:
        profile, items_ID, bias_I = self.vectors
        return Form("dot", profile.arrays(shared=self.shared), profile.meta(), items_ID, bias_I, self.widths)
