"""MARec-like: an item-item model in closed form whose scores are drawn to those of content."""

from typing import Annotated

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from pydantic import Field

from recsys.config import Config
from recsys.features.whitening import Whitening
from recsys.item_encoding import unit
from recsys.models.base import FitContext
from recsys.models.baselines.neighbourhood import ItemItemModel


class MARecConfig(Config):
    """Settings of the aligned item-item model."""

    tables: Annotated[tuple[str, ...], Field(min_length=1)] = ("text",)
    """Item feature tables; several are fused."""
    dims: Annotated[int, Field(ge=1)] = 128
    """Most principal dimensions kept of each table."""
    regularisation: Annotated[float, Field(gt=0)] = 250.0
    """lambda, of the weights."""
    alignment: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the content's scores against what was seen, for an item without a training row."""
    half_count: Annotated[float, Field(gt=0)] = 10.0
    """Training rows of an item at which the alignment weighs half."""
    sharpness: Annotated[float, Field(gt=0)] = 4.0
    """Power of the (positive) cosines of content."""


def aligned_weights(
    users_UI: sp.csr_matrix, similarity_II: np.ndarray, regularisation: float, weight_I: np.ndarray
) -> np.ndarray:
    """W, column by column, for X = users_UI and S = similarity_II:

        argmin |x_j - X w|^2 [j has rows] + weight_j |X s_j - X w|^2 + lambda |w|^2, with w_j = 0

    As X'X has the eigenvectors of the smaller of X'X and XX', each column costs products with those alone.
    """
    dense_UI = users_UI.toarray().astype(np.float64)
    count_I = dense_UI.sum(axis=0)
    values_R, vectors_IR = _eigen(dense_UI)
    seen_I = (count_I > 0).astype(float)
    # V'(X'x_j + weight_j X'X s_j), both parts of X'X's own span
    right_RI = values_R[:, None] * (vectors_IR.T * seen_I + (vectors_IR.T @ similarity_II) * weight_I)
    inside_RI = 1 / ((seen_I + weight_I) * values_R[:, None] + regularisation)
    weights_II = vectors_IR @ (inside_RI * right_RI)
    # w_j = 0 by a multiple of the column of the inverse: (..)^-1 e_j, outside of V's span 1 / lambda of e_j
    own_RI = (inside_RI - 1 / regularisation) * vectors_IR.T
    inverse_I = (vectors_IR.T * own_RI).sum(axis=0) + 1 / regularisation
    scale_I = weights_II.diagonal() / inverse_I
    weights_II -= vectors_IR @ (own_RI * scale_I)
    diagonal = np.arange(len(weights_II))
    weights_II[diagonal, diagonal] = 0.0
    return weights_II.astype(np.float32)


def _eigen(dense_UI: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(eigenvalues [R] above 0, eigenvectors [I, R]) of X'X."""
    users, items = dense_UI.shape
    gram = dense_UI @ dense_UI.T if users < items else dense_UI.T @ dense_UI
    values, vectors = scipy.linalg.eigh(gram, overwrite_a=True, check_finite=False)
    kept = values > 1e-9 * max(values.max(), 1e-300)
    values, vectors = values[kept], vectors[:, kept]
    return (values, dense_UI.T @ vectors / np.sqrt(values)) if users < items else (values, vectors)


def content_similarity(vectors_ID: np.ndarray, users_UI: sp.csr_matrix, sharpness: float) -> np.ndarray:
    """[I, I] powers of the positive cosines without the diagonal, scaled so that the sums over histories come as near
    as they can, in least squares, to the pairs seen."""
    similarity_II = np.maximum(vectors_ID @ vectors_ID.T, 0) ** sharpness
    np.fill_diagonal(similarity_II, 0)
    seen_I = np.asarray(users_UI.sum(axis=0)).ravel() > 0
    scores_UI = (users_UI @ similarity_II)[:, seen_I]
    scale = users_UI[:, seen_I].multiply(scores_UI).sum() / max(np.square(scores_UI).sum(), 1e-12)
    return similarity_II * scale


class MARec(ItemItemModel[MARecConfig]):
    """After the abstract of MARec (Monteil et al., RecSys 2024): likeness of metadata aligned with an item-item model
    in closed form. The objective is ours (see `aligned_weights`); it is EASE where the alignment is 0."""

    Config = MARecConfig
    scores_cold_items = True

    def fit(self, ctx: FitContext) -> None:
        trained_I = ctx.train.item_counts() > 0
        parts = []
        for name in self.config.tables:
            table = ctx.item_table(name)
            part_IK = Whitening.fit(table, trained_I, self.config.dims, scaled=False)(
                table.values_EF, table.present_E
            )
            part_IK[~table.present_E] = 0
            parts.append(unit(part_IK))
        self.content_ID = unit(np.concatenate(parts, axis=1)).astype(np.float64)
        super().fit(ctx)

    def weights(self, users_UI: sp.csr_matrix) -> np.ndarray:
        config = self.config
        count_I = np.asarray(users_UI.sum(axis=0)).ravel()
        weight_I = config.alignment * config.half_count / (config.half_count + count_I)
        similarity_II = content_similarity(self.content_ID, users_UI, config.sharpness)
        return aligned_weights(users_UI, similarity_II, config.regularisation, weight_I)
