"""The generation side of MMGL: a small causal language model writes an item's text from what is known of it and from
the content of its neighbours.

After Yoon et al., "Multimodal Graph Learning for Generative Tasks" (arXiv 2310.07478): SA-E (`prefix`) or CA-E
(`cross`), adapters or new layers alone. Departures: neighbours stand before the text, where a causal model can read
them (behind it, as released, they never reach the loss); adapters go to all linear layers, whatever they are called.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from recsys.ego_graph import ego_edges, laplacian_positions
from recsys.errors import ModelError
from recsys.features.whitening import Whitening
from recsys.models.base import Learner
from recsys.models.graph.writer_config import WriterConfig
from recsys.models.graph.writer_content import WriterContent, WriterContext
from recsys.models.graph.writer_language import NO_LABEL, CausalModel, WriterNetwork

_WHITENING = "whitening."


class TextWriter(Learner):
    """Trained by the loop on items whose text is known; writes that of any."""

    Config = WriterConfig

    def __init__(self, config: WriterConfig):
        self.config = config

    def setup(self, ctx: WriterContext) -> None:
        """Raises ModelError where no text is known, or a table or neighbours are missing."""
        self._content, self._seed, self._known = ctx.content, ctx.seed, ctx.content.known
        if not len(self._known):
            raise ModelError("no item has a text to learn from")
        known_I = np.isin(np.arange(len(ctx.content)), self._known)
        whitenings = {}
        for name in self.config.reads:
            if name not in ctx.content.tables:
                legal = ", ".join(ctx.content.tables) or "none"
                raise ModelError(f"no feature table {name!r}", expected=f"one of: {legal}")
            whitenings[name] = Whitening.fit(ctx.content.tables[name], known_I, self.config.whiten)
        self._build(ctx.open_language(), whitenings)
        self.module.to(ctx.device)

    def _build(self, language: CausalModel, whitenings: Mapping[str, Whitening]) -> None:
        self.whitenings, self._tokenizer = whitenings, language.tokenizer
        widths = {name: whitening.map_FK.shape[1] for name, whitening in whitenings.items()}
        self.module = WriterNetwork(self.config, language, widths)

    def steps_per_epoch(self, world: int = 1) -> int:
        return -(-len(self._known) // (self.config.batch_size * world))

    def batches(self, epoch: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, torch.Tensor]]:
        """Items of known text in a new order each epoch; of several processes, all have full batches, the last ones
        filled from the front."""
        order_N = np.random.default_rng([self._seed, epoch]).permutation(self._known)
        size, steps = self.config.batch_size, self.steps_per_epoch(world)
        if world > 1:
            order_N = np.resize(order_N, steps * size * world)
        for step in range(steps):
            start = (step * world + rank) * size
            yield self.rows(self._content, order_N[start : start + size], learn=True)

    def param_groups(self) -> list[dict[str, Any]]:
        """Adapters at the loop's rate, the new parts at `new_lr_scale` times that; matrices decay."""
        groups = []
        for new in (False, True):
            for decays in (True, False):
                members = [
                    value
                    for name, value in self.module.learnt().items()
                    if name.startswith("language.") != new and (value.ndim >= 2) == decays
                ]
                if members:
                    scale = {"lr_scale": self.config.new_lr_scale if new else 1.0}
                    groups.append({"params": members} | scale | ({} if decays else {"weight_decay": 0.0}))
        return groups

    def rows(
        self, content: WriterContent, items_B: np.ndarray, *, learn: bool = False
    ) -> dict[str, torch.Tensor]:
        """The batch of these items. learn: with their texts and labels; else up to where the text begins."""
        config, ids, targets = self.config, [], []
        for item in items_B:
            prompt = self._prompt(content.prompts[item])
            target = self._target(content.texts[item]) if learn else []
            ids.append(prompt + target)
            targets.append(len(target))
        longest, most = max(map(len, ids)), max(targets)
        ids_BL, mask_BL = np.zeros((2, len(ids), longest), np.int64)
        labels_BT = np.full((len(ids), most), NO_LABEL)
        for row, (own, count) in enumerate(zip(ids, targets, strict=True)):
            ids_BL[row, longest - len(own) :], mask_BL[row, longest - len(own) :] = own, 1
            labels_BT[row, most - count :] = own[len(own) - count :]
        arrays: dict[str, np.ndarray] = {"ids": ids_BL, "mask": mask_BL, "labels": labels_BT}
        if config.entry != "none":
            arrays |= self._neighbours(content, items_B)
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}

    def _prompt(self, prompt: str) -> list[int]:
        tokenizer = self._tokenizer
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"][-self.config.max_prompt_tokens :]
        first = tokenizer("")["input_ids"][:1]  # a model that begins its texts with a token does so here
        begins = bool(first) and first[0] == tokenizer.bos_token_id
        if not (ids or begins):
            raise ModelError(f"the prompt {prompt!r} has no token", fix="put words into the template")
        return [*first, *ids] if begins else ids

    def _target(self, text: str) -> list[int]:
        """Its tokens, and the end where the text is not cut."""
        most, end = self.config.max_text_tokens, self._tokenizer.eos_token_id
        ids = self._tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
        return ids[:most] if len(ids) >= most or end is None else [*ids, end]

    def _neighbours(self, content: WriterContent, items_B: np.ndarray) -> dict[str, np.ndarray]:
        config = self.config
        if content.neighbours_IN.shape[1] < config.neighbours:
            raise ModelError(
                f"{content.neighbours_IN.shape[1]} neighbours of each item", expected=config.neighbours
            )
        lists_IN = content.neighbours_IN[:, : config.neighbours]
        nodes_BS = np.concatenate([items_B[:, None], lists_IN[items_B]], axis=1)
        arrays = {}
        for name, whitening in self.whitenings.items():
            table = content.tables[name]
            seen_BS = (nodes_BS >= 0) & table.present_E[nodes_BS]
            seen_BS[:, 0] &= name in config.own
            seen_BS[:, 1:] &= name in config.tables
            rows_NF = whitening(table.values_EF[nodes_BS.ravel()], seen_BS.ravel())
            rows_NF[~seen_BS.ravel()] = 0
            arrays |= {f"rows.{name}": rows_NF.reshape(*nodes_BS.shape, -1), f"seen.{name}": seen_BS}
        if config.position in ("gnn", "laplacian"):
            edges_BSS = ego_edges(lists_IN[items_B], lists_IN)
            shown = {"gnn": ("edges", edges_BSS), "laplacian": ("spectrum", laplacian_positions(edges_BSS))}
            arrays |= dict([shown[config.position]])
        return arrays

    @torch.inference_mode()
    def write(self, content: WriterContent, items_N: Sequence[int], batch_size: int = 16) -> list[str]:
        """A text of each item, which may be empty. What `content` holds as the item's own text is not read."""
        self.module.eval()
        device = next(self.module.parameters()).device
        items_N, end, made = np.asarray(items_N, np.int64), self._tokenizer.eos_token_id, []
        for start in range(0, len(items_N), batch_size):
            rows = self.rows(content, items_N[start : start + batch_size])
            batch = {name: value.to(device) for name, value in rows.items()}
            found = self.module.generate(batch, end, 0 if end is None else end)
            made += self._tokenizer.batch_decode(found, skip_special_tokens=True)
        return [" ".join(text.split()) for text in made]

    def state(self) -> dict[str, np.ndarray]:
        """What was learnt and fitted; with the config and the language model it gives the writer back."""
        arrays = {name: value.detach().float().cpu().numpy() for name, value in self.module.learnt().items()}
        for name, whitening in self.whitenings.items():
            arrays |= whitening.state(f"{_WHITENING}{name}")
        return arrays

    @classmethod
    def from_state(
        cls, config: WriterConfig, state: Mapping[str, np.ndarray], language: CausalModel
    ) -> "TextWriter":
        """language: the one it was trained with. Raises ModelError where the state is of another model."""
        found = cls(config)
        found._build(
            language, {name: Whitening.from_state(state, f"{_WHITENING}{name}") for name in config.reads}
        )
        learnt = {name: value for name, value in state.items() if not name.startswith(_WHITENING)}
        found.module.load_state_dict(
            {name: torch.from_numpy(np.array(value)) for name, value in learnt.items()}
        )
        return found
