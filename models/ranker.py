"""LambdaRank over candidates (Burges, "From RankNet to LambdaRank to LambdaMART", MSR-TR-2010-82), by LightGBM."""

import lightgbm
import numpy as np

from recsys.errors import ModelError
from recsys.popularity import COLUMNS
from recsys.ranker_config import RankerConfig
from recsys.two_stage import Trees


def fit_ranker(
    config: RankerConfig,
    features_NF: np.ndarray,
    labels_N: np.ndarray,
    group_Q: np.ndarray,
    names: list[str],
    places_N: np.ndarray | None = None,
) -> Trees:
    """Trees learnt from lists of candidates, list after list: group_Q has their lengths, labels_N 1 for what was taken,
    places_N where each stood when it was shown, for `position_bias`.

    A list without a positive or without a negative teaches nothing and is to be left out. Deterministic for a seed and
    a build of LightGBM. Raises ModelError where there is no list.
    """
    if not len(group_Q):
        raise ModelError("no list with a retrieved positive: the ranker has nothing to learn from")
    features_NF = hidden_counts(features_NF, names, config)
    parameters = {
        "objective": "lambdarank",
        "lambdarank_truncation_level": config.truncation,
        "learning_rate": config.learning_rate,
        "num_leaves": config.leaves,
        "min_data_in_leaf": config.min_leaf,
        "feature_pre_filter": False,
        "seed": config.seed,
        "deterministic": True,
        "force_col_wise": True,
        "num_threads": 1,
        "verbosity": -1,
    }
    if config.position_bias is not None:
        parameters["lambdarank_position_bias_regularization"] = config.position_bias
    else:
        places_N = None
    data = lightgbm.Dataset(features_NF, labels_N, group=group_Q, feature_name=names, position=places_N)
    booster = lightgbm.train(parameters, data, config.trees)
    return Trees(booster.model_to_string(), tuple(names))


def hidden_counts(features_NF: np.ndarray, names: list[str], config: RankerConfig) -> np.ndarray:
    """A copy in which `popularity_dropout` of the rows have no counts, and do not say either that they are cold."""
    rows = np.random.default_rng(config.seed).random(len(features_NF)) < config.popularity_dropout
    features_NF = features_NF.copy()
    for name in COLUMNS:
        features_NF[rows, names.index(name)] = np.nan
    return features_NF
