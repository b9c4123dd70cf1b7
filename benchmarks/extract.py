"""Image extraction, from files to a feature table, beside the encoder alone on pixels that lie ready.

    python benchmarks/extract.py            1,024 pictures, five rounds
    python benchmarks/extract.py --quick    256 pictures, one round
    python benchmarks/extract.py --check    exit 1 where a target falls short, naming it

The pictures are the posters below $RECSYS_DATA (default ../shared/data), else generated JPEGs of 600 x 400. The
whole of `extract` is timed: hashing, decoding, encoding, committing. The encoder alone is its forward pass in the same
batches with the same threads. A round is one after the other; the ratio is the median of the rounds' ratios, which a
busy machine disturbs least. Target: at least 90 % of the encoder's throughput.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import polars as pl
import torch
from PIL import Image

from recsys.dataset import Dataset
from recsys.features.extract import extract
from recsys.features.image.decode import decode
from recsys.features.image.extractor import ImageConfig, ImageExtractor

FULL, QUICK, ROUNDS, WARM_UP, TARGET = 1_024, 256, 5, 2, 0.9
ENCODERS = {"efficientnet_lite0": {}, "open_clip:ViT-B-32": {"random_weights": True}}


def pictures(folder: Path, count: int) -> tuple[Path, list[str], str]:
    """(root, names, what they are)."""
    root = (
        Path(os.environ.get("RECSYS_DATA", Path(__file__).parents[1] / "../shared/data"))
        / "movie-posters/posters"
    )
    found = sorted(path.name for path in root.glob("*.jpg"))[:count]
    if found:
        return root, found, "posters"
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8))
        coarse.resize((600, 400), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=85)
    return folder, [f"{number}.jpg" for number in range(count)], "generated"


def alone(extractor: ImageExtractor, paths: list[Path]) -> Callable[[], float]:
    """Seconds of the forward passes over all pictures, decoded and normalised beforehand; warmed up."""
    vision, size = extractor.vision, extractor.config.batch_size
    pixels = [decode(path, vision.geometry) for path in paths]
    batches = [vision._prepared(pixels[start : start + size]) for start in range(0, len(pixels), size)]

    def seconds(of: list) -> float:
        began = time.perf_counter()
        with torch.inference_mode():
            for batch in of:
                vision.network(*batch)
        return time.perf_counter() - began

    seconds(batches[:WARM_UP])
    return lambda: seconds(batches)


def whole(extractor: ImageExtractor, dataset: Dataset, folder: Path) -> Callable[[], float]:
    """Seconds of an extraction into a store of its own."""

    def run() -> float:
        store = tempfile.mkdtemp(dir=folder)
        began = time.perf_counter()
        table, _ = extract(dataset, extractor, "image", Path(store), progress=False)
        seconds = time.perf_counter() - began
        assert table.present_E.all()
        return seconds

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK:,} pictures, one round")
    parser.add_argument("--check", action="store_true", help="exit 1 where a target falls short")
    parser.add_argument(
        "--workers", type=int, default=None, help="decoding processes; default: half of the cores"
    )
    options = parser.parse_args()
    count, rounds = (QUICK, 1) if options.quick else (FULL, ROUNDS)
    print(
        "| encoder | pictures | batch | threads | workers | encoder alone, a second | files to table | ratio |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    short = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        root, names, kind = pictures(folder, count)
        items = pl.DataFrame({"item_id": range(len(names)), "image_path": names})
        log = pl.DataFrame({"user_id": [0], "item_id": [0], "timestamp": [0]})
        dataset = Dataset.from_frames(folder / "dataset", log, items, media_root=root)
        for encoder, settings in ENCODERS.items():
            extractor = ImageExtractor(ImageConfig(encoder=encoder, **settings))
            if options.workers is not None:
                extractor.workers = options.workers
            timed = alone(extractor, [root / name for name in names]), whole(extractor, dataset, folder)
            rates = [[len(names) / run() for run in timed] for _ in range(rounds)]
            bare, full = (statistics.median(column) for column in zip(*rates, strict=True))
            ratio = statistics.median(files / forward for forward, files in rates)
            print(
                f"| {encoder} | {len(names):,} {kind} | {extractor.config.batch_size} | {torch.get_num_threads()} "
                f"| {extractor.workers} | {bare:.1f} | {full:.1f} | {ratio:.2f} |",
                flush=True,
            )
            if ratio < TARGET:
                short.append(f"{encoder}: {ratio:.2f} of the encoder's throughput, target {TARGET}")
    print("; ".join(short) or f"within the target: {TARGET} of the encoder's throughput")
    if options.check and short:
        sys.exit(1)


if __name__ == "__main__":
    main()
