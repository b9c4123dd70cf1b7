"""A model's table may be like another's: what it does not set itself stands as there."""

import pytest

from recsys.config import parse
from recsys.errors import ConfigError
from recsys.recipe import Recipe, model_tables


def _recipe(models):
    return parse(Recipe, {"name": "r", "data": {"kind": "movielens"}, "models": models}, where="r")


def test_a_table_like_another_keeps_what_it_does_not_set():
    base = {"model": "fmrlrec", "blocks": 1, "dropout": 0.3, "train": {"epochs": 3, "lr": 0.1}}
    recipe = _recipe(
        {
            "base": base,
            "deep": {"like": "base", "blocks": 2, "train": {"lr": 0.2}},
            "deeper": {"like": "deep", "blocks": 3},
        }
    )
    assert recipe.models["base"] == base
    assert recipe.models["deep"] == base | {"blocks": 2, "train": {"epochs": 3, "lr": 0.2}}
    assert recipe.models["deeper"] == recipe.models["deep"] | {"blocks": 3}


def test_a_table_like_one_named_after_its_model_is_of_that_model():
    tables = model_tables(_recipe({"ease": {"regularisation": 5.0}, "strong": {"like": "ease"}}))
    assert tables["strong"][:2] == ("ease", {"regularisation": 5.0})


@pytest.mark.parametrize(
    ("models", "named"),
    [
        ({"a": {"like": "b"}, "b": {"like": "a"}}, "models.b.like = 'a'"),
        ({"a": {"like": "a"}}, "models.a.like = 'a'"),
        ({"a": {"like": "absent"}}, "models.a.like = 'absent'"),
    ],
)
def test_likeness_that_leads_nowhere_is_refused(models, named):
    with pytest.raises(ConfigError, match="expected another model") as caught:
        _recipe(models)
    assert named in str(caught.value)
