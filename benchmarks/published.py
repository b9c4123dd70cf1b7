"""Published figures beside ours, as a table in Markdown.

    python benchmarks/published.py RUNS [RUNS ...] [--out benchmarks/PUBLISHED.md] [--check]

RUNS: folders that `recsys run` wrote into (--out). A row whose recipe was not run there says so. --check: exit 1 where
a figure of ours that is there falls below the published one, naming it.
"""

import argparse
import json
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
METRICS = ("hr", "ndcg")


def reports(roots: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """recipe -> its latest report."""
    found = {}
    for root in roots:
        for path in sorted(root.glob("*/report/report.json")):
            found[path.parent.parent.name] = json.loads(path.read_text())
    return found


def ours(row: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Mapping[str, Any]] | None:
    """The model's entries at 10 under the row's mask, None where it was not run or not judged so."""
    recipe, model = row["ours"]
    if recipe not in known or model not in known[recipe]["models"]:
        return None
    values = known[recipe]["models"][model]["values"]
    own_mask = known[recipe]["facts"]["protocol"]["mask"]
    ending = "" if row["mask"] == own_mask else f"/mask.{row['mask']}"
    keys = {metric: f"test/{metric}_at_10{ending}" for metric in METRICS}
    return (
        {metric: values[key] for metric, key in keys.items()}
        if all(key in values for key in keys.values())
        else None
    )


def cell(entry: Mapping[str, Any]) -> str:
    value = short(entry["value"])
    return value if entry["low"] is None else f"{value} [{short(entry['low'])}, {short(entry['high'])}]"


def short(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")


def table(rows: Sequence[Mapping[str, Any]], known: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(lines of Markdown, figures that fall short)."""
    lines = [
        "| data | masked | published | HR@10 / NDCG@10 | ours | HR@10 | NDCG@10 | seeds | what differs |",
        "| --- | --- | --- | ---: | --- | ---: | ---: | ---: | --- |",
    ]
    short_of = []
    for row in rows:
        recipe, model = row["ours"]
        found = ours(row, known)
        cells = ["not run", "not run", "-"]
        if found is not None:
            seeds = found["hr"].get("seeds")
            cells = [
                cell(found["hr"]),
                cell(found["ndcg"]),
                str(len(known[recipe]["facts"]["seeds"]) if seeds else 1),
            ]
            short_of += [
                f"{row['data']}, {row['model']}: {metric}@10 {short(found[metric]['value'])} < {short(row[metric])}"
                for metric in METRICS
                if found[metric]["value"] < row[metric]
            ]
        published = f"{row['model']} ({row['source']})"
        figures = f"{short(row['hr'])} / {short(row['ndcg'])}"
        lines.append(
            f"| {row['data']} | {row['mask']} | {published} | {figures} | `{model}` of `{recipe}` | "
            f"{' | '.join(cells)} | {row['note']} |"
        )
    return lines, short_of


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, help="write the table here, under its heading")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    rows = tomllib.loads((HERE / "published.toml").read_text())["rows"]
    lines, short_of = table(rows, reports(options.runs))
    head = "# Published figures and ours\n\nMade by `python benchmarks/published.py RUNS`; means over seeds, "
    head += "95 % user bootstrap.\n\n"
    print("\n".join(lines))
    if options.out:
        options.out.write_text(head + "\n".join(lines) + "\n")
    for line in short_of:
        print(f"short: {line}", file=sys.stderr)
    sys.exit(1 if options.check and short_of else 0)


if __name__ == "__main__":
    main()
