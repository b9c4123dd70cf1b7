"""Every recipe key changed in turn: exactly the boxes that rest on it are made again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import planted
import pytest
from hash_text import HashTextConfig

from recsys.boxes import Box, Line
from recsys.config import Config, parse
from recsys.dataset import Dataset
from recsys.errors import ConfigError
from recsys.models.baselines.ease import EASEConfig
from recsys.models.baselines.popularity import PopularityConfig
from recsys.models.fmrlrec import FMRLRec, FMRLRecConfig
from recsys.pipeline import plan
from recsys.recipe import Recipe

NAMES = ("popularity", "ease", "fmrlrec")
TESTS = {f"test.{name}.seed0" for name in NAMES}
FITS = {f"fit.{name}.seed0" for name in NAMES}
JUDGED = TESTS | {"report", "track"}
"""What a look at the test part leads to."""
CHOSEN = {"select", "mlflow", "bundle", "report", "track"}
"""What rests on all fits together."""
TEXT = {"features.text", "fit.fmrlrec.seed0"} | TESTS | CHOSEN
"""Every test rests on every table: the slices of missing content need them."""
CUT = {"split"} | FITS | TESTS | CHOSEN
NOTHING: set[str] = set()


def one(name: str) -> set[str]:
    """A model of its own: fitted, tested, and in the choice."""
    return {f"fit.{name}.seed0", f"test.{name}.seed0"} | CHOSEN


def every(prefix: str, values: dict[str, Any], boxes: set[str]) -> dict[str, tuple[Any, set[str]]]:
    return {f"{prefix}.{key}": (value, boxes) for key, value in values.items()}


RANKED = {"ranker", "test.ranker", "bundle", "report", "track"}
LOOP = one("fmrlrec")  # the only model here that is trained by the loop
KEYS: dict[str, tuple[Any, set[str]]] = {
    "name": ("other", {"mlflow", "report", "track"}),
    "seeds": ([0, 1], {"fit.fmrlrec.seed1", "test.fmrlrec.seed1"} | CHOSEN),
    # the same class under its path; where a Dataset lies and what its source is called is no part of the data
    "data.kind": ("recsys.sources.prepared:Prepared", NOTHING),
    "data.path": ("COPY", NOTHING),
    **every(
        "split",
        {
            "positives": "weight >= 1", "min_user": 2, "min_item": 2, "method": "leave_last_out",
            "cuts": [0.7, 0.8], "holdout": 0.2, "warm_holdout": 0.2, "shots": 1, "queries": "event",
            "catalogue": "listed", "seed": 1,
        },
        CUT,
    ),
    **every(
        "features.text",
        {
            "kind": "hash_text:LengthText", "template": "{title}. {category}", "width": 8, "entity": "user",
            "hide": 0.1, "hide_seed": 1,
        },
        TEXT,
    ),
    # how many texts are encoded at once, and whether an empty table is an error, change no vector
    "features.text.batch_size": (8, NOTHING),
    "features.text.required": (False, NOTHING),
    # a table that no model reads still has its slice in every test
    "features.spare.width": (8, {"features.spare"} | JUDGED),
    "models.popularity.model": ("itemknn", one("popularity")),
    **every(
        "models.popularity",
        {"window_days": 3.0, "tables": ["text"], "smoothing": 1.0},
        one("popularity"),
    ),
    "models.ease.regularisation": (5.0, one("ease")),
    "models.ease.train.epochs": (7, NOTHING),  # closed form
    "models.fmrlrec.train.epochs": (7, one("fmrlrec")),
    "models.fmrlrec.positions": ("mixer", NOTHING),  # the default, said; the other is refused without attention
    "models.itemknn": ({}, one("itemknn")),
    **every(
        "models.fmrlrec",
        {
            "trunk": "gru", "tables": [], "widths": [4, 8, 16], "blocks": 3, "ffn_multiple": 2, "norm": "pre",
            "ffn": "relu",
            "input_norm": False, "dropout": 0.3, "modality_dropout": 0.1, "id_vectors": False, "id_dropout": 0.2,
            "item_bias": False, "whiten": 4, "radius": [0.4, 0.8], "state": 4, "heads": 2, "window": 10,
            "batch_size": 16, "history_dropout": 0.1, "mask_share": 0.3, "loss": "sampled",
            "negatives": 8, "negative_power": 0.5,
            "log_q": False, "gbce_t": 0.5, "uniformity": 0.5, "width_weights": "inverse_sqrt",
            "distil": 0.5, "width_temperature": True,
            "repeat_bias": True,
        },
        one("fmrlrec"),
    ),
    **every(
        "train",
        {
            "epochs": 3, "lr": 0.1, "weight_decay": 0.1, "warmup": 5, "schedule": "cosine", "clip": 1.0,
            "ema": 0.9, "accumulate": 2, "precision": "bf16", "matmul": "medium", "patience": 1,
        },
        LOOP,
    ),
    "train.checkpoint_steps": (7, NOTHING),
    "graph": ({"co_occurrence": {}}, NOTHING),  # no model here reads it
    "ranker": ({"generators": ["ease"]}, RANKED),
    # every model is compared by the validation metric, and fitted on the parts: closed-form ones too
    "tune": ({"ease": {"regularisation": [1.0, 2.0]}}, NOTHING),
    "train.fit_parts": (["train", "valid"], FITS | TESTS | CHOSEN),
    **every(
        "train.monitor",
        {"metric": "hr_at_5", "width": 4, "mask": "off", "window": 7, "pools": "harmonic", "queries": 10},
        FITS | TESTS | CHOSEN,
    ),
    # selection stays; every model is fitted once more, and it is those fits that are tested and shipped
    "select.refit": (["train", "valid"], {f"re{fit}" for fit in FITS} | TESTS | CHOSEN - {"select"}),
    **every(
        "evaluate",
        {
            "ks": [3], "mask": "off", "window": 7, "repeat_targets": "miss", "widths": "all",
            "slices": ["pool"], "more_masks": ["off"], "bootstrap": 7, "seed": 1,
        },
        JUDGED,
    ),
    **every(
        "bundle",
        {"histories": 7, "states": 5, "index": "none", "columns": ["title"], "thumbnails": 64},
        {"bundle", "report", "track"},
    ),
    **every(
        "track",
        {"enabled": False, "uri": "sqlite:///other.db", "experiment": "other", "registered_name": "other"},
        {"mlflow", "track"},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return planted.content(tmp_path_factory.mktemp("keys") / "data", users=20).path


def values_of(dataset: Path) -> dict[str, Any]:
    return {
        "name": "tiny",
        "data": {"kind": "dataset", "path": str(dataset)},
        "features": {"text": {"kind": "hash_text:HashText"}, "spare": {"kind": "hash_text:HashText"}},
        "models": {"popularity": {}, "ease": {}, "fmrlrec": {"tables": ["text"], "widths": [8]}},
    }


def planned(values: dict[str, Any], root: Path, **options) -> Line:
    return plan(parse(Recipe, values, where="test"), root, **options)


def with_key(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    *tables, last = key.split(".")
    inner = values
    for table in tables:
        inner = inner.setdefault(table, {})
    inner[last] = value
    return values


def made_again(line: Line, before: Line) -> set[str]:
    """Boxes that would not be found under the folders of `before`."""
    known = {box.folder for box in before.boxes.values()}
    return {box.name for box in line.boxes.values() if box.folder not in known}


@pytest.mark.parametrize("key", KEYS)
def test_a_changed_key_makes_exactly_these_boxes_again(key, dataset, tmp_path):
    value, boxes = KEYS[key]
    if value == "COPY":
        source = Dataset.open(dataset)
        value = str(Dataset.from_frames(tmp_path / "copy", source.interactions, source.items).path)
    before = planned(values_of(dataset), tmp_path)
    assert made_again(planned(with_key(values_of(dataset), key, value), tmp_path), before) == boxes


def leaves(config: type[Config], prefix: str = "") -> Iterator[str]:
    """Every key of a config, nested ones by their path."""
    for name, field in config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_the_table_covers_every_key():
    tables = {"data", "features", "models", "tune"}  # free tables: their keys are those of what they name
    wanted = {key for key in leaves(Recipe) if key not in tables}
    wanted |= {"data.kind", "data.path", "features.text.kind", "models.popularity.model"}
    wanted |= {f"features.text.{key}" for key in leaves(HashTextConfig)}
    for name, config in {
        "popularity": PopularityConfig,
        "ease": EASEConfig,
        "fmrlrec": FMRLRecConfig,
    }.items():
        wanted |= {f"models.{name}.{key}" for key in leaves(config)}
    assert "train.monitor.metric" in wanted and "evaluate.ks" in wanted
    assert wanted <= KEYS.keys()


@pytest.mark.parametrize(
    "key, value",
    {
        "generators": ["ease", "popularity"],
        "per_generator": 7,
        "queries": 9,
        "tables": ["text"],
        "dims": 3,
        "trees": 5,
        "leaves": 4,
        "learning_rate": 0.2,
        "min_leaf": 9,
        "truncation": 7,
        "popularity_dropout": 0.5,
        "seed": 1,
        "required_lift": 0.1,
        "attribution_hours": 2.0,
    }.items(),
)
def test_a_changed_key_of_the_ranker_makes_it_again_and_what_rests_on_it(key, value, dataset, tmp_path):
    values = with_key(values_of(dataset), "ranker", {"generators": ["ease"]})
    before = planned(values, tmp_path)
    assert made_again(planned(with_key(values, f"ranker.{key}", value), tmp_path), before) == RANKED


def with_graph(dataset: Path) -> dict[str, Any]:
    values = values_of(dataset)
    values["graph"] = {"knn": {"tables": ["text"]}, "co_occurrence": {}}
    values["models"]["mmgl"] = {"tables": ["text"]}
    return values


@pytest.mark.parametrize(
    "key, value",
    {
        "knn.tables": ["spare"],
        "knn.neighbours": 3,
        "knn.mutual": False,
        "knn.in_degree": 7,
        "knn.exact_up_to": 7,
        "co_occurrence.neighbours": 3,
        "co_occurrence.weight": "cosine",
        "co_occurrence.least": 1,
        "values": {"tables": ["text"], "max_degree": 7},
        "pairs": {"kinds": ["related"], "neighbours": 3},
        "seed": 1,
    }.items(),
)
def test_a_changed_key_of_the_graph_makes_it_again_and_the_models_that_read_it(key, value, dataset, tmp_path):
    before = planned(with_graph(dataset), tmp_path)
    assert "graph.train" in before.boxes
    changed = planned(with_key(with_graph(dataset), f"graph.{key}", value), tmp_path)
    assert made_again(changed, before) == {"graph.train"} | one("mmgl")


def test_a_graph_stands_on_the_tables_it_is_made_of(dataset, tmp_path):
    """One that no model reads as a table is in the graph all the same."""
    values = with_key(with_graph(dataset), "graph.knn.tables", ["spare"])
    before = planned(values, tmp_path)
    changed = planned(with_key(values, "features.spare.width", 8), tmp_path)
    assert {"features.spare", "graph.train", "fit.mmgl.seed0"} <= made_again(changed, before)
    assert not {"fit.ease.seed0", "fit.fmrlrec.seed0"} & made_again(changed, before)


def test_a_refit_has_a_graph_of_its_own_parts(dataset, tmp_path):
    before = planned(with_graph(dataset), tmp_path)
    values = with_key(with_graph(dataset), "select.refit", ["train", "valid"])
    line = planned(values, tmp_path)
    assert {"graph.train_valid", "refit.mmgl.seed0"} <= made_again(line, before)
    order = list(line.boxes)
    assert order.index("graph.train") < order.index("fit.popularity.seed0")
    assert order.index("graph.train_valid") < order.index("refit.mmgl.seed0")
    again = planned(with_key(with_graph(dataset), "train.fit_parts", ["train", "valid"]), tmp_path)
    assert again.boxes["graph.train_valid"].key == line.boxes["graph.train_valid"].key


def test_a_graph_that_cannot_be_is_refused(dataset, tmp_path):
    values = values_of(dataset)
    values["models"]["mmgl"] = {"tables": ["text"]}
    with pytest.raises(ConfigError, match=r"models.mmgl reads the graph.*add \[graph\]"):
        planned(values, tmp_path)
    with pytest.raises(ConfigError, match="names 'image'"):
        planned(with_key(values, "graph.knn.tables", ["image"]), tmp_path)


def test_a_raised_version_of_the_graph_makes_it_again(dataset, tmp_path, monkeypatch):
    before = planned(with_graph(dataset), tmp_path)
    monkeypatch.setattr("recsys.graphs.VERSION", 99)
    assert made_again(planned(with_graph(dataset), tmp_path), before) == {"graph.train"} | one("mmgl")


def test_another_fit_of_a_generator_makes_the_ranker_again(dataset, tmp_path):
    def values() -> dict[str, Any]:
        return with_key(values_of(dataset), "ranker", {"generators": ["ease"]})

    before = planned(values(), tmp_path)
    made = made_again(planned(with_key(values(), "models.ease.regularisation", 5.0), tmp_path), before)
    assert made == one("ease") | RANKED
    made = made_again(planned(with_key(values(), "models.popularity.smoothing", 1.0), tmp_path), before)
    assert made == one("popularity")


def test_a_key_set_to_what_it_was_makes_nothing_again(dataset, tmp_path):
    before = planned(values_of(dataset), tmp_path)
    for key, value in {"train.lr": 1e-3, "evaluate.ks": [10, 20], "split.method": "global_time"}.items():
        assert made_again(planned(with_key(values_of(dataset), key, value), tmp_path), before) == NOTHING


def test_another_seed_leaves_closed_forms_alone(dataset, tmp_path):
    before = planned(values_of(dataset), tmp_path)
    made = made_again(planned(with_key(values_of(dataset), "seeds", [1]), tmp_path), before)
    assert made == {"fit.fmrlrec.seed1", "test.fmrlrec.seed1"} | CHOSEN


def test_seeds_have_keys_of_their_own(dataset, tmp_path):
    boxes = planned(with_key(values_of(dataset), "seeds", [0, 1]), tmp_path).boxes
    assert boxes["fit.fmrlrec.seed0"].key != boxes["fit.fmrlrec.seed1"].key


def test_other_rows_make_everything_again(dataset, tmp_path):
    source = Dataset.open(dataset)
    fewer = Dataset.from_frames(tmp_path / "fewer", source.interactions.head(100), source.items).path
    before = planned(values_of(dataset), tmp_path)
    assert made_again(planned(values_of(fewer), tmp_path), before) == set(before.boxes)


def test_device_and_place_are_not_in_the_keys(dataset, tmp_path):
    one, other = (
        planned(values_of(dataset), tmp_path / place, device=device)
        for place, device in (("here", "cpu"), ("there", "cuda"))
    )
    assert [(box.name, box.key) for box in one.boxes.values()] == [
        (box.name, box.key) for box in other.boxes.values()
    ]


def test_a_raised_version_makes_the_model_again(dataset, tmp_path, monkeypatch):
    before = planned(values_of(dataset), tmp_path)
    monkeypatch.setattr(FMRLRec, "version", FMRLRec.version + 1)
    assert made_again(planned(values_of(dataset), tmp_path), before) == one("fmrlrec")


def test_a_line_walks_in_order_and_skips_what_is_there(tmp_path):
    line, order = Line(tmp_path), []

    def make(box: Box) -> None:
        order.append(box.name)
        box.scratch.mkdir(parents=True)
        box.folder.mkdir(parents=True)

    first = line.add("first", make, {}, {})
    line.add("second", make, {"a": 1}, {"first": first})
    told: list[tuple[str, bool]] = []
    made = line.run(lambda box: None, lambda box, cached: told.append((box.name, cached)), until="first")
    assert [box.name for box in made] == order == ["first"]
    line.run(lambda box: None, lambda box, cached: told.append((box.name, cached)))
    assert order == ["first", "second"]
    assert told == [("first", False), ("first", True), ("second", False)]
    assert not list((tmp_path / "scratch").iterdir())
