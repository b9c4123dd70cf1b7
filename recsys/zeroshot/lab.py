"""What an experiment works with: data, users, candidates, shown items, the client; and one variant run over them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from recsys.dataset import Dataset
from recsys.evaluate import Evaluation, Scorer
from recsys.pipeline import plan
from recsys.rankings import Rankings, evaluate_rankings
from recsys.recipe import Recipe
from recsys.splits import Split
from recsys.zeroshot.asking import Contest, contest, rankings_of
from recsys.zeroshot.budget import Meter, estimate, read_price
from recsys.zeroshot.cache import Answers, CachedClient
from recsys.zeroshot.captions import caption_pictures, cut, is_column
from recsys.zeroshot.cases import Asked, Counts, controlled, drawn, make_candidates, make_cases, open_scorers
from recsys.zeroshot.clients.base import Client
from recsys.zeroshot.clients.config import open_client
from recsys.zeroshot.config import Experiment
from recsys.zeroshot.modes import RankConfig, Ranker
from recsys.zeroshot.probes import content_vectors
from recsys.zeroshot.prompts import Case, PromptConfig, Prompter
from recsys.zeroshot.shelf import Shelf, make_shelf

_SAMPLE = 20


@dataclass(frozen=True)
class Step:
    """One variant over the users of one part. control: what is done to the cases or the pictures."""

    name: str
    prompt: PromptConfig
    rank: RankConfig
    part: str
    users: int | None
    control: str | None = None


@dataclass
class Lab:
    """An experiment's materials. given: a client in place of the one that [client] names."""

    config: Experiment
    root: Path
    dataset: Dataset
    split: Split
    given: Client | None = None
    _asked: dict = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, config: Experiment, root: Path, given: Client | None = None, **told: Callable) -> "Lab":
        """Data and split are the boxes that `recsys run` makes and shares."""
        recipe = Recipe(name=config.name, data=config.data, split=config.split, models={"popularity": {}})
        line = plan(recipe, root)
        quiet = {"started": lambda box: None, "finished": lambda box, cached: None}
        line.run(until="split", **(quiet | told))
        dataset = Dataset.open(line.boxes["data"].folder)
        return cls(config, root, dataset, Split.load(line.boxes["split"].folder), given)

    @cached_property
    def scorers(self) -> Mapping[str, Scorer]:
        return open_scorers(self.config.bundles, self.split)

    @cached_property
    def base(self) -> Scorer | None:
        name = self.config.candidates.base
        if name is None:
            return None
        return self.scorers[name] if name in self.scorers else Counts(self.split)

    def asked(self, part: str, users: int | None) -> Asked:
        """The drawn users of a part with their candidates; a file of candidates is for the experiment's own part."""
        if (part, users) not in self._asked:
            split = drawn(self.split, part, users, self.config.seed)
            asked = self.config.candidates
            if part != self.config.part and asked.method == "file":
                asked = asked.model_copy(update={"method": "random"})
            lists = make_candidates(asked, split, part, self.scorers)
            self._asked[part, users] = Asked(split, part, split.queries(part), lists)
        return self._asked[part, users]

    def cases(self, asked: Asked, prompt: PromptConfig) -> list[Case]:
        return make_cases(asked, self.base, prompt.examples, prompt.length)

    # What is shown

    @cached_property
    def plain_shelf(self) -> Shelf:
        """Without captions of pictures."""
        source = self.config.captions.source
        found = make_shelf(self.dataset, self.split, source if is_column(source) else None)
        return replace(found, captions=[cut(text, self.config.captions.words) for text in found.captions])

    @cached_property
    def shelf(self) -> Shelf:
        """With captions of the items that the experiment shows."""
        settings, plain = self.config.captions, self.plain_shelf
        if settings.source is None or is_column(settings.source):
            return plain
        shown: set[int] = set()
        for step in steps_of(self.config):
            for case in self.cases(self.asked(step.part, step.users), step.prompt):
                if "caption" in step.prompt.history:
                    shown |= set(
                        case.history[len(case.history) - min(step.prompt.length, len(case.history)) :]
                    )
                if "caption" in step.prompt.candidates:
                    shown |= set(case.candidates)
        ids = self.split.item_ids.to_list()
        texts = caption_pictures(settings, plain, shown, ids, self.dataset.fingerprint, self.root)
        captions = [""] * len(ids)
        for item, text in texts.items():
            captions[item] = cut(text, settings.words)
        return replace(plain, captions=captions)

    @cached_property
    def vectors_ID(self) -> np.ndarray:
        return content_vectors(self.plain_shelf)

    # Who is asked

    @cached_property
    def answers(self) -> Answers:
        settings = self.config.client
        return Answers(Path(settings.cache_file or self.root / "zeroshot-answers.jsonl"))

    @cached_property
    def meter(self) -> Meter:
        settings, budget = self.config.client, self.config.budget
        name = self.given.name if self.given is not None else settings.called
        return Meter(budget, read_price(name, budget.prices), settings.max_tokens)

    @cached_property
    def client(self) -> CachedClient:
        settings = self.config.client
        counts: Counter[str] = Counter()
        for title, count in zip(
            self.plain_shelf.titles, self.split.fit_log().item_counts().tolist(), strict=True
        ):
            counts[title] += count
        client = self.given or open_client(settings, counts)
        recorded = dict(self.answers.sampling(settings.called))
        set_here = settings.model_dump(include={"temperature", "max_tokens", "seed"})
        sampling = recorded | {key: value for key, value in set_here.items() if key in recorded}
        return CachedClient(
            client, self.answers, self.meter, settings.cache, name=settings.called, sampling=sampling
        )

    def ranker(self, step: Step) -> Ranker:
        shelf = (
            self.shelf.shuffled_pictures(self.config.seed)
            if step.control == "shuffled_images"
            else self.shelf
        )
        return Ranker(self.client, Prompter(step.prompt, shelf), step.rank, self.config.seed)

    def step_cases(self, step: Step) -> list[Case]:
        cases = self.cases(self.asked(step.part, step.users), step.prompt)
        if step.control in (None, "shuffled_images"):
            return cases
        return controlled(cases, step.control, self.config.seed)

    def run(self, step: Step) -> Contest:
        return contest(step.name, self.ranker(step), self.step_cases(step), self.config.client.concurrency)

    # What comes out

    def evaluated(self, name: str, lists_QC: np.ndarray, asked: Asked) -> tuple[Rankings, Evaluation]:
        rankings = rankings_of(name, lists_QC, asked)
        evaluation = evaluate_rankings(
            rankings, asked.split, asked.part, self.config.protocol, name=name, candidates=asked.candidates
        )
        return rankings, evaluation


