"""The torch-free programs that a serving form names. NumPy only; scores equal the model's to 1e-5."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import ClassVar

import numpy as np

from recsys import profile
from recsys.boosted import BoostedPairs
from recsys.errors import BundleError
from recsys.pairwise import deepfm_scores
from recsys.schema import Form, Queries, legal_width, pick
from recsys.scoring import dot_scores, segment_scores
from recsys.serving.mixers import MIXERS
from recsys.serving.network import Network, WholeNetwork, cut_arrays
from recsys.tower import QueryTower

_COPIED = 4_000_000
"""Most weights of an item-item matrix that are kept by column too, padding included."""


class Program(ABC):
    """A form made runnable: the scoring half of the model contract."""

    uses_history: ClassVar[bool] = True
    uses_user_fields: ClassVar[bool] = False
    uses_context: ClassVar[bool] = False

    def __init__(self, form: Form):
        self.form = form

    @property
    def widths(self) -> tuple[int, ...]:
        return self.form.widths

    @abstractmethod
    def score(
        self, queries: Queries, candidates: np.ndarray | None = None, width: int | None = None
    ) -> np.ndarray:
        """[Q, I], or the columns of candidates [C] or [Q, C] (-1 gives -inf); float32."""

    def silent(self, queries: Queries) -> bool:
        """Nothing is known that the model could use."""
        return self.uses_history and not queries.history.lengths.any()

    def similarity(self, item: int) -> np.ndarray | None:
        """[I] how alike every item is to this one, by the model; None where the program cannot say."""
        return None

    def cut(self, width: int | None) -> Form:
        """The form of this width alone, None for the full one. Raises ModelError for a width the program lacks."""
        legal_width(width, self.widths)
        return self.form


class Popularity(Program):
    """One list for all, or one a segment of users. arrays: scores [S, I], row 0 everybody's; segments [U] or none."""

    uses_history = False

    def score(
        self, queries: Queries, candidates: np.ndarray | None = None, width: int | None = None
    ) -> np.ndarray:
        legal_width(width, self.widths)
        arrays = self.form.arrays
        return segment_scores(arrays["scores"], arrays.get("segments"), queries, candidates)


