"""The leak checker passes what is clean and names what is not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from contracts.worlds import world

from recsys.errors import LeakError
from recsys.features.whitening import Whitening
from recsys.leaks import check_leaks, watched
from recsys.models.base import FitContext
from recsys.models.baselines.content_knn import ContentKNN, ContentKNNConfig
from recsys.models.baselines.popularity import Popularity, PopularityConfig
from recsys.models.coldstart.clcrec import CLCRec, CLCRecConfig
from recsys.models.coldstart.model import ColdStart, ColdStartConfig
from recsys.models.coldstart.taught import DropoutNet, DropoutNetConfig
from recsys.schema import Log
from recsys.splits import Split
from recsys.train_config import TrainConfig

LOOP = TrainConfig(epochs=1)
SMALL = {"width": 9, "hidden": 8, "batch_size": 64, "tables": ("text", "about")}


def tables(split: Split):
    return world("content").tables


@pytest.mark.parametrize(
    "make",
    [
        lambda: ColdStart(ColdStartConfig(**SMALL, pretrained=1.0)),
        lambda: CLCRec(CLCRecConfig(**SMALL)),
        lambda: DropoutNet(DropoutNetConfig(**SMALL)),
        lambda: ContentKNN(ContentKNNConfig()),
        lambda: Popularity(PopularityConfig()),
    ],
    ids=["coldstart", "clcrec", "dropoutnet", "content_knn", "popularity"],
)
def test_clean_models_pass(make):
    check_leaks(make, world("content").split, tables, LOOP)


class DrawsEverything(CLCRec):
    def setup(self, ctx: FitContext) -> None:
        super().setup(ctx)
        self.module.draw_I.fill_(1)


class DrawsEvenly(CLCRec):
    def setup(self, ctx: FitContext) -> None:
        super().setup(ctx)
        size = ctx.num_items
        self.module.drawn = lambda count: torch.randint(size, (count,))


class FitsOnAllItems(ContentKNN):
    """Statistics of the whole catalogue, cold items included."""

    def fit(self, ctx: FitContext) -> None:
        super().fit(ctx)
        table = ctx.item_table("text")
        self.whitenings = {"text": Whitening.fit(table, np.ones(ctx.num_items, bool), 8)}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DrawsEverything(CLCRecConfig(**SMALL)), "draws: .*weight on cold"),
        (lambda: DrawsEvenly(CLCRecConfig(**SMALL)), "draws: .*evenly"),
        (lambda: FitsOnAllItems(ContentKNNConfig()), "content: whitening.text"),
    ],
    ids=["weights", "evenly", "statistics"],
)
def test_broken_models_are_named(make, said):
    with pytest.raises(LeakError, match=said):
        check_leaks(make, world("content").split, tables, LOOP)


def test_counts_of_later_rows_are_named():
    def all_rows(split: Split, found) -> FitContext:
        return FitContext(split.fit_log(split.config.parts), found)

    with pytest.raises(LeakError, match="rows: scores"):
        check_leaks(
            lambda: Popularity(PopularityConfig()), world("content").split, tables, LOOP, context=all_rows
        )


def test_vocabularies_of_later_rows_are_named():
    """A table made anew under the changed split is another one where it was fitted on rows of later parts."""

    def fitted_on_all(split: Split):
        log: Log = split.fit_log(split.config.parts)
        text = world("content").tables["item", "text"]
        return tables(split) | {
            ("item", "text"): replace(text, values_EF=text.values_EF + log.item_counts()[:, None])
        }

    with pytest.raises(LeakError, match="rows: table"):
        check_leaks(lambda: Popularity(PopularityConfig()), world("content").split, fitted_on_all, LOOP)


def test_watching_ends():
    before = torch.multinomial
    with watched(np.ones(3, bool)):
        assert torch.multinomial is not before
    assert torch.multinomial is before
