"""The base install serves what the full install trained.

    base_only.py make FOLDER     in the full environment: a fitted bundle, and requests with offline scores
    base_only.py check FOLDER    in an environment with the base install only: serve, ask, compare

Exit code 1 at the first difference. `make base-only` runs both.
"""

import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

TRAINING_ONLY = ("torch", "mlflow", "transformers", "sentence_transformers", "accelerate")


def make(folder: Path) -> None:
    import planted
    import torch
    from serving_case import make_case, requests

    from recsys.splits import SplitConfig, make_split

    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        dataset = planted.order(Path(temporary) / "chain")
        split = make_split(dataset, SplitConfig(method="leave_last_out", catalogue="listed"))
        case = make_case("fmrlrec", split, dataset.items, folder / "bundle")
    expected = {
        "bundle_id": case.bundle.id,
        "requests": requests(case, 100),
        "user": case.user_ids[3],
        "item": case.item_ids[5],
        "history_length": len(case.history(3)),
    }
    (folder / "expected.json").write_text(json.dumps(expected))
    print(f"made {folder / 'bundle'} and {len(expected['requests'])} requests with offline scores")


def check(folder: Path) -> None:
    from answers import differences
    from loopback import call, serving

    for name in TRAINING_ONLY:
        expect(find_spec(name) is None, f"{name} is installed here: this is not the base install")
    print(f"none of {', '.join(TRAINING_ONLY)} is importable")

    from recsys.bundle import Bundle

    expected = json.loads((folder / "expected.json").read_text())
    expect(Bundle.open(folder / "bundle").id == expected["bundle_id"], "the bundle has another id")
    print(f"opened bundle {expected['bundle_id'][:12]}")

    command = str(Path(sys.executable).with_name("recsys"))
    with serving([command, "serve", str(folder / "bundle"), "--port", "0"]) as url:
        for entry in expected["requests"]:
            status, answer = call(url + entry["path"], entry["body"])
            expect(status == 200, f"{entry['body']}: status {status}, {answer}")
            wrong = differences(entry, answer)
            expect(not wrong, f"{entry['body']}: {wrong}")
        status, answer = call(f"{url}/v1/items/{expected['item']}/similar?k=3")
        expect(status == 200 and len(answer["items"]) == 3, f"similar: {status}, {answer}")
    print(f"{len(expected['requests'])} answers over loopback equal the offline scores to 1e-5")

    bundle = str(folder / "bundle")
    said = run(command, "recommend", bundle, "--user", str(expected["user"]), "-k", "5")
    expect(said.count("Item ") == 5, f"recommend printed: {said}")
    said = run(command, "similar", bundle, "--item", str(expected["item"]), "-k", "4")
    expect(said.count("Item ") == 5, f"similar printed: {said}")  # four, and the one they are like
    expect("recsys run" in run(command, "--help"), "--help names no first command")
    said = run(command, "doctor")
    expect("pip install 'recsys[train]'" in said, f"doctor does not say how to get torch: {said}")
    print("recsys recommend, similar, --help and doctor work")


def run(*command: str) -> str:
    """What the command prints; wide enough that no table cell is cut."""
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ) | {"COLUMNS": "200"})
    expect(done.returncode == 0, f"{' '.join(command)}: exit code {done.returncode}: {done.stderr}")
    return done.stdout


def expect(right: bool, otherwise: str) -> None:
    if not right:
        print(f"FAILED: {otherwise}")
        sys.exit(1)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("make", "check"):
        sys.exit(__doc__)
    {"make": make, "check": check}[sys.argv[1]](Path(sys.argv[2]))
