"""LightGBM, pointwise: gradient-boosted trees over the attributes of a user and an item.

After Ke et al., "LightGBM: A Highly Efficient Gradient Boosting Decision Tree" (NeurIPS 2017); trained to tell
interactions from items drawn at random.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Self

import lightgbm
import numpy as np
from pydantic import Field

from recsys.boosted import BoostedPairs, Pairs
from recsys.config import Config
from recsys.features.whitening import Whitening
from recsys.fields import Categorical, Fields, MultiValued, Numeric
from recsys.models.base import FitContext, Model
from recsys.schema import Dense, Form, Log, Queries, legal_width

_ROWS = 4096
"""Interactions whose features are made at once."""


class LightGBMConfig(Config):
    """Settings of LightGBM."""

    tables: tuple[str, ...] = ()
    """Tables of users and of items: typed fields, or vectors."""
    rounds: Annotated[int, Field(ge=1)] = 100
    """Trees."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """What each tree counts."""
    leaves: Annotated[int, Field(ge=2)] = 31
    """Most leaves of a tree."""
    min_leaf: Annotated[int, Field(ge=1)] = 20
    """Least examples in a leaf."""
    negatives: Annotated[int, Field(ge=1)] = 4
    """Items drawn uniformly for each interaction; those that the user took are left out."""
    interactions: Annotated[int, Field(ge=1)] = 500_000
    """Most interactions that are learnt from; of more, so many are drawn."""
    values: Annotated[int, Field(ge=1)] = 32
    """Most frequent values of a set of categories that get a column."""
    dims: Annotated[int, Field(ge=1)] = 16
    """Most principal dimensions of a table of vectors."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the draws."""


