"""An experiment as one TOML file."""

import re
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from recsys.config import Config, override, parse, read_toml
from recsys.errors import ConfigError, nearest
from recsys.protocol import Protocol
from recsys.recipe import TrackConfig, merge
from recsys.split_config import SplitConfig
from recsys.zeroshot.budget import BudgetConfig
from recsys.zeroshot.clients.config import ClientConfig
from recsys.zeroshot.modes import RankConfig
from recsys.zeroshot.prompts import PromptConfig

Control = Literal["no_history", "shuffled", "other_user", "shuffled_images"]
_NAME = re.compile(r"[A-Za-z0-9][\w\-]*", re.ASCII)
EXPERIMENTS = "recsys.zeroshot.experiments"


class CandidatesConfig(Config):
    """Which items are ranked for each user."""

    method: Literal["random", "popularity", "retrieved", "file"] = "random"
    """random: uniform over the catalogue. popularity: by train counts. retrieved: the best by a bundle. file: a folder
    of candidates that was saved before."""
    n: Annotated[int, Field(ge=2, le=200)] = 20
    """Candidates a user."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the drawing and of the order in the file."""
    guaranteed: bool = True
    """The targets are among them; off: only where the method finds them, and the report says how often."""
    retriever: str | None = None
    """retrieved: a name of [bundles]."""
    base: str | None = None
    """A name of [bundles], or "popularity", whose order goes with the candidates: for prompt.base_order, for what a
    model leaves out, and for the hybrid."""
    path: str | None = None
    """file: the folder."""


class CaptionsConfig(Config):
    """Pictures and texts as short captions, for prompts that show them."""

    source: str | None = None
    """A column of items, e.g. text; "labels": what an image classifier sees (offline); "transformers:NAME_OR_FOLDER": a
    vision-language model. None = no captions."""
    words: Annotated[int, Field(ge=1)] = 20
    """Most words of a caption in a prompt."""
    prompt: str | None = None
    """transformers: what the model is asked, as for kind = "image_captions"."""


class DiagnosticsConfig(Config):
    """Further questions about the model rather than the users; each costs requests of its own."""

    position: bool = False
    """The truth in slots first, quarter, half, three quarters, last: how far NDCG@10 moves."""
    similarity: bool = False
    """All users get the same candidates: do similar users get similar answers, and do unlike users too?"""
    memory: bool = False
    """Half of a title: does the model know the other half?"""
    users: Annotated[int, Field(ge=2)] = 20
    """Users (or items, for memory) that are asked about."""


class HybridConfig(Config):
    """The model's ranking and the base ranker's in one, tuned on validation users."""

    enabled: bool = False
    """Needs candidates.base."""
    users: Annotated[int, Field(ge=1)] = 50
    """Validation users that weight and gate are chosen on; each costs as much as a test user."""


class ChoiceConfig(Config):
    """The choice among variants, on validation users; the test part then sees the chosen one alone."""

    enabled: bool = False
    """Off: all variants are tested, and all stand in the table."""
    users: Annotated[int, Field(ge=1)] = 50
    """Validation users of the choice."""
    metric: str = "ndcg_at_10"
    """What is chosen by."""


