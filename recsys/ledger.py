"""The ledger of looks at a test part: every report on test data leaves a line, and says how many there were."""

import json
from collections.abc import Mapping
from pathlib import Path

from recsys.files import write_bytes


def write_look(path: Path, entry: Mapping[str, str]) -> int:
    """The number of this look at entry["split"], counting from 1; the same entry is written once."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    looks = [json.loads(line) for line in lines]
    same = [look for look in looks if look["split"] == entry["split"]]
    for look in same:
        if {key: look[key] for key in entry} == dict(entry):
            return look["look"]
    number = len(same) + 1
    lines.append(json.dumps(dict(entry) | {"look": number}))
    write_bytes(path, ("\n".join(lines) + "\n").encode())
    return number
