"""What `recsys zeroshot` shows."""

from pathlib import Path

from rich.markup import escape
from rich.table import Table

from recsys.present import out, told
from recsys.zeroshot.config import Experiment
from recsys.zeroshot.lab import Lab, forecast
from recsys.zeroshot.run import run_experiment


def run(experiment: Experiment, root: Path) -> None:
    """The table of everybody on the same candidates, probes in a line each, and where the rest lies."""
    result = run_experiment(experiment, root, **told())
    out.print(result.outcome.table())
    for name, numbers in result.outcome.diagnostics.items():
        shown = ", ".join(
            f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in numbers.items()
        )
        out.print(f"{escape(name)}: {escape(shown)}", soft_wrap=True)
    spent = result.outcome.facts["spent"]
    tokens = spent["prompt_tokens"] + spent["completion_tokens"]
    money = (
        f"{spent['cost']:.4f} {spent['currency']}"
        if spent["price_known"]
        else r"price unknown, see \[budget] prices"
    )
    out.print(
        f"{spent['requests']:,} requests, {spent['paid_requests']:,} of them now; {tokens:,} tokens; {money}",
        soft_wrap=True,
    )
    out.print(f"report   {result.folder / 'report.html'}", soft_wrap=True)
    out.print(f"gallery  {result.folder / 'gallery.html'}", soft_wrap=True)
    if result.run_id is not None:
        out.print(f"MLflow   run {result.run_id}")


def dry_run(experiment: Experiment, root: Path) -> None:
    """What each step would cost at most; only data and split are made."""
    root.mkdir(parents=True, exist_ok=True)
    lab = Lab.open(experiment, root, **told())
    price = lab.meter.price
    table = Table(
        title=f"{escape(experiment.name)} with {escape(experiment.client.called)}: at most",
        caption="tokens are estimates; answers that are known already cost nothing; probes come on top",
    )
    for heading in ("step", "users", "requests", "prompt tokens", "answer tokens", price.currency):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    steps = forecast(lab)
    for step in steps:
        cost = f"{step.cost:.4f}" if price.known else "?"
        numbers = (f"{n:,}" for n in (step.users, step.requests, step.prompt_tokens, step.answer_tokens))
        table.add_row(escape(step.name), *numbers, cost)
    sums = [
        sum(getattr(step, name) for step in steps) for name in ("requests", "prompt_tokens", "answer_tokens")
    ]
    table.add_section()
    total = f"{sum(step.cost for step in steps):.4f}" if price.known else "not in the price file"
    table.add_row("all", "", *(f"{n:,}" for n in sums), total)
    out.print(table)
    limits = [
        f"{name} {value}" for name, value in experiment.budget.model_dump().items() if value is not None
    ]
    out.print(
        f"budget: {', '.join(limits) or 'no limit'}; {len(lab.answers)} answers are known", soft_wrap=True
    )
