"""Report: all models of a run on the test part, as a terminal table, JSON, and one HTML page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys.evaluate import Evaluation
from recsys.files import write_bytes, write_json
from recsys.protocol import Key
from recsys.report_html import render
from recsys.stats import bootstrap_intervals, holm, paired_test, seed_spread

if TYPE_CHECKING:
    from rich.table import Table

HEADLINE = ("ndcg", "hr", "recall", "mrr")


@dataclass(frozen=True)
class Report:
    """models: name -> {values: key -> {value, low, high, n, seeds}, facts, versus}. facts: of the run."""

    models: Mapping[str, Mapping[str, Any]]
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, evaluations: Sequence[Evaluation], facts: Mapping[str, Any]) -> "Report":
        """Mean over seeds, user-bootstrap intervals of that mean, seed spread apart, and each model's paired
        difference to the selected one (Holm-corrected over the models)."""
        by_name: dict[str, list[Evaluation]] = {}
        for evaluation in evaluations:
            by_name.setdefault(evaluation.name, []).append(evaluation)
        models = {name: {"values": combined(runs), "facts": runs[0].facts} for name, runs in by_name.items()}
        chosen, headline = facts["selected"], _headline_key(evaluations[0])
        rivals = [name for name in by_name if name != chosen]
        users = evaluations[0].per_query["user"].to_numpy()
        tests = [
            paired_test(
                mean_per_query(by_name[name], headline), mean_per_query(by_name[chosen], headline), users
            )
            for name in rivals
        ]
        for name, test, p in zip(rivals, tests, holm([test["p"] for test in tests]), strict=True):
            models[name]["versus"] = test | {"p_holm": p, "metric": headline, "against": chosen}
        return cls(models, facts)

    def metrics(self) -> dict[str, float]:
        """Flat values for a tracker: the selected model under its plain keys, every model under model.NAME."""
        flat: dict[str, float] = {}
        for name, model in self.models.items():
            for key, entry in model["values"].items():
                part, rest = key.split("/", 1)
                targets = [f"{part}/model.{name}/{rest}"] + ([key] if name == self.facts["selected"] else [])
                for target in targets:
                    flat[target] = entry["value"]
                    if entry["low"] is not None:
                        flat |= {f"{target}/low": entry["low"], f"{target}/high": entry["high"]}
        return flat

    def columns(self) -> list[Key]:
        """The main metrics at every cut-off, no slice, full width; the first is the headline."""
        first = next(iter(self.models.values()))
        keys, ks = map(Key.parse, first["values"]), list(first["facts"]["protocol"]["ks"])
        plain = [key for key in keys if key.slice is None and key.width is None and key.metric in HEADLINE]
        return sorted(plain, key=lambda key: (HEADLINE.index(key.metric), ks.index(key.k)))

    def table(self) -> "Table":
        """Rows = models, the selected one marked; columns = headline metrics with 95 % intervals."""
        from rich.table import Table

        facts = next(iter(self.models.values()))["facts"]
        title = (
            f"test part: {facts['queries']} queries over {facts['catalogue']} items, "
            f"{facts['split_method']} split, mask {facts['protocol']['mask']}, seeds {self.facts['seeds']}"
        )
        columns = [key for key in self.columns() if key.k == facts["protocol"]["ks"][0]]
        table = Table(title=title, caption=f"look {self.facts['look']} at this test set; 95 % user bootstrap")
        table.add_column("model")
        table.add_column("valid")
        for key in columns:
            table.add_column(f"{key.metric}@{key.k}", justify="right")
        for name, model in self.models.items():
            valid = self.facts["valid"].get(name)
            cells = [f"{name} (selected)" if name == self.facts["selected"] else name]
            cells.append("-" if valid is None else _short(valid))
            cells += [cell(model["values"][str(key)]) for key in columns]
            table.add_row(*cells)
        return table

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        write_json(folder / "report.json", {"models": self.models, "facts": self.facts})
        write_bytes(folder / "report.html", render(self.models, self.facts, self.columns()).encode())

    @classmethod
    def load(cls, folder: str | Path) -> "Report":
        stored = json.loads((Path(folder) / "report.json").read_text(encoding="utf-8"))
        return cls(stored["models"], stored["facts"])


def interval(entry: Mapping[str, Any]) -> str:
    """ ".0353 [.0310, .0391]"."""
    value = f"{entry['value']:.4f}"
    return value if entry["low"] is None else f"{value} [{entry['low']:.4f}, {entry['high']:.4f}]"


def cell(entry: Mapping[str, Any]) -> str:
    """Value and interval under each other, without leading zeros: four metrics fit into 80 columns."""
    value = _short(entry["value"])
    return value if entry["low"] is None else f"{value}\n{_short(entry['low'])}-{_short(entry['high'])}"


def _short(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")


def _headline_key(evaluation: Evaluation) -> str:
    protocol = evaluation.facts["protocol"]
    return next(key for key in evaluation.values if key.split("/")[1] == f"ndcg_at_{protocol['ks'][0]}")


def mean_per_query(runs: Sequence[Evaluation], key: str) -> np.ndarray:
    """[Q] values of one metric, the mean over seeds."""
    return np.mean([run.per_query[key].to_numpy() for run in runs], axis=0)


def combined(runs: Sequence[Evaluation]) -> dict[str, dict[str, Any]]:
    """Values averaged over seeds; intervals from per-query values averaged over seeds."""
    first = runs[0]
    values = {key: dict(entry) for key, entry in first.values.items()}
    if len(runs) == 1:
        return values
    protocol = first.facts["protocol"]
    keys = [key for key in first.per_query.columns if key in values] if protocol["bootstrap"] else []
    if keys:
        averaged_QM = np.stack([mean_per_query(runs, key) for key in keys], axis=1)
        users = first.per_query["user"].to_numpy()
        bounds_2M = bootstrap_intervals(averaged_QM, users, protocol["bootstrap"], protocol["seed"])
    for key, entry in values.items():
        entry["seeds"] = seed_spread([run.values[key]["value"] for run in runs])
        entry["value"] = entry["seeds"]["mean"]
        if key in keys:
            entry["low"], entry["high"] = bounds_2M[:, keys.index(key)].tolist()
        else:
            entry["low"] = entry["high"] = None
    return values
