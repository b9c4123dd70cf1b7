"""Which articles are bought together? The neighbour encoder on H&M co-purchases, by modality.

    python benchmarks/graph_links.py             2,000 articles, three seeds: an hour
    python benchmarks/graph_links.py --articles 9578
    python benchmarks/graph_links.py --quick     600 articles, one seed
    python benchmarks/graph_links.py --check     exit 1 where a target falls short, naming it

Articles, parts by product code, questions and inputs are those of benchmarks/notellm2.py: a test query is an article of
a test product, and no pair of it was learnt from. Rows: frozen features, a linear head on them, and the neighbour
encoder: own content alone; with the articles that resemble it; with what those go with, too; and all of that by pooling
in place of attention. `text` and `image`: the other modality is absent when asked; `text only` and `image only`: it was
absent when learnt, too. Every row has the same rates tried on the valid pairs. Intervals: 95 %, bootstrap over queries,
mean over seeds. Targets, lower bounds of paired differences in R@100: the encoder with neighbours above own content
alone, and above the linear head; both modalities above each one alone.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from notellm2 import (
    HEAD_RATES,
    Case,
    below_zero,
    case_of,
    distinct,
    head,
    prepared,
    show,
    untrained,
)

from recsys.embedder_training import validator
from recsys.item_retrieval import by_cosine
from recsys.models.embedders.contract import PairContext
from recsys.models.embedders.neighbours import NeighbourEmbedder, NeighbourEmbedderConfig
from recsys.train import fit
from recsys.train_config import TrainConfig

BOTH, EPOCHS = ("image", "text"), 15
VARIANTS = {
    "own content": {"relations": ()},
    "alike": {"relations": ("alike",)},
    "neighbours": {},
    "pooled": {"encoder": "pool"},
    "text only": {"tables": ("text",)},
    "image only": {"tables": ("image",)},
}


def learnt(case: Case, name: str, seed: int) -> None:
    """The variant at the rate that is best on the valid pairs."""
    best: tuple[float, NeighbourEmbedder] | None = None
    started = time.monotonic()
    for rate in HEAD_RATES:
        model = NeighbourEmbedder(NeighbourEmbedderConfig(**VARIANTS[name]))
        ctx = PairContext(
            distinct(case.parts.train.pairs_P2), case.content, seed=seed,
            validate=validator(case.content, case.parts.valid),
        )  # fmt: skip
        loop = TrainConfig(epochs=EPOCHS, lr=rate, weight_decay=0.01, schedule="cosine")
        progress = fit(model, ctx, loop)
        if best is None or progress.best_metric > best[0]:
            best = progress.best_metric, model
    case.costs[name] = {"train s": (time.monotonic() - started) / len(HEAD_RATES)}
    print(f"{name} seed {seed}: valid {best[0]:.4f}, {case.costs[name]['train s']:.0f} s a rate", flush=True)
    if model.config.tables == BOTH:
        case.judge_model(name, best[1], seed)
    else:
        case.judge(name, model.config.tables[0], by_cosine(best[1].encode(case.content)["joint"]))


def shortfalls(case: Case) -> list[str]:
    def values(method: str, inputs: str):
        return case.rows[method, inputs].mean()["recall_at_100"]

    ours = values("neighbours", "both")
    asked = {
        "neighbours - own content": ours - values("own content", "both"),
        "neighbours - linear head": ours - values("linear head", "both"),
        "neighbours - text only": ours - values("text only", "text"),
        "neighbours - image only": ours - values("image only", "image"),
    }
    return below_zero(asked)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="600 articles, one seed")
    parser.add_argument("--check", action="store_true", help="exit 1 where a target falls short")
    parser.add_argument("--articles", type=int)
    parser.add_argument("--seeds")
    parser.add_argument("--work", type=Path, help="where data and features are kept; default: temporary")
    args = parser.parse_args()
    articles = args.articles or (600 if args.quick else 2000)
    seeds = args.seeds or ("0" if args.quick else "0,1,2")
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or Path(temporary)) / f"hm-{articles}"
        case = case_of(prepared(work, articles), work, grid=0)
        untrained(case)
        for seed in map(int, seeds.split(",")):
            head(case, seed)
            for name in VARIANTS:
                learnt(case, name, seed)
    show(case)
    short = shortfalls(case)
    if args.check and short:
        sys.exit("\n".join(short))


if __name__ == "__main__":
    main()