class Experiment(Config):
    """A zero-shot experiment, fully resolved."""

    name: str
    """Names the output folder and the MLflow run."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the users that are drawn, of orders and of controls."""
    part: Literal["test", "valid", "ranker"] = "test"
    """Part of the split that is asked about; ranker: that of a staged split which a LightGBM ranker learns from."""
    users: Annotated[int, Field(ge=1)] | None = 200
    """Users drawn from the part; None = all."""
    data: dict[str, Any]
    """A source, as in a recipe."""
    split: SplitConfig = SplitConfig()
    """As in a recipe; a trained bundle must have been made under the same."""
    candidates: CandidatesConfig = CandidatesConfig()
    """What is ranked."""
    captions: CaptionsConfig = CaptionsConfig()
    """What pictures show."""
    client: ClientConfig = ClientConfig()
    """Who answers."""
    prompt: PromptConfig = PromptConfig()
    """What is asked."""
    rank: RankConfig = RankConfig()
    """How it is asked."""
    budget: BudgetConfig = BudgetConfig()
    """What it may cost."""
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Name -> {prompt, rank}: what differs from [prompt] and [rank]. None: one variant, called as the model is."""
    controls: tuple[Control, ...] = ()
    """The first variant once more: without history, with it shuffled, with another user's, with pictures and captions
    shuffled among items."""
    bundles: dict[str, str] = Field(default_factory=dict)
    """Name -> folder of a trained bundle, ranked on the same candidates."""
    floors: tuple[Literal["random", "popularity", "bm25"], ...] = ("random", "popularity", "bm25")
    """random: what chance gives, exactly. popularity: train counts. bm25: words that titles share with the history."""
    mmr: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    """Weights of relevance of an MMR stage after the first variant, by categories and words of titles."""
    diagnostics: DiagnosticsConfig = DiagnosticsConfig()
    """Probes."""
    hybrid: HybridConfig = HybridConfig()
    """Together with a trained ranker."""
    choose: ChoiceConfig = ChoiceConfig()
    """Choice of a variant."""
    evaluate: Protocol = Protocol(ks=(10, 1, 5, 20), mask="off", slices=("history", "popularity"))
    """As in a recipe; the mask does nothing, for only candidates are ranked."""
    track: TrackConfig = TrackConfig()
    """MLflow."""
    traces: Annotated[int, Field(ge=0)] = 20
    """Questions of the main variant that are kept as MLflow traces, pictures by their hashes; half a second each."""

    @model_validator(mode="after")
    def _fits(self):
        for name in (self.name, *self.variants, *self.bundles):
            if not _NAME.fullmatch(name):  # names stand in folder names and metric keys
                raise ValueError(f"names of letters, digits, - and _; {name!r} is none")
        asked = self.candidates
        known = {*self.bundles, "popularity"}
        if asked.method == "retrieved" and asked.retriever not in self.bundles:
            raise ValueError(f"candidates.retriever = {asked.retriever!r}: expected a name of [bundles]")
        if asked.base is not None and asked.base not in known:
            raise ValueError(f"candidates.base = {asked.base!r}: expected one of {', '.join(sorted(known))}")
        if asked.method == "file" and asked.path is None:
            raise ValueError('candidates.path: a folder is needed for method = "file"')
        if self.hybrid.enabled and asked.base is None:
            raise ValueError("hybrid.enabled: candidates.base names no ranker")
        if (self.hybrid.enabled or self.choose.enabled) and self.part != "test":
            raise ValueError("hybrid and choose learn from valid: the part must be test")
        if self.choose.enabled and len(self.variants) < 2:
            raise ValueError("choose.enabled: two variants at least are needed")
        if self.split.queries != "user":
            raise ValueError('split.queries: one query a user is asked, so "user"')
        for name in self.variants:
            self.variant(name)
        return self

    @property
    def variant_names(self) -> tuple[str, ...]:
        return tuple(self.variants) or (_plain(self.client.called),)

    def variant(self, name: str) -> tuple[PromptConfig, RankConfig]:
        """Raises ConfigError naming a wrong key."""
        table = self.variants.get(name, {})
        strange = [key for key in table if key not in ("prompt", "rank")]
        if strange:
            raise ConfigError(f"unknown key 'variants.{name}.{strange[0]}'", expected="prompt and rank")
        where = f"variants.{name}"
        return (
            parse(PromptConfig, merge(self.prompt.model_dump(), table.get("prompt", {})), where=where),
            parse(RankConfig, merge(self.rank.model_dump(), table.get("rank", {})), where=where),
        )

    @property
    def protocol(self) -> Protocol:
        """Cut-offs beyond the candidates' number are left out."""
        ks = tuple(k for k in self.evaluate.ks if k <= self.candidates.n) or (self.candidates.n,)
        return self.evaluate.model_copy(update={"ks": ks, "mask": "off"})


def _plain(name: str) -> str:
    return re.sub(r"[^\w\-]", "-", name).lstrip("-_") or "model"


def shipped_experiments() -> list[str]:
    """Names of the experiments inside the package."""
    names = [entry.name for entry in resources.files(EXPERIMENTS).iterdir()]
    return sorted(name[:-5] for name in names if name.endswith(".toml") and name != "prices.toml")


def load_experiment(name: str, assignments: list[str] | None = None) -> Experiment:
    """A shipped experiment by name, or a TOML file, with overrides. Raises ConfigError naming the first wrong key."""
    known = shipped_experiments()
    if name in known:
        text = (resources.files(EXPERIMENTS) / f"{name}.toml").read_text(encoding="utf-8")
        values: Mapping[str, Any] = tomllib.loads(text)
    else:
        if not name.endswith(".toml") and not Path(name).exists():
            raise ConfigError(f"no experiment {name!r}", fix=f"{nearest(name, known)}; or give a .toml file")
        values = read_toml(Path(name))
    return parse(Experiment, override(dict(values), assignments or []), where=name)