class ItemItem(Program):
    """score(j) = prior(j) + sum over the distinct history items i of W[i, j].

    arrays: prior [I]; W as dense [I, I], or CSR as indptr [I + 1], indices, data.
    """

    def score(
        self, queries: Queries, candidates: np.ndarray | None = None, width: int | None = None
    ) -> np.ndarray:
        legal_width(width, self.widths)
        columns = self._columns if len(queries) == 1 and np.ndim(candidates) == 1 else None
        if columns is not None and (candidates >= 0).all():
            speaking, said = columns
            asks = np.zeros(len(speaking))
            asks[queries.history[0]] = 1
            heard_CN = asks.take(speaking.take(candidates, axis=0))
            sums_C = np.einsum("cn,cn->c", said.take(candidates, axis=0), heard_CN)
            return (sums_C + self.form.arrays["prior"][candidates]).astype(np.float32)[None]
        scores_QI = np.stack([self._sum(np.unique(queries.history[row])) for row in range(len(queries))])
        return pick((scores_QI + self.form.arrays["prior"]).astype(np.float32), candidates)

    def _sum(self, items: np.ndarray) -> np.ndarray:
        arrays = self.form.arrays
        if "dense" in arrays:  # row by row in float32, as the model adds them: the same rounding
            return np.add.reduce(arrays["dense"][items], axis=0)
        indptr = arrays["indptr"]
        indices, data = (_rows(indptr, arrays[name], items) for name in ("indices", "data"))
        return np.bincount(indices, weights=data, minlength=len(indptr) - 1)

    @cached_property
    def _columns(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Who speaks to every item, and what it says: [I, N] both, weight 0 pads. A few candidates hear from far fewer
        items than a history speaks to. None where W is dense, or would be much larger in this form."""
        arrays = self.form.arrays
        if "dense" in arrays:
            return None
        size, weights = len(arrays["indptr"]) - 1, len(arrays["data"])
        heard_I = np.bincount(arrays["indices"], minlength=size)
        if weights == 0 or size * heard_I.max() > min(2 * weights, _COPIED):
            return None
        order = np.argsort(arrays["indices"], kind="stable")
        column = arrays["indices"][order]
        place = np.arange(weights) - (np.cumsum(heard_I) - heard_I)[column]
        speaking = np.zeros((size, heard_I.max()), np.int32)
        said = np.zeros(speaking.shape)
        speaking[column, place] = np.repeat(np.arange(size), np.diff(arrays["indptr"]))[order]
        said[column, place] = arrays["data"][order]
        return speaking, said

    def similarity(self, item: int) -> np.ndarray:
        """What the item says about every other: its row of W."""
        return self._sum(np.array([item]))


def _rows(indptr: np.ndarray, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The values of these rows, one after another."""
    ends = zip(indptr[rows].tolist(), indptr[rows + 1].tolist(), strict=True)
    return np.concatenate([values[:0], *(values[start:end] for start, end in ends)])


class DeepFM(Program):
    """A factorisation machine and a network over both sides; arrays as `recsys.pairwise` has them."""

    uses_history = False

    def score(
        self, queries: Queries, candidates: np.ndarray | None = None, width: int | None = None
    ) -> np.ndarray:
        legal_width(width, self.widths)
        return deepfm_scores(self.form.arrays, queries, candidates)


class Boosted(Program):
    """Gradient-boosted trees over the features of both sides; arrays as `recsys.boosted` has them."""

    def __init__(self, form: Form):
        super().__init__(form)
        self.pairs = BoostedPairs(form.arrays)

    def score(
        self, queries: Queries, candidates: np.ndarray | None = None, width: int | None = None
    ) -> np.ndarray:
        legal_width(width, self.widths)
        return self.pairs.score(queries, candidates)


class VectorProgram(Program):
    """A program whose scores are dot products with item vectors."""

    @abstractmethod
    def query_vectors(self, queries: Queries, width: int | None = None) -> np.ndarray:
        """[Q, width]."""

    def scale(self, width: int) -> float:
        """What the dot products of this width are multiplied by."""
        return 1.0

    @cached_property
    def _unit_vectors_ID(self) -> np.ndarray:
        vectors_ID = self.form.item_vectors_ID
        return vectors_ID / np.maximum(np.linalg.norm(vectors_ID, axis=1, keepdims=True), 1e-12)

    def similarity(self, item: int) -> np.ndarray:
        """Cosine of the item vectors."""
        return self._unit_vectors_ID @ self._unit_vectors_ID[item]

    def _cut(self, width: int, arrays: Mapping[str, np.ndarray]) -> Form:
        return replace(
            self.form,
            arrays=arrays,
            item_vectors_ID=np.ascontiguousarray(self.form.item_vectors_ID[:, :width]),
            encoding=None if self.form.encoding is None else self.form.encoding.cut(width),
            widths=tuple(inside for inside in self.widths if inside <= width),
        )


class Dot(VectorProgram):
    """A vector per user, or one summed up from the history (see `Profile`), and a dot product with the items."""

    def __init__(self, form: Form):
        super().__init__(form)
        self.profile = profile.Profile.of(form)

    def query_vectors(self, queries: Queries, width: int | None = None) -> np.ndarray:
        return self.profile.vectors(queries)[:, : legal_width(width, self.widths)]

    def score(
        self, queries: Queries, candidates: np.ndarray | None = None, width: int | None = None
    ) -> np.ndarray:
        return self.score_vectors(self.query_vectors(queries, width), candidates, width)

    def score_vectors(
        self, vectors_QD: np.ndarray, candidates: np.ndarray | None, width: int | None
    ) -> np.ndarray:
        """`score` where the query vectors are known, of this width or a wider one."""
        width = legal_width(width, self.widths)
        items_ID, bias_I = self.form.item_vectors_ID[:, :width], self.form.item_bias_I
        return dot_scores(vectors_QD[:, :width], items_ID, bias_I, candidates)

    def cut(self, width: int | None) -> Form:
        width = legal_width(width, self.widths)
        return self._cut(width, profile.cut_arrays(self.form.arrays, width))


class Tower(Dot):
    """A query vector fused from id, history, attributes and the hour (see `QueryTower`), then as `Dot`."""

    uses_user_fields = True

    def __init__(self, form: Form):
        VectorProgram.__init__(self, form)
        self.profile = QueryTower.of(form)

    @property
    def uses_context(self) -> bool:
        return bool(self.profile.context)

    def silent(self, queries: Queries) -> bool:
        return bool(self.profile.silent(queries).all())

    def cut(self, width: int | None) -> Form:
        legal_width(width, self.widths)
        return self.form


class Sequence(VectorProgram):
    """A sequence model: its network over the history, then a dot product with the item vectors (see `Network`).

    Where it `steps`, what a history leaves behind can be kept, and one more event costs the same however long it is.
    """

    def __init__(self, form: Form):
        super().__init__(form)
        network = WholeNetwork if form.program == "bidirectional" else Network
        self.networks = {width: network(form, width) for width in form.widths}

    @property
    def steps(self) -> bool:
        return self.form.meta["window"] is None and self.form.program != "bidirectional"

    @property
    def network(self) -> Network:
        """The one of the full width; the narrower ones' vectors are the first values of its own."""
        return self.networks[self.widths[-1]]

    def scale(self, width: int) -> float:
        return float(self.form.arrays["scales"][self.widths.index(width)])

    def query_vectors(self, queries: Queries, width: int | None = None) -> np.ndarray:
        return self.networks[legal_width(width, self.widths)].encode(queries.history)

    def score(
        self, queries: Queries, candidates: np.ndarray | None = None, width: int | None = None
    ) -> np.ndarray:
        return self.score_vectors(self.query_vectors(queries, width), queries, candidates, width)

    def score_vectors(
        self,
        vectors_QD: np.ndarray,
        queries: Queries,
        candidates: np.ndarray | None,
        width: int | None,
        seen: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    ) -> np.ndarray:
        """`score` where the query vectors are known, of this width or a wider one; seen: as `dot_scores` has it."""
        width = legal_width(width, self.widths)
        return dot_scores(
            vectors_QD[:, :width],
            self.form.item_vectors_ID[:, :width],
            self.form.item_bias_I,
            candidates,
            scale=self.scale(width),
            history=queries.history,
            repeat=self.form.arrays.get("repeat"),
            seen=seen,
        )

    def cut(self, width: int | None) -> Form:
        width = legal_width(width, self.widths)
        return self._cut(width, cut_arrays(self.form, width))


PROGRAMS: dict[str, type[Program]] = {
    "popularity": Popularity,
    "item_item": ItemItem,
    "dot": Dot,
    "tower": Tower,
    "deepfm": DeepFM,
    "lightgbm": Boosted,
} | dict.fromkeys(MIXERS, Sequence)


def open_form(form: Form) -> Program:
    """Raises BundleError for a program this version does not know."""
    if form.program not in PROGRAMS:
        raise BundleError(
            f"program {form.program!r}", expected=f"one of: {', '.join(PROGRAMS)}", fix="upgrade recsys"
        )
    return PROGRAMS[form.program](form)
