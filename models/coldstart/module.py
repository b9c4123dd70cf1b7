"""Towers and losses of the cold-start model, as they are learnt."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from recsys.models.base import FitContext
from recsys.models.coldstart.config import ColdStartConfig
from recsys.models.coldstart.contrast import info_nce
from recsys.models.coldstart.fusion import FusionModule, TableFields, entropy
from recsys.models.coldstart.linear import linear_half
from recsys.models.coldstart.teacher import wmf
from recsys.models.losses import Widths
from recsys.models.objective import Objective
from recsys.tower import hour_and_weekday

_INITIAL = 0.1
_HIDDEN = 0.5
"""Chance of a field to be hidden in a view."""
_TRUST = 2.0
"""Logit by which gates prefer pretrained ids at first."""


class Side(nn.Module):
    """Ids and attribute fields of items or users, and the fusion of them with what else there is.

    more: fields between the id and the attributes, each a group of its own; context: two fields of one group at the
    end.
    """

    def __init__(
        self,
        config: ColdStartConfig,
        ctx: FitContext,
        entity: str,
        counts_E: np.ndarray,
        *,
        more: int = 0,
        context: bool = False,
    ):
        super().__init__()
        width = config.width - 1
        names = [name for name in config.tables if (entity, name) in ctx.tables]
        self.ids = nn.Parameter(torch.randn(len(counts_E), width) * _INITIAL)
        self.register_buffer("strength_E", torch.from_numpy(np.log1p(counts_E)).float(), persistent=False)
        self.fields = TableFields(ctx, entity, names, counts_E > 0, width, config.whiten)
        groups = [*range(1 + more), *(1 + more + group for group in self.fields.groups)]
        if context:
            groups += [max(groups) + 1] * 2
        self.fusion = FusionModule(
            groups, width, config.hidden, selects=config.selection, fuses=config.fusion
        )

    def own(self, rows_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(id vectors, their strengths, field vectors, their strengths)."""
        return self.ids[rows_N], self.strength_E[rows_N], *self.fields(rows_N)

    def hidden(self, strength_NF: torch.Tensor, share: float, *, groups: bool) -> torch.Tensor:
        """Strengths of attribute fields with fields, or whole groups, taken for missing at random; a row from which
        everything was taken keeps all."""
        if not share or not strength_NF.shape[1]:
            return strength_NF
        keep_NF = torch.rand_like(strength_NF) >= share
        if groups:
            first_F = [self.fields.groups.index(group) for group in self.fields.groups]
            keep_NF = keep_NF[:, first_F]
        kept_NF = strength_NF * keep_NF
        return torch.where(kept_NF.any(1, keepdim=True), kept_NF, strength_NF)


