"""Preparing a Dataset from a ratings file in the format of MovieLens 25M: wall time and peak memory.

    python benchmarks/prepare.py            25,000,000 seeded ratings
    python benchmarks/prepare.py --quick    1,000,000: time and memory are printed, no target applies
    python benchmarks/prepare.py --check    exit 1 where a target falls short, naming it

Target, on 2 cores: 25 million rows in 60 s or less, with a peak of 4 GB or less.
Each step runs in a process of its own, so that the peak is that of preparing alone.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FULL_ROWS, QUICK_ROWS = 25_000_000, 1_000_000
TARGET_SECONDS, TARGET_GB = 60.0, 4.0
USERS, MOVIES = 162_541, 62_423  # as in MovieLens 25M
CHUNK_USERS = 10_000


def generate(folder: Path, rows: int, seed: int) -> None:
    """ratings.csv sorted by user, then movie, with popularity and activity both long-tailed; and movies.csv."""
    import numpy as np
    import polars as pl

    rng = np.random.default_rng(seed)
    users = max(10, USERS * rows // FULL_ROWS)
    lengths = rng.lognormal(4.2, 1.2, users)
    lengths = np.maximum(1, lengths * rows / lengths.sum()).astype(np.int64)
    lengths[0] += max(0, rows - lengths.sum())  # rounding
    movie_ids = np.sort(rng.choice(209_171, MOVIES, replace=False)) + 1
    popularity = rng.permutation(MOVIES)
    with open(folder / "ratings.csv", "wb") as out:
        out.write(b"userId,movieId,rating,timestamp\n")
        for start in range(0, users, CHUNK_USERS):
            user = np.repeat(np.arange(start, min(start + CHUNK_USERS, users)), lengths[start:][:CHUNK_USERS])
            place = (MOVIES * rng.random(len(user)) ** 4).astype(np.int64)
            frame = pl.DataFrame(
                {
                    "userId": user + 1,
                    "movieId": movie_ids[popularity[place]],
                    "rating": rng.integers(1, 11, len(user)) / 2,
                    "timestamp": rng.integers(789_652_009, 1_574_327_703, len(user)),
                }
            )
            frame.sort("userId", "movieId").write_csv(out, include_header=False, float_precision=1)
    titles = [f"Film {number}, The ({1900 + number % 120})" for number in range(MOVIES)]
    genres = ["Comedy|Drama", "Action", "(no genres listed)"]
    pl.DataFrame(
        {"movieId": movie_ids, "title": titles, "genres": [genres[n % 3] for n in range(MOVIES)]}
    ).write_csv(folder / "movies.csv")


def prepare(folder: Path) -> None:
    from recsys.sources.movielens import MovieLens

    dataset = MovieLens(variant="25m", root=str(folder)).prepare(folder / "dataset")
    print(dataset.manifest["counts"]["interactions"], dataset.fingerprint)


def measured(step: str, folder: Path, rows: int, seed: int) -> tuple[float, float, str]:
    """(wall seconds, peak resident GB, what it printed) of one step in a fresh process."""
    command = [sys.executable, __file__, "--step", step, "--folder", str(folder)]
    command += ["--rows", str(rows), "--seed", str(seed)]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)  # of this child alone; RUSAGE_CHILDREN mixes them all
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    if process.returncode:
        sys.exit(f"step {step} ended with {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    return seconds, usage.ru_maxrss * unit / 1e9, printed.strip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=None, help="number of ratings")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS:,} ratings")
    parser.add_argument("--check", action="store_true", help="exit 1 where a target falls short")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--step", choices=["generate", "prepare"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    rows = options.rows or (QUICK_ROWS if options.quick else FULL_ROWS)
    if options.step == "generate":
        return generate(options.folder, rows, options.seed)
    if options.step == "prepare":
        return prepare(options.folder)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        measured("generate", folder, rows, options.seed)
        megabytes = (folder / "ratings.csv").stat().st_size / 1e6
        seconds, gigabytes, printed = measured("prepare", folder, rows, options.seed)
        stored = sum(path.stat().st_size for path in (folder / "dataset").iterdir()) / 1e6
    found, fingerprint = printed.split()
    print("| ratings | CSV MB | Dataset MB | wall s | rows a second | peak RSS GB | fingerprint | cores |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: |")
    print(
        f"| {int(found):,} | {megabytes:.0f} | {stored:.0f} | {seconds:.1f} | {int(found) / seconds:,.0f} "
        f"| {gigabytes:.2f} | {fingerprint[:12]} | {os.cpu_count()} |"
    )
    if rows != FULL_ROWS:
        print(f"the target ({TARGET_SECONDS:.0f} s, {TARGET_GB:.0f} GB) is stated for {FULL_ROWS:,} ratings")
        return None
    short = []
    if seconds > TARGET_SECONDS:
        short.append(f"wall time {seconds:.1f} s, target {TARGET_SECONDS:.0f} s")
    if gigabytes > TARGET_GB:
        short.append(f"peak RSS {gigabytes:.2f} GB, target {TARGET_GB:.0f} GB")
    print("; ".join(short) or f"within the target: {TARGET_SECONDS:.0f} s, {TARGET_GB:.0f} GB")
    if options.check and short:
        sys.exit(1)


if __name__ == "__main__":
    main()
