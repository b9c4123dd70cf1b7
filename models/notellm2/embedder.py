"""NoteLLM-2 as an embedder: trained by the loop on pairs, asked for the vectors of any item."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import nn

from recsys.errors import ModelError
from recsys.models.embedders.contract import Embedder, ItemContent, PairContext, standard, unit
from recsys.models.embedders.loss import PairLoss
from recsys.models.notellm2.config import NoteLLM2Config
from recsys.models.notellm2.gradcache import cached
from recsys.models.notellm2.language import Open
from recsys.models.notellm2.module import NoteNetwork
from recsys.models.notellm2.prompt import VERSION, Writer

_ROWS = ("ids", "mask", "visual_at", "joint_at", "image", "seen")


class Training(nn.Module):
    """The network under its loss. Its state is what learns: the frozen language model stays out of checkpoints."""

    def __init__(self, network: NoteNetwork, config: NoteLLM2Config):
        super().__init__()
        self.network, self.config = network, config
        self.loss = PairLoss(config.widths, config.log_scale, config.false_negative_margin)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        config = self.config
        rows = {name: batch[name] for name in _ROWS}
        if config.chunk is None:
            joint_RD, visual_RD = self.network(rows)
        else:
            made = cached(
                lambda one: [value for value in self.network(one) if value is not None], rows, config.chunk
            )
            joint_RD, visual_RD = made if len(made) == 2 else (*made, None)
        pairs, allied_RR = int(batch["pairs"]), batch["allied"]
        loss = joint = self.loss(joint_RD, pairs, allied_RR)
        parts = {"joint": joint.item(), "scale": self.loss.log_scale.exp().item()}
        if visual_RD is not None:
            visual = self.loss(visual_RD, pairs, allied_RR)
            loss = (1 - config.visual_weight) * joint + config.visual_weight * visual
            parts["visual"] = visual.item()
        return loss, parts

    def learnt(self) -> dict[str, nn.Parameter]:
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        fixed = {f"network.{name}": getattr(self.network, name) for name in ("mean_F", "scale_F")}
        return self.learnt() | fixed

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        """Raises ModelError where the state is of another model."""
        own = self.state_dict()
        if own.keys() != state.keys():
            wrong = sorted(own.keys() ^ state.keys())
            raise ModelError(f"the weights do not fit: {len(wrong)} names differ, first {wrong[0]!r}")
        for name, value in own.items():
            value.copy_(state[name])


class NoteLLM2(Embedder[NoteLLM2Config]):
    """Reads an item's text and one table of visual features (`table`), `image_tokens` vectors a row, which are
    standardised by the items that pairs name.

    Vectors: "joint" (n_m), and "visual" (n_v) where the variant has a visual note.
    """

    Config = NoteLLM2Config
    version = VERSION
    reads_texts = True
    loop: ClassVar[Mapping[str, Any]] = {"lr": 1e-4, "schedule": "cosine"}

    @property
    def tables(self) -> tuple[str, ...]:
        return (self.config.table,)

    @property
    def vectors(self) -> tuple[str, ...]:
        return ("joint", "visual") if self.config.micl else ("joint",)

    def setup(self, ctx: PairContext) -> None:
        super().setup(ctx)
        table, known = ctx.content.table(self.config.table), np.unique(ctx.pairs_P2)
        self._build(ctx.open_language, table.width)
        tokens_EF = table.values_EF[known].reshape(-1, self.image_shape[1])
        found = standard(tokens_EF, np.repeat(table.present_E[known], self.image_shape[0]))
        for buffer, values_F in zip(
            (self.module.network.mean_F, self.module.network.scale_F), found, strict=True
        ):
            buffer.copy_(torch.from_numpy(values_F))
        self.module.to(ctx.device)

    def _build(self, open_language: Open | None, width: int) -> None:
        config = self.config
        if open_language is None:
            raise ModelError("no language model", fix="give open_language, which loads one")
        if width % config.image_tokens:
            raise ModelError(
                f"visual features of {width} values", expected=f"a multiple of {config.image_tokens} tokens"
            )
        self.image_shape = (config.image_tokens, width // config.image_tokens)
        language = open_language()
        network = NoteNetwork(config, language, self.image_shape)
        self.module = Training(network, config)
        self._writer = Writer(
            config.prompt, language.tokenizer, network.vocabulary,
            micl=config.micl, sees=config.sees, places=config.visual_tokens, longest=config.max_text_tokens,
        )  # fmt: skip

    def batches(self, epoch: int, rank: int = 0, world: int = 1):
        if world > 1 and self.config.chunk is not None:
            raise ModelError(f"chunk = {self.config.chunk} with {world} processes", expected="one process")
        return super().batches(epoch, rank, world)

    def param_groups(self) -> list[dict[str, Any]]:
        """The language model's part at the loop's rate, the new parts at `new_lr_scale` times that; matrices decay."""
        old = {id(value) for value in self.module.network.pretrained()}
        groups = []
        for new in (False, True):
            for decays in (True, False):
                members = [
                    value
                    for value in self.module.learnt().values()
                    if (id(value) not in old) == new and (value.ndim >= 2) == decays
                ]
                if members:
                    scale = {"lr_scale": self.config.new_lr_scale if new else 1.0}
                    groups.append({"params": members} | scale | ({} if decays else {"weight_decay": 0.0}))
        return groups

    def rows(self, content: ItemContent, rng: np.random.Generator | None = None) -> dict[str, torch.Tensor]:
        table = content.table(self.config.table)
        texts, seen_R = list(content.texts), table.present_E.copy()
        if rng is not None:
            blank_R, hide_R = rng.random((2, len(texts)))
            has_R = np.array([text is not None for text in texts])
            gone_R = (blank_R < self.config.text_dropout) & seen_R
            texts = [None if gone else text for text, gone in zip(texts, gone_R, strict=True)]
            seen_R &= ~((hide_R < self.config.image_dropout) & has_R & ~gone_R)
        notes = self._writer.notes(self._writer.texts(texts))
        image_RVF = np.where(seen_R[:, None], table.values_EF, 0).reshape(len(texts), *self.image_shape)
        arrays = (
            notes.ids_RL,
            notes.mask_RL,
            notes.visual_R,
            notes.joint_R,
            image_RVF.astype(np.float32),
            seen_R,
        )
        return {name: torch.from_numpy(value) for name, value in zip(_ROWS, arrays, strict=True)}

    @torch.inference_mode()
    def encode(self, content: ItemContent, batch_size: int = 64) -> dict[str, np.ndarray]:
        self.module.eval()
        device = next(self.module.parameters()).device
        # of like length together: less padding
        order = np.argsort([len(text or "") for text in content.texts], kind="stable")
        made: dict[str, list[np.ndarray]] = {"joint": [], "visual": []}
        for start in range(0, len(order), batch_size):
            rows = self.rows(content.take(order[start : start + batch_size]))
            found = self.module.network({name: value.to(device) for name, value in rows.items()})
            for name, value in zip(made, found, strict=True):
                if value is not None:
                    made[name].append(value.cpu().numpy())
        return {name: unit(np.concatenate(parts)[np.argsort(order)]) for name, parts in made.items() if parts}

    def state(self) -> dict[str, np.ndarray]:
        return {
            name: value.detach().float().cpu().numpy() for name, value in self.module.state_dict().items()
        }

    @classmethod
    def from_state(
        cls, config: NoteLLM2Config, state: Mapping[str, np.ndarray], open_language: Open | None = None
    ) -> Self:
        found = cls(config)
        found._build(open_language, config.image_tokens * len(state["network.mean_F"]))
        found.module.load_state_dict(
            {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
        )
        return found