class LightGBM(Model[LightGBMConfig]):
    """Trees over the fields of both sides, how often user and item occur in training, and by table how close the item
    comes to what the user took.

    Full rankings ask for every pair: minutes where a dot product takes seconds.
    """

    Config = LightGBMConfig
    scores_cold_items = True
    version = 2

    def fit(self, ctx: FitContext) -> None:
        config, log = self.config, ctx.train
        activity_U, counts_I = np.diff(log.indptr_U1), log.item_counts()
        users_UF, users_are_codes = self._side(ctx, "user", activity_U > 0)
        items_IF, items_are_codes = self._side(ctx, "item", counts_I > 0)
        nobody_1F = np.full((1, users_UF.shape[1]), np.nan)
        activity = np.log1p(np.append(activity_U, 0))[:, None]
        users_UF = np.concatenate([activity, np.concatenate([users_UF, nobody_1F])], axis=1)
        items_IF = np.concatenate([np.log1p(counts_I)[:, None], items_IF], axis=1)
        contents = {f"content.{n}": content for n, content in enumerate(self._contents(ctx, counts_I > 0))}
        arrays = _filled("users", users_UF) | _filled("items", items_IF) | contents
        features_NF, labels_N = self._examples(log, Pairs(arrays))
        codes = np.flatnonzero([False, *users_are_codes, False, *items_are_codes]).tolist()
        parameters = {
            "objective": "binary",
            "learning_rate": config.learning_rate,
            "num_leaves": config.leaves,
            "min_data_in_leaf": config.min_leaf,
            "seed": config.seed,
            "deterministic": True,
            "force_col_wise": True,
            "verbosity": -1,
        }
        data = lightgbm.Dataset(features_NF, labels_N, categorical_feature=codes)
        text = lightgbm.train(parameters, data, config.rounds).model_to_string()
        self.pairs = BoostedPairs(arrays | {"trees": np.frombuffer(text.encode(), np.uint8)})

    def _examples(self, log: Log, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
        """(features [N, F], 1 for an interaction and 0 for a drawn item [N]). The history is without the interaction in
        question, for it and for the items drawn beside it. Counts are left as they are: less one for the interaction
        alone, they would tell it from the drawn, as many items have a count of their own."""
        rng = np.random.default_rng(self.config.seed)
        counts_I = log.item_counts()
        rows_Q = np.sort(rng.permutation(len(log))[: self.config.interactions])
        items_QC = rng.choice(np.flatnonzero(counts_I), (len(rows_Q), 1 + self.config.negatives))
        items_QC[:, 0] = log.item_N[rows_Q]
        seen = np.unique(log.user_N * log.num_items + log.item_N)
        cells_QC = log.user_N[rows_Q][:, None] * log.num_items + items_QC
        keep_QC = seen[np.searchsorted(seen, cells_QC).clip(max=len(seen) - 1)] != cells_QC
        keep_QC[:, 0] = True
        blocks = []
        for here in np.array_split(np.arange(len(rows_Q)), -(-len(rows_Q) // _ROWS)):
            user_Q, own_QC = log.user_N[rows_Q[here]], items_QC[here]
            users, place_Q = np.unique(
                user_Q, return_inverse=True
            )  # a history is summed once for all its events
            totals = [
                total_UD[place_Q] - content_ID[own_QC[:, 0]]
                for total_UD, content_ID in zip(
                    pairs.totals(log.sequences.take(users)), pairs.contents, strict=True
                )
            ]
            block_QCF = pairs.features(user_Q, totals, own_QC)
            blocks.append(block_QCF[keep_QC[here]].astype(np.float32))
        labels_QC = np.zeros(items_QC.shape)
        labels_QC[:, 0] = 1
        return np.concatenate(blocks), labels_QC[keep_QC]

    def _contents(self, ctx: FitContext, known_I: np.ndarray) -> Iterator[np.ndarray]:
        """[I, D] of every item table, centred where it holds vectors; rows of length one, zeros where there is none."""
        for name in self.config.tables:
            if ("item", name) in ctx.tables:
                table = ctx.item_table(name)
                values_IF = np.where(table.present_E[:, None], table.values_EF, 0)
                if isinstance(ctx.tables["item", name], Dense):
                    values_IF = Whitening.fit(table, known_I, table.width, scaled=False)(
                        values_IF, table.present_E
                    )
                    values_IF[~table.present_E] = 0
                length_I1 = np.linalg.norm(values_IF, axis=1, keepdims=True)
                yield (values_IF / np.where(length_I1 > 0, length_I1, 1)).astype(np.float32)

    def _side(self, ctx: FitContext, entity: str, known_E: np.ndarray) -> tuple[np.ndarray, list[bool]]:
        """([E, F] features, NaN where a row lacks one; which of them are codes)."""
        blocks, codes = [np.empty((len(known_E), 0))], []
        for name in self.config.tables:
            table = ctx.tables.get((entity, name))
            if table is None:
                if ("user", name) not in ctx.tables:
                    ctx.item_table(name)  # says which tables there are
                continue
            for block, is_code in self._columns(table, known_E):
                blocks.append(block)
                codes += [is_code] * block.shape[1]
        return np.concatenate(blocks, axis=1), codes

    def _columns(self, table: Dense | Fields, known_E: np.ndarray) -> list[tuple[np.ndarray, bool]]:
        if isinstance(table, Dense):
            whitening = Whitening.fit(table, known_E, self.config.dims, scaled=False)
            return [(_where(table.present_E, whitening(table.values_EF, table.present_E)), False)]
        made = []
        for field in table.fields.values():
            match field:
                case Categorical():
                    made.append((_where(field.present_E, field.codes_E[:, None]), True))
                case Numeric():
                    made.append((_where(field.present_E, field.values_E[:, None]), False))
                case MultiValued():
                    rows, values = field.codes.flat()
                    counts = np.bincount(values[known_E[rows]], minlength=field.size)
                    kept = np.argsort(-counts, kind="stable")[: self.config.values]
                    has_EV = np.zeros((len(known_E), field.size))
                    has_EV[rows, values] = 1
                    made.append((_where(field.present_E, has_EV[:, kept]), False))
        return made

    def score(
        self, queries: Queries, candidates: np.ndarray | None = None, width: int | None = None
    ) -> np.ndarray:
        legal_width(width, self.widths)
        return self.pairs.score(queries, candidates)

    def state(self) -> dict[str, np.ndarray]:
        return dict(self.pairs.arrays)

    @classmethod
    def from_state(cls, config: LightGBMConfig, state: Mapping[str, np.ndarray]) -> Self:
        model = cls(config)
        model.pairs = BoostedPairs(state)
        return model

    def serving_form(self) -> Form:
        return Form("lightgbm", self.pairs.arrays)


def _filled(name: str, values_EF: np.ndarray) -> dict[str, np.ndarray]:
    """Zeros in place of NaN, and where they are none: a state holds finite numbers."""
    present_EF = ~np.isnan(values_EF)
    return {name: np.where(present_EF, values_EF, 0).astype(np.float32), f"{name}_present": present_EF}


def _where(present_E: np.ndarray, values_EF: np.ndarray) -> np.ndarray:
    return np.where(present_E[:, None], values_EF, np.nan)
