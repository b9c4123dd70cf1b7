"""The model's ranking and a trained ranker's in one: a weight, and a gate for whom the model need not be asked."""

from dataclasses import dataclass

import numpy as np

from recsys.zeroshot.cases import Asked
from recsys.zeroshot.probes import ndcg_Q

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
SHARES = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Blend:
    """weight: of the model, 1 - weight of the base ranker. margin: the model is asked where the base ranker's first
    place leads its second by at most so many standard deviations of the user's scores."""

    weight: float
    margin: float

    def lists_QC(self, base_QC: np.ndarray, model_QC: np.ndarray, lists_QC: np.ndarray) -> np.ndarray:
        """base_QC, model_QC: scores of the candidates, NaN pads; item indices, best first."""
        asked_Q = self.asked_Q(base_QC)
        base_QC, model_QC = standard(base_QC), standard(model_QC)
        blended = (1 - self.weight) * base_QC + self.weight * model_QC
        scores_QC = np.where(asked_Q[:, None], blended, base_QC)
        order_QC = np.argsort(np.where(np.isnan(scores_QC), np.inf, -scores_QC), axis=1, kind="stable")
        return np.take_along_axis(lists_QC, order_QC, axis=1)

    def asked_Q(self, base_QC: np.ndarray) -> np.ndarray:
        """Whom the model is asked about."""
        return (margins(base_QC) <= self.margin) & (self.weight > 0)


def standard(scores_QC: np.ndarray) -> np.ndarray:
    """Each row with mean 0 and standard deviation 1; a row of equal scores is all 0."""
    scores_QC = np.where(np.isfinite(scores_QC), scores_QC, np.nan)
    spread = np.nanstd(scores_QC, axis=1, keepdims=True)
    return (scores_QC - np.nanmean(scores_QC, axis=1, keepdims=True)) / np.where(spread > 0, spread, 1)


def margins(base_QC: np.ndarray) -> np.ndarray:
    """How far each row's first place leads its second, in standard deviations."""
    ordered = np.sort(np.where(np.isnan(base_QC), -np.inf, standard(base_QC)), axis=1)
    return ordered[:, -1] - ordered[:, -2]


def tuned(base_QC: np.ndarray, model_QC: np.ndarray, asked: Asked, k: int) -> tuple[Blend, float]:
    """The blend with the best NDCG@k on these users, and that; of equal ones that which asks the model least."""
    margin_Q = margins(base_QC)
    best, reached = Blend(0.0, 0.0), -np.inf
    for weight in WEIGHTS:
        for share in SHARES:
            blend = Blend(weight, float(np.quantile(margin_Q, share)))
            value = float(ndcg_Q(blend.lists_QC(base_QC, model_QC, asked.lists_QC), asked, k).mean())
            if value > reached + 1e-9:
                best, reached = blend, value
    return best, reached
