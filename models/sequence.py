"""Next-item ranking from a history: what all sequence models share. They differ in their defaults alone."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import torch

from recsys.errors import ModelError
from recsys.features.whitening import Whitening
from recsys.item_encoding import ItemEncoding, TableMap
from recsys.models.base import FitContext, LoopedModel
from recsys.models.batching import batches_of_rows, steps
from recsys.models.items import Features
from recsys.models.packing import pack, thinned, windows, with_question
from recsys.models.sequence_config import SequenceConfig
from recsys.models.sequence_module import SequenceModule, masked_batch, training_batch
from recsys.models.trunk import ATTENTION
from recsys.schema import Dense, Form, Queries, legal_width
from recsys.scoring import dot_scores

_REPEAT_LR = 30.0
"""Learning rate of the repeat bias against the rest: a handful of logits that have far to go."""

ConfigT = TypeVar("ConfigT", bound=SequenceConfig)


class SequenceModel(LoopedModel[ConfigT]):
    """A history, item by item, through a trunk; its last value scores what comes next."""

    Config = SequenceConfig

    @property
    def scores_cold_items(self) -> bool:
        return bool(self.config.tables)

    @property
    def widths(self) -> tuple[int, ...]:
        return self.config.widths

    def setup(self, ctx: FitContext) -> None:
        counts_I = ctx.train.item_counts()
        tables = {name: ctx.item_table(name) for name in self.config.tables}
        self.whitenings = {
            name: Whitening.fit(table, counts_I > 0, self.config.whiten) for name, table in tables.items()
        }
        self.module = SequenceModule(self.config, self._whitened(tables), counts_I)
        self.seed, self.rows = ctx.seed, windows(ctx.train.sequences, self.config.window)

    def _whitened(self, tables: Mapping[str, Dense]) -> Features:
        return {
            name: (whitening(tables[name].values_EF, tables[name].present_E), tables[name].present_E.copy())
            for name, whitening in self.whitenings.items()
        }

    def param_groups(self) -> list[dict[str, Any]]:
        groups = super().param_groups()
        repeat = self.module.repeat
        if repeat is None:
            return groups
        for group in groups:
            group["params"] = [value for value in group["params"] if value is not repeat]
        return [*groups, {"params": [repeat], "weight_decay": 0.0, "lr_scale": _REPEAT_LR}]

    def steps_per_epoch(self, world: int = 1) -> int:
        return steps(len(self.rows), self.config.batch_size, world)

    def batches(self, epoch: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, torch.Tensor]]:
        size = self.config.batch_size
        for start, taken in batches_of_rows(len(self.rows), size, self.seed, epoch, rank, world):
            rows, rng = self.rows.take(taken), np.random.default_rng([self.seed, epoch, start, rank])
            if self.config.history_dropout:
                rows = thinned(rows, self.config.history_dropout, rng)
            if self.config.trunk == "bidirectional":
                yield masked_batch(rows, self.config.mask_share, rng)
            else:
                yield training_batch(rows, past=self.config.repeat_bias)

    @torch.inference_mode()
    def item_table(self) -> tuple[np.ndarray, np.ndarray]:
        """Item vectors [I, D] and biases [I] as they stand now (zero where the model has no bias)."""
        self.module.eval()
        items = self.module.items
        return items().cpu().numpy(), items.bias().cpu().numpy()

    def item_vectors(self, width: int | None = None) -> np.ndarray:
        return self.item_table()[0][:, : legal_width(width, self.widths)]

    @torch.inference_mode()
    def query_vectors(self, queries: Queries, width: int | None = None) -> np.ndarray:
        """[Q, width]: the trunk's last value of [start, history], or of [history, hidden] where it looks both ways."""
        self.module.eval()
        history = queries.history
        if self.config.trunk in ATTENTION:
            history = history.tail(self.config.window - 1)
        packed = pack(with_question(history, first=self.config.trunk != "bidirectional"))
        tokens_P = self._tensor(packed.items_P)
        last_B, counts = self._tensor(packed.last_B), packed.counts_T.tolist()
        u_BD = self.module.trunk(self.module.items(), tokens_P, counts, last_B).cpu().numpy()
        vectors_QD = np.empty((len(queries), u_BD.shape[1]), np.float32)
        vectors_QD[packed.order_B] = u_BD
        return vectors_QD[:, : legal_width(width, self.widths)]

    def scale(self, width: int | None = None) -> float:
        """What the dot product is multiplied by at this width; 1 without `width_temperature`."""
        return self.module.scales()[self.widths.index(legal_width(width, self.widths))].item()

    def score(
        self, queries: Queries, candidates: np.ndarray | None = None, width: int | None = None
    ) -> np.ndarray:
        width = legal_width(width, self.widths)
        vectors_ID, bias_I = self.item_table()
        repeat = self.module.repeat
        return dot_scores(
            self.query_vectors(queries, width),
            vectors_ID[:, :width],
            bias_I,
            candidates,
            scale=self.scale(width),
            history=queries.history,
            repeat=None if repeat is None else repeat.detach().cpu().numpy(),
        )

    @torch.inference_mode()
    def encode_items(self, feature_rows: Mapping[str, Dense]) -> np.ndarray:
        """[N, D] vectors of unseen items from their content; each row depends on its own content alone.

        Raises ModelError where the model has ids alone.
        """
        if not self.config.tables:
            raise ModelError("this model has no feature tables", fix="fit it with tables = [...]")
        self.module.eval()
        rows = self._whitened({name: feature_rows[name] for name in self.config.tables})
        tensors = {name: tuple(map(self._tensor, pair)) for name, pair in rows.items()}
        return self.module.items.content(tensors).cpu().numpy()

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.module.trunk.start.device)

    def state(self) -> dict[str, np.ndarray]:
        arrays = {f"module.{name}": value.cpu().numpy() for name, value in self.module.state_dict().items()}
        for name, whitening in self.whitenings.items():
            arrays |= whitening.state(f"whitening.{name}")
        return arrays

    @classmethod
    def from_state(cls, config: ConfigT, state: Mapping[str, np.ndarray]) -> "SequenceModel":
        model = cls(config)
        model.whitenings = {name: Whitening.from_state(state, f"whitening.{name}") for name in config.tables}
        weights = {
            name.removeprefix("module."): torch.from_numpy(np.array(value))
            for name, value in state.items()
            if name.startswith("module.")
        }
        features = {
            name: (
                state[f"module.items.whitened_{name}"].copy(),
                state[f"module.items.present_{name}"].copy(),
            )
            for name in config.tables
        }
        model.module = SequenceModule(config, features, state["module.items.trained_I"])
        model.module.load_state_dict(weights)
        return model

    @torch.inference_mode()
    def serving_form(self) -> Form:
        module, config = self.module, self.config
        module.eval()
        arrays = module.trunk.arrays() | {"scales": module.scales()}
        if module.repeat is not None:
            arrays["repeat"] = module.repeat
        meta = {
            "blocks": config.blocks,
            "ffn_multiple": config.ffn_multiple,
            "norm": config.norm,
            "eps": module.trunk.blocks[0].norm1.eps,
            "window": config.window if config.trunk in ATTENTION else None,
        }
        vectors_ID, bias_I = self.item_table()
        numpy_arrays = {name: np.ascontiguousarray(value.cpu().numpy()) for name, value in arrays.items()}
        return Form(config.trunk, numpy_arrays, meta, vectors_ID, bias_I, config.widths, self._encoding())

    def _encoding(self) -> ItemEncoding | None:
        """`encode_items` as arrays: whitening and projection in one map."""
        items = self.module.items
        tables = {
            name: TableMap(
                whitening.mean_F,
                whitening.map_FK @ items.projections[name].weight.cpu().numpy().T,
                items.missing[name].cpu().numpy(),
            )
            for name, whitening in self.whitenings.items()
        }
        return ItemEncoding("sum", tables) if tables else None
