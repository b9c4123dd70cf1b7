"""The model x check matrix: printed after the contract tests, or by `python tests/contracts/matrix.py`."""

import sys
from collections.abc import Mapping
from pathlib import Path

MARKS = {"passed": "+", "skipped": ".", "failed": "FAIL"}


def render(outcomes: Mapping[tuple[str, str], str], reasons: Mapping[tuple[str, str], str]) -> str:
    """Checks down, models across; a dot is an excuse by a declared flag, explained below."""
    models = list(dict.fromkeys(model for model, _ in outcomes))
    checks = list(dict.fromkeys(check for _, check in outcomes))
    label = max(map(len, checks))
    lines = [" " * label + "  " + "  ".join(models)]
    for check in checks:
        cells = [MARKS[outcomes.get((model, check), "skipped")].center(len(model)) for model in models]
        lines.append(f"{check:<{label}}  " + "  ".join(cells))
    excused: dict[tuple[str, str], list[str]] = {}
    for (model, check), reason in reasons.items():
        excused.setdefault((check, reason), []).append(model)
    lines += [f". {check}: {reason}: {', '.join(found)}" for (check, reason), found in excused.items()]
    return "\n".join(lines)


def main() -> int:
    """Run every check; 1 where one fails."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from contracts.cases import cases
    from contracts.table import CHECKS

    outcomes, reasons, failures = {}, {}, []
    for case in cases():
        for check, excuse in CHECKS.items():
            cell = (case.name, check.__name__)
            if reason := excuse(case):
                outcomes[cell], reasons[cell] = "skipped", reason
                continue
            try:
                check(case)
                outcomes[cell] = "passed"
            except AssertionError as error:
                outcomes[cell] = "failed"
                failures.append(f"{cell[0]}: {cell[1]}: {error}")
    print("\n".join([render(outcomes, reasons), *failures]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
