"""Prints the model x check matrix after the contract tests."""

from contracts.matrix import render


def pytest_terminal_summary(terminalreporter):
    outcomes, reasons = {}, {}
    for outcome in ("passed", "failed", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            cell = dict(report.user_properties).get("cell")
            if cell is None:
                continue
            outcomes[tuple(cell)] = outcome
            if outcome == "skipped":
                reasons[tuple(cell)] = report.longrepr[2].removeprefix("Skipped: ")
    if outcomes:
        from contracts.table import CHECKS  # imported by the tests that ran: at no cost now

        places = {check.__name__: place for place, check in enumerate(CHECKS)}
        outcomes = dict(sorted(outcomes.items(), key=lambda entry: places[entry[0][1]]))
        terminalreporter.section("model x check")
        terminalreporter.write_line(render(outcomes, reasons))
