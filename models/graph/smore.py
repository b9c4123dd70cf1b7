"""SMORE: modalities denoised and fused in the spectrum of their projected features.

After Ong and Khong, "Spectrum-based Modality Representation Fusion Graph Convolutional Network for Multimodal
Recommendation" (WSDM 2025). F is the Fourier transform along the features, p^m = W_m x^m:

    denoised^m = F^-1(w_m * F(p^m)),   fused = F^-1(w * prod_m F(p^m)),   w complex and learnt
    e = id * s(G denoised + g) of each and of the fused,   h = S e for items, R h for users, b = LGC(ID)
    side = mean over them of s(P b + p) * h,   final = b + side

S of a modality is its kNN graph; that of the fused, the largest value of each edge among those. Beside the ranking,
InfoNCE between side and behaviour. Departures: as of MGCN; one number of neighbours for all tables; no attention of the
fused view over the others before the preferences. A new item gets the mean of its nearest trained items' vectors.
"""

from collections.abc import Mapping
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from recsys.models.graph.content import Content
from recsys.models.graph.fusion import SideConfig, SideModule
from recsys.models.graph.propagation import Edges, strongest
from recsys.models.graph.recommender import GraphRec
from recsys.models.trunk import Share
from recsys.schema import Log

FUSED = "_fused"
"""Name of the view of all tables together; no table is called so."""


class SMOREConfig(SideConfig):
    """Settings of SMORE."""

    layers: Annotated[int, Field(ge=1)] = 3
    """Times that vectors are smoothed over the graph of users and items."""
    dropout: Share = 0.1
    """Of the preferences."""


class SMOREModule(SideModule):
    def __init__(self, config: SMOREConfig, log: Log, content: Mapping[str, Content]):
        super().__init__(config, log, content)
        tones = config.widths[-1] // 2 + 1
        self.filters = nn.ParameterDict()
        for name in self.similar:  # real and imaginary parts; at first, all tones pass as they are
            self.filters[name] = nn.Parameter(torch.stack([torch.ones(tones), torch.zeros(tones)], dim=1))

    def graphs(self) -> dict[str, Edges]:
        found = {name: self.item_edges(name) for name in self.known}
        return found | {FUSED: strongest(list(found.values()), len(self.items))}

    def signals(self) -> dict[str, torch.Tensor]:
        tones = {name: torch.fft.rfft(own_ID, norm="ortho") for name, own_ID in self.content().items()}
        product = torch.ones_like(next(iter(tones.values())))
        for own in tones.values():
            product = product * own
        tones[FUSED] = product
        return {
            name: torch.fft.irfft(
                torch.view_as_complex(self.filters[name]) * own, n=self.config.widths[-1], norm="ortho"
            )
            for name, own in tones.items()
        }

    def side(self, spread: dict[str, torch.Tensor], prefer: dict[str, torch.Tensor]) -> torch.Tensor:
        share = self.config.dropout
        kept = [F.dropout(prefer[name], share, self.training) * own_ND for name, own_ND in spread.items()]
        return torch.stack(kept).mean(0)


class SMORE(GraphRec[SMOREConfig]):
    """Behaviour, and modalities fused in their spectrum."""

    Config = SMOREConfig
    Module = SMOREModule