class ColdStartModule(nn.Module):
    """`forward` is the loss of a batch of users with all that they did: row_P (the user's place in user_B), item_P,
    time_P."""

    def __init__(self, config: ColdStartConfig, ctx: FitContext):
        super().__init__()
        log, width = ctx.train, config.width
        self.config, counts_I = config, log.item_counts()
        self.items = Side(config, ctx, "item", counts_I)
        self.users = Side(config, ctx, "user", np.diff(log.indptr_U1), more=1, context=config.context)
        if not config.user_ids:
            self.users.strength_E.zero_()
        if config.pretrained is not None:
            self._begin_with(
                wmf(log, width - 1, config.pretrained_regularisation, 10.0, 10, ctx.seed), config.pretrained
            )
        self.history = nn.Parameter(torch.eye(width - 1))
        self.bias = nn.Parameter(torch.zeros(width - 1))
        self.cold = nn.Parameter(torch.zeros(1))
        self.own_bias = nn.Parameter(torch.zeros(len(counts_I)))
        if config.context:
            self.hour = nn.Parameter(torch.randn(24, width - 1) * _INITIAL)
            self.weekday = nn.Parameter(torch.randn(7, width - 1) * _INITIAL)
        self.linear = None if config.linear is None else linear_half(log, self.items.fields, config.linear)
        share_I = counts_I / max(counts_I.sum(), 1)
        self.register_buffer("share_I", torch.from_numpy(share_I).float(), persistent=False)
        self.decay = 0.0 if config.half_life is None else math.log(2) / config.half_life
        self.objective = Objective(config, counts_I, Widths.equal((width,)))

    def _begin_with(self, vectors: tuple[np.ndarray, np.ndarray], length: float) -> None:
        """Ids become these vectors of users and items, those without a row left as they are."""
        for side, vectors_ED in zip((self.users, self.items), vectors, strict=True):
            lengths_E = np.linalg.norm(vectors_ED, axis=1)
            known_E = lengths_E > 0
            scaled_ED = vectors_ED * (length / lengths_E[known_E].mean())
            with torch.no_grad():
                side.ids[torch.from_numpy(known_E)] = torch.from_numpy(scaled_ED[known_E])
            side.ids.requires_grad_(not self.config.frozen)
            # what is known already is not to be drowned before the gates have learnt anything
            for gate in (side.fusion.select, side.fusion.fuse):
                if gate is not None:
                    torch.nn.init.constant_(gate[1].bias[:1], _TRUST)

    def item_vectors(self, rows_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """([N, D], the last value the bias; weights and strengths of the selection)."""
        id_ND, id_N, fields_NFD, strength_NF = self.items.own(rows_N)
        if self.training:
            id_N = id_N * (torch.rand_like(id_N) >= self.config.id_dropout)
            strength_NF = self.items.hidden(strength_NF, self.config.modality_dropout, groups=True)
        strength_NF = torch.cat([id_N[:, None], strength_NF], dim=1)
        h_ND, selection_NF = self.items.fusion(torch.cat([id_ND[:, None], fields_NFD], dim=1), strength_NF)
        h_ND = F.dropout(h_ND, self.config.dropout, self.training)
        own_N = torch.where(id_N > 0, self.own_bias[rows_N], self.cold)
        bias_N = h_ND @ self.bias + own_N
        return torch.cat([h_ND, bias_N[:, None]], dim=1), selection_NF, strength_NF

    def content_vectors(self, rows_N: torch.Tensor, hidden: float) -> torch.Tensor:
        """[N, D - 1] without ids, each field hidden with this chance, but never the last."""
        id_ND, id_N, fields_NFD, strength_NF = self.items.own(rows_N)
        strength_NF = self.items.hidden(strength_NF, hidden, groups=False)
        none_N1 = torch.zeros_like(id_N)[:, None]
        vectors_NFD = torch.cat([id_ND[:, None], fields_NFD], dim=1)
        return self.items.fusion(vectors_NFD, torch.cat([none_N1, strength_NF], dim=1))[0]

    def query_vectors(
        self,
        user_Q: torch.Tensor,
        history_QD: torch.Tensor,
        length_Q: torch.Tensor,
        time_Q: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """([Q, D], the last value 1; weights and strengths of the selection). history_QD: mean vectors."""
        id_QD, id_Q, fields_QFD, strength_QF = self.users.own(user_Q)
        length_Q = torch.log1p(length_Q)
        if self.training:
            id_Q = id_Q * (torch.rand_like(id_Q) >= self.config.id_dropout)
            length_Q = length_Q * (torch.rand_like(length_Q) >= self.config.history_dropout)
            strength_QF = self.users.hidden(strength_QF, self.config.modality_dropout, groups=True)
        vectors = [
            id_QD[:, None],
            (history_QD @ self.history)[:, None],
            fields_QFD.expand(-1, -1, id_QD.shape[1]),
        ]
        strengths = [id_Q[:, None], length_Q[:, None], strength_QF]
        if self.config.context:
            hour_Q, weekday_Q = hour_and_weekday(time_Q)
            vectors += [self.hour[hour_Q][:, None], self.weekday[weekday_Q][:, None]]
            strengths.append(torch.ones_like(id_QD[:, :2]))
        strength_QF = torch.cat(strengths, dim=1)
        h_QD, selection_QF = self.users.fusion(torch.cat(vectors, dim=1), strength_QF)
        h_QD = F.dropout(h_QD, self.config.dropout, self.training)
        return torch.cat([h_QD, torch.ones_like(h_QD[:, :1])], dim=1), selection_QF, strength_QF

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        user_B, row_P, item_P = batch["user_B"], batch["row_P"], batch["item_P"]
        shown_P, asked_P = self._parts(row_P, len(user_B))
        labels_P = item_P[asked_P]
        columns = self.objective.columns(labels_P)
        needed = torch.cat([columns.rows_N, item_P[shown_P]])
        rows_N, place = needed.unique(return_inverse=True)
        items_ND, weights_NF, strength_NF = self.item_vectors(rows_N)
        seen_PD = items_ND[place[len(columns.rows_N) :], :-1]
        history_BD, length_B = self._histories(row_P[shown_P], seen_PD, len(user_B))
        if self.config.context:
            asking = row_P[asked_P]
            found = self.query_vectors(
                user_B[asking], history_BD[asking], length_B[asking], batch["time_P"][asked_P]
            )
            rows_P = torch.arange(len(asking), device=asking.device)
        else:
            found = self.query_vectors(user_B, history_BD, length_B, None)
            rows_P = row_P[asked_P]
        columns_ND = items_ND[place[: len(columns.rows_N)]]
        none_N = columns_ND.new_zeros(len(columns_ND))
        loss, parts = self.objective.of_rows(found[0], rows_P, columns_ND, none_N, columns)
        parts["rec"] = loss.item()
        if self.config.contrastive and self.config.contrast_weight:
            contrast = self._contrast(labels_P, row_P[asked_P])
            loss, parts["contrast"] = loss + self.config.contrast_weight * contrast, contrast.item()
        if self.config.selection and self.config.entropy_weight:
            spread = entropy(weights_NF, strength_NF) + entropy(found[1], found[2])
            loss, parts["entropy"] = loss - self.config.entropy_weight * spread, spread.item()
        return loss, parts

    def _parts(self, row_P: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What is shown of each user's events, in order, and what is asked for: places among the P, never both."""
        share_B = torch.rand(rows, device=row_P.device)
        count_B = torch.bincount(row_P, minlength=rows)
        if self.config.causal:
            first_B = count_B.cumsum(0) - count_B
            place_P = (torch.arange(len(row_P), device=row_P.device) - first_B[row_P]) / count_B[row_P]
            shown_P = place_P < share_B[row_P]
        else:
            shown_P = torch.rand(len(row_P), device=row_P.device) < share_B[row_P]
        left_B = torch.bincount(row_P[~shown_P], minlength=rows)
        shown_P = shown_P & (left_B[row_P] > 0)  # something has to be asked for
        left_B = torch.bincount(row_P[~shown_P], minlength=rows)
        chance_P = self.config.targets / left_B[row_P].clamp_min(1)
        asked_P = ~shown_P & (torch.rand(len(row_P), device=row_P.device) < chance_P)
        if not asked_P.any():
            asked_P = ~shown_P
        return shown_P.nonzero()[:, 0], asked_P.nonzero()[:, 0]

    def _histories(
        self, row_R: torch.Tensor, seen_RD: torch.Tensor, rows: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(weighted mean of what is shown [B, D - 1], number of events)."""
        length_B = torch.bincount(row_R, minlength=rows)
        ago_R = length_B.cumsum(0)[row_R] - torch.arange(len(row_R), device=row_R.device) - 1
        weight_R = torch.exp(-self.decay * ago_R)
        total_BD = seen_RD.new_zeros(rows, seen_RD.shape[1]).index_add(0, row_R, weight_R[:, None] * seen_RD)
        total_B = weight_R.new_zeros(rows).index_add(0, row_R, weight_R)
        return total_BD / total_B.clamp_min(1e-12)[:, None], length_B.float()

    def _contrast(self, labels_P: torch.Tensor, row_P: torch.Tensor) -> torch.Tensor:
        """Mean over the kinds of pairs, of at most `contrast_items` of the step's items."""
        config, losses = self.config, []
        rows_N = labels_P.unique()
        rows_N = rows_N[torch.randperm(len(rows_N), device=rows_N.device)[: config.contrast_items]]
        # how likely each item was to be among the labels of the step
        log_q_I = torch.log(-torch.expm1(len(labels_P) * torch.log1p(-self.share_I.clamp(1e-9, 1 - 1e-6))))
        log_q = log_q_I[rows_N], log_q_I[rows_N]
        if "views" in config.contrastive:
            views = (self.content_vectors(rows_N, _HIDDEN) for _ in range(2))
            losses.append(info_nce(*views, config.temperature, log_q))
        if "ids" in config.contrastive:
            content_ND = self.content_vectors(rows_N, config.modality_dropout)
            losses.append(info_nce(self.items.ids[rows_N], content_ND, config.temperature, log_q))
        if "together" in config.contrastive:
            losses.append(self._together(labels_P, row_P, log_q_I))
        return torch.stack(losses).mean()

    def _together(self, labels_P: torch.Tensor, row_P: torch.Tensor, log_q_I: torch.Tensor) -> torch.Tensor:
        """Pairs of items that one user took, one pair a user; neither a user's own nor equal items are negatives."""
        order = torch.randperm(len(row_P), device=row_P.device)
        order = order[torch.argsort(row_P[order], stable=True)]
        row_P, labels_P = row_P[order], labels_P[order]
        first = torch.ones_like(row_P, dtype=torch.bool)
        first[1:] = row_P[1:] != row_P[:-1]
        start = first.nonzero()[:, 0]
        start = start[start + 1 < len(row_P)]
        start = start[row_P[start] == row_P[start + 1]]
        if len(start) < 2:
            return labels_P.new_zeros((), dtype=torch.float32)
        a_N, b_N = labels_P[start], labels_P[start + 1]
        a_ND, b_ND = (self.content_vectors(rows_N, self.config.modality_dropout) for rows_N in (a_N, b_N))
        same_NN = (a_N[:, None] == b_N) | (b_N[:, None] == b_N) | (a_N[:, None] == a_N)
        return info_nce(a_ND, b_ND, self.config.temperature, (log_q_I[a_N], log_q_I[b_N]), same_NN)
