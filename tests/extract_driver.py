"""Makes feature tables in forked processes that can be killed at an exact write (see kill_points).

    extract_driver.py ROOT     then, line by line: {"data": ..., "out": ..., "features": {...}, "kill": null | number}

Each line is answered by one: exit status (negative = signal), and how many writes were counted.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import hash_text  # noqa: F401
from kill_points import Points

from recsys.features.makers import extract_features


def child(entry: dict, root: str, result: Path) -> None:
    """One extraction; never returns."""
    points = Points(root, None if entry["kill"] is None else ["file", entry["kill"]])
    sys.addaudithook(points.hook)
    code = 1
    try:
        extract_features(entry["data"], entry["features"], out=entry["out"], progress=False)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    result.write_text(str(points.counts["file"]))
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "count"
        for line in sys.stdin:
            result.unlink(missing_ok=True)
            pid = os.fork()
            if pid == 0:
                child(json.loads(line), sys.argv[1], result)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            count = int(result.read_text()) if result.exists() else None
            print(json.dumps({"status": status, "count": count}), flush=True)


if __name__ == "__main__":
    main()
