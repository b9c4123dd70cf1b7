"""The result of an experiment: everybody on the same candidates, and what the model is like."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys.evaluate import Evaluation
from recsys.files import write_json
from recsys.protocol import Key
from recsys.report import HEADLINE, cell
from recsys.stats import holm, paired_tests

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Outcome:
    """contenders: name -> {kind, values, versus, and of models asked: faults, usage, cost, slots, lpd}; kind: floor,
    bundle, variant, control, mmr or hybrid. diagnostics: probe -> numbers. facts: of the run."""

    contenders: Mapping[str, Mapping[str, Any]]
    diagnostics: Mapping[str, Any]
    facts: Mapping[str, Any]

    @property
    def headline(self) -> str:
        return self.facts["headline"]

    def columns(self) -> list[Key]:
        """Main metrics at all cut-offs, the headline's first."""
        keys = [Key.parse(key) for key in next(iter(self.contenders.values()))["values"]]
        plain = [key for key in keys if key.slice is None and key.metric in HEADLINE]
        ks = list(self.facts["protocol"]["ks"])
        return sorted(plain, key=lambda key: (HEADLINE.index(key.metric), ks.index(key.k)))

    def metrics(self) -> dict[str, float]:
        """Flat values for a tracker."""
        flat: dict[str, float] = {}
        for name, one in self.contenders.items():
            for key, entry in one["values"].items():
                part, rest = key.split("/", 1)
                target = f"{part}/model.{name}/{rest}"
                flat[target] = entry["value"]
                if entry["low"] is not None:
                    flat |= {f"{target}/low": entry["low"], f"{target}/high": entry["high"]}
            for group in ("faults", "usage"):
                flat |= {f"{group}/model.{name}/{key}": value for key, value in one.get(group, {}).items()}
            flat |= {f"{key}/model.{name}": one[key] for key in ("lpd", "cost_per_user") if key in one}
        for probe, numbers in self.diagnostics.items():
            flat |= {
                f"probe/{probe}/{key}": value
                for key, value in numbers.items()
                if isinstance(value, float | int)
            }
        flat |= {
            f"spent/{key}": value
            for key, value in self.facts["spent"].items()
            if isinstance(value, float | int)
        }
        return {key: float(value) for key, value in flat.items() if np.isfinite(value)}

    def table(self) -> "Table":
        """Rows = contenders; columns = NDCG and hit rate with 95 % intervals, faults, cost."""
        from rich.table import Table

        facts = self.facts
        title = (
            f"{facts['part']} part: {facts['queries']} users, {facts['candidates']['length']} candidates "
            f"({facts['candidates']['how']}), {facts['model']}"
        )
        look = "" if facts["look"] is None else f"look {facts['look']} at this test set; "
        table = Table(
            title=title, caption=f"{look}95 % user bootstrap; p: paired, Holm, against {facts['main']}"
        )
        shown = [key for key in self.columns() if key.metric == "ndcg"][:2]
        shown += [key for key in self.columns() if key.metric == "hr"][:1]
        for heading in ("who", *(f"{key.metric}@{key.k}" for key in shown), "p", "faults"):
            table.add_column(heading, justify="left" if heading == "who" else "right", overflow="fold")
        for name, one in self.contenders.items():
            versus = one.get("versus")
            cells = [cell(one["values"][str(key)]) for key in shown]
            p = "-" if versus is None else f"{versus['p_holm']:.3f}"
            table.add_row(name, *cells, p, faults_line(one.get("faults")))
        return table

    def save(self, folder: Path) -> None:
        write_json(folder / "zeroshot.json", vars(self))

    @classmethod
    def load(cls, folder: Path) -> "Outcome":
        return cls(**json.loads((folder / "zeroshot.json").read_text(encoding="utf-8")))


def faults_line(faults: Mapping[str, int] | None) -> str:
    """What went wrong, in few words; a dash for who is not asked."""
    if faults is None:
        return "-"
    named = [f"{count} {name}" for name, count in faults.items() if count and name != "answers"]
    return ", ".join(named) or f"none of {faults['answers']}"


def compared(evaluations: Mapping[str, Evaluation], main: str, headline: str) -> dict[str, dict[str, float]]:
    """Everybody's paired difference to the main variant, Holm-corrected over all."""
    rivals = [name for name in evaluations if name != main]
    if not rivals:
        return {}
    own = evaluations[main].per_query[headline].to_numpy()
    differences = [evaluations[name].per_query[headline].to_numpy() - own for name in rivals]
    users = evaluations[main].per_query["user"].to_numpy()
    tests = paired_tests(np.stack(differences, axis=1), users)
    return {
        name: test | {"p_holm": p, "against": main}
        for name, test, p in zip(rivals, tests, holm([test["p"] for test in tests]), strict=True)
    }
