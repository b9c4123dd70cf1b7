"""Intervals and tests on data whose answer is known by construction."""

import numpy as np
import pytest

from recsys.stats import bootstrap_intervals, holm, paired_test, seed_spread


def test_the_interval_covers():
    """Of 200 samples from a known mean, about 95 % of the intervals hold it (binomial: 4 deviations = 6 %)."""
    rng = np.random.default_rng(0)
    samples_QM = rng.random((300, 200))
    low_M, high_M = bootstrap_intervals(samples_QM, np.arange(300), 500, seed=0)
    covered = ((low_M <= 0.5) & (high_M >= 0.5)).mean()
    assert 0.95 - 0.062 <= covered <= 1.0
    width = (high_M - low_M).mean()
    assert width == pytest.approx(2 * 1.96 / np.sqrt(12 * 300), rel=0.1)


def test_users_are_resampled_whole():
    """Ten equal queries of one user are one observation, not ten: the interval does not shrink."""
    rng = np.random.default_rng(1)
    values = rng.random((50, 1))
    one = bootstrap_intervals(values, np.arange(50), 2000, seed=0)
    ten = bootstrap_intervals(np.repeat(values, 10, axis=0), np.repeat(np.arange(50), 10), 2000, seed=0)
    np.testing.assert_allclose(ten, one)
    apart = bootstrap_intervals(np.repeat(values, 10, axis=0), np.arange(500), 2000, seed=0)
    assert np.ptp(apart) < 0.5 * np.ptp(ten)


def test_a_slice_has_its_own_queries():
    values = np.array([[1.0, np.nan, np.nan], [1.0, 3.0, np.nan], [1.0, 3.0, np.nan]])
    found = bootstrap_intervals(values, np.arange(3), 200, seed=0)
    np.testing.assert_array_equal(found[:, :2], [[1, 3], [1, 3]])
    assert np.isnan(found[:, 2]).all()


def test_the_same_seed_gives_the_same_interval():
    values, users = np.random.default_rng(2).random((40, 3)), np.arange(40) // 2
    one, again, other = (bootstrap_intervals(values, users, 100, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_identical_models_differ_by_nothing():
    values = np.random.default_rng(3).random(60)
    found = paired_test(values, values, np.arange(60))
    assert found["difference"] == 0 and found["p"] == 1 and found["low"] == found["high"] == 0


def test_a_planted_difference_is_found():
    rng = np.random.default_rng(4)
    base = rng.random(200)
    found = paired_test(base + 0.05 + 0.02 * rng.standard_normal(200), base, np.arange(200))
    assert found["p"] < 0.01 and 0 < found["low"] < found["difference"] < found["high"]
    assert found["difference"] == pytest.approx(0.05, abs=4 * 0.02 / np.sqrt(200))


def test_p_values_are_uniform_under_no_difference():
    rng = np.random.default_rng(5)
    p_values = [
        paired_test(*rng.random((2, 40)), np.arange(40), resamples=200, seed=seed)["p"] for seed in range(100)
    ]
    # 100 tests: 5 expected below 0.05, four deviations above are 14
    assert sum(p < 0.05 for p in p_values) <= 14 and np.mean(p_values) == pytest.approx(0.5, abs=0.12)


def test_one_user_is_no_evidence():
    """However many queries: with a single user there are two sign patterns, both as extreme as the data."""
    found = paired_test(np.ones(500), np.zeros(500), np.zeros(500, int))
    assert found["p"] == 1


def test_holm_by_hand():
    # sorted: 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.5 x 1, each at least the one before
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.4, 0.9, 0.6]) == [1.0, 1.0, 1.0]
    assert holm([]) == []


def test_seed_spread_by_hand():
    assert seed_spread([1.0, 2.0, 6.0]) == pytest.approx({"mean": 3, "min": 1, "max": 6, "std": 7**0.5})
    alone = seed_spread([0.25])
    assert alone["mean"] == 0.25 and np.isnan(alone["std"])