def steps_of(config: Experiment, chosen: Sequence[str] | None = None) -> list[Step]:
    """All that is asked for rankings, probes aside. chosen: variants for the experiment's own part; None = all."""
    steps = []
    names = config.variant_names
    if config.choose.enabled:
        steps += [Step(name, *config.variant(name), "valid", config.choose.users) for name in names]
    names = tuple(chosen) if chosen is not None else names
    steps += [Step(name, *config.variant(name), config.part, config.users) for name in names]
    for control in config.controls:
        steps.append(
            Step(f"{names[0]}.{control}", *config.variant(names[0]), config.part, config.users, control)
        )
    if config.hybrid.enabled:
        steps.append(Step(f"{names[0]}.valid", *config.variant(names[0]), "valid", config.hybrid.users))
    return steps


@dataclass(frozen=True)
class Forecast:
    """What a step may cost at most. known_price: the price file names the model."""

    name: str
    users: int
    requests: int
    prompt_tokens: int
    answer_tokens: int
    cost: float


def forecast(lab: Lab) -> list[Forecast]:
    """Requests, tokens and money of every step, from prompts of some users; nothing is asked and no model is loaded.

    Answers that are known already cost nothing and are not taken off. Captions of pictures are not written for it.
    """
    from recsys.zeroshot.clients.base import Usage
    from recsys.zeroshot.clients.mock import Mock

    stand_in = CachedClient(Mock(lambda history, title: 0.0), Answers(lab.root / "none"), Meter(), "off")
    price = lab.meter.price
    found = []
    for step in steps_of(lab.config):
        cases = lab.step_cases(step)
        ranker = Ranker(stand_in, Prompter(step.prompt, lab.plain_shelf), step.rank, lab.config.seed)
        sizes = [len(case.candidates) for case in cases]
        requests = sum(map(ranker.requests, sizes))
        sample = [_prompt_tokens(ranker, case) for case in cases[:_SAMPLE]]
        prompt = round(float(np.mean(sample)) * requests)
        writes = step.rank.mode == "listwise" or (
            lab.config.client.kind == "openai" and step.rank.mode != "letters"
        )
        answer = requests * (lab.config.client.max_tokens if writes else 1)
        cost = price.of(Usage(prompt, answer))
        found.append(Forecast(f"{step.name} ({step.part})", len(cases), requests, prompt, answer, cost))
    return found


def _prompt_tokens(ranker: Ranker, case: Case) -> int:
    places = range(len(case.candidates))
    prompter = ranker.prompter
    made = {
        "listwise": lambda: prompter.listwise(case, places),
        "pairwise": lambda: prompter.pair(case, places[:2]),
        "pointwise": lambda: prompter.yes_no(case, 0),
    }.get(ranker.config.mode, lambda: prompter.letter(case, places))
    return estimate(made())
