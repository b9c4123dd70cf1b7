"""MMGL as a recommender: items by their own content and that of their neighbours, with a vector of their own on top.

After Yoon et al., "Multimodal Graph Learning for Generative Tasks" (arXiv 2310.07478); the encoding, and where it
departs, stands in `recsys.models.graph.encoder`. An item that no fit has seen is encoded from its content, the trained
items that resemble it, and the values it has; training leaves out what such an item lacks, time and again.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch

from recsys.errors import ModelError
from recsys.models.base import FitContext
from recsys.models.graph.build import centre
from recsys.models.graph.content import Content
from recsys.models.graph.ego import Read, read_relations
from recsys.models.graph.mmgl_config import MMGLConfig
from recsys.models.graph.mmgl_module import Inputs, MMGLModule
from recsys.models.pairs import PairsModel
from recsys.models.vectors import Vectors
from recsys.neighbour_encoding import NeighbourEncoding
from recsys.schema import Dense, Form

_ENCODING = "encoding."


class MMGL(PairsModel[MMGLConfig]):
    """Known users ask with a learnt vector; items that training never saw have one from content and neighbours."""

    Config = MMGLConfig
    uses_graph = True
    scores_cold_items = True
    loaded_encoding: NeighbourEncoding

    def setup(self, ctx: FitContext) -> None:
        """Raises ModelError where there is no graph, or not the relations that the settings name."""
        if ctx.graph is None:
            raise ModelError("no graph around the items", where="mmgl", fix="add [graph]")
        config, counts_I = self.config, ctx.train.item_counts()
        self.tables = {name: ctx.item_table(name) for name in config.tables}
        typed = {name: ctx.tables["item", name] for name in config.tables}
        self.read = read_relations(ctx.graph, config.relations, typed)
        self.content = {
            name: Content.of(table, counts_I, config.whiten) for name, table in self.tables.items()
        }
        self.module = MMGLModule(config, ctx.train, Inputs(self.content, self.read))
        self.known_U = np.diff(ctx.train.indptr_U1) > 0
        self.trained, self.cold = np.flatnonzero(counts_I), np.flatnonzero(counts_I == 0)
        self.take_pairs(ctx)

    @property
    def _fitted(self) -> tuple[Vectors, NeighbourEncoding]:
        if hasattr(self, "module"):
            return self.once(self._found)
        return self.loaded, self.loaded_encoding

    def _found(self) -> tuple[Vectors, NeighbourEncoding]:
        """Vectors of the catalogue: trained items by the module, all others as new items are."""
        found, encoding = self._asked_alike(self.learnt()), self._encoding()
        items_ID = found.items_ID.copy()
        cold = {name: table.take(self.cold) for name, table in self.tables.items()}
        items_ID[self.cold] = encoding.vectors(cold)
        return Vectors(replace(found.profile, inputs_ID=items_ID), items_ID, found.bias_I), encoding

    def _asked_alike(self, found: Vectors) -> Vectors:
        """Where known users ask with their histories too, all scores over what histories are multiplied by: so an
        unknown user, who asks with the plain mean of its history, has what training gave it."""
        if self.module.pull is None:
            return found
        scale = self.module.pull.exp().item()
        profile = replace(
            found.profile, users_UD=found.profile.users_UD / scale, default_D=found.profile.default_D / scale
        )
        return Vectors(profile, found.items_ID, found.bias_I / scale)

    @property
    def vectors(self) -> Vectors:
        return self._fitted[0]

    def encode_items(self, feature_rows: Mapping[str, Dense]) -> np.ndarray:
        """[N, D] vectors of unseen items from their content, the trained items it resembles, and their values."""
        return self._fitted[1].vectors(feature_rows)

    def serving_form(self) -> Form:
        return replace(super().serving_form(), encoding=self._fitted[1])

    @torch.inference_mode()
    def _encoding(self) -> NeighbourEncoding:
        module = self.module
        module.eval()
        encoder = module.encoder
        everything = torch.arange(len(module.trained_I), device=module.trained_I.device)
        values = torch.arange(len(encoder.values), device=everything.device)
        arrays = dict(encoder.state_dict()) | {
            "nodes": encoder.node_tokens(encoder.content(module.rows(everything)), values),
            "norm.weight": module.norm.weight,
            "norm.bias": module.norm.bias,
        }
        weights = {name: value.cpu().numpy() for name, value in arrays.items()}
        for name, table in self.content.items():
            map_DK = weights.pop(f"maps.{name}.weight")
            weights[f"table.{name}.mean"] = table.whitening.mean_F
            weights[f"table.{name}.map"] = table.whitening.map_FK @ map_DK.T
            weights[f"table.{name}.bias"] = weights.pop(f"maps.{name}.bias")
        for name in ("item_map.weight", "item_map.bias", "values"):  # the tokens of all nodes stand for them
            del weights[name]
        if module.neighbours.reads_edges:
            weights["lists"] = module.neighbours.nodes_IN.cpu().numpy()
        for place, one in enumerate(self.read):
            weights |= {f"relation.{place}.{part}": array for part, array in self._new_edges(one).items()}
        return NeighbourEncoding(self._settings(), weights)

    def _settings(self) -> dict[str, Any]:
        config = self.config
        kept = {"encoder", "position", "tokens", "heads", "blocks", "fanout", "tables"}
        relations = [
            {
                "name": one.name,
                "table": one.table,
                "column": one.column,
                "most": int(min(config.fanout, np.diff(one.relation.indptr_I1).max(initial=1))),
            }
            for one in self.read
        ]
        # propagated, an item without an edge has the mean of its vector and `layers` times nothing
        scale = 1 / (config.layers + 1) if config.head == "propagation" else 1.0
        facts = {"relations": relations, "width": config.widths[-1], "scale": scale}
        return config.model_dump(mode="json", include=kept) | facts

    def _new_edges(self, one: Read) -> dict[str, np.ndarray]:
        """What a new item's edges of this relation are found with."""
        if one.table is None:
            return {}
        if one.column is None:
            table = self.tables[one.table]
            items = self.trained[table.present_E[self.trained]]
            mean_F = centre(table, np.isin(np.arange(len(table.present_E)), self.trained))
            return {"items": items, "mean": mean_F, "rows": table.values_EF[items] - mean_F}
        weight_V = np.zeros(one.relation.size, np.float32)
        weight_V[one.relation.indices_E] = one.relation.weight_E
        nodes_V = np.where(weight_V > 0, one.offset + np.arange(len(weight_V)), -1)
        return {"nodes": nodes_V, "weight": weight_V}

    def state(self) -> dict[str, np.ndarray]:
        encoding = self._fitted[1]
        return super().state() | {f"{_ENCODING}{name}": value for name, value in encoding.arrays().items()}

    @classmethod
    def from_state(cls, config: MMGLConfig, state: Mapping[str, np.ndarray]) -> Self:
        model = super().from_state(config, state)
        arrays = {
            name.removeprefix(_ENCODING): value for name, value in state.items() if name.startswith(_ENCODING)
        }
        model.loaded_encoding = NeighbourEncoding.of({}, arrays)
        return model
