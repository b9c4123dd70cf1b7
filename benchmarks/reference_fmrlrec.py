"""fMRLRec as it is usually written, over the weights of ours: what benchmarks/train.py measures against.

Rows are padded on the left, the recurrence is a log-doubling scan over complex64, a triangular matrix is a list of
layers whose outputs are concatenated, the item table is projected twice, and every position, padding too, is scored
against every item at every width in a logits tensor of its own. The model is ours (post-norm, input norm, id vectors,
item bias) without dropout, distillation, learnt scales or repeat bias, so that loss and gradients are the same numbers.

Letters beside those of recsys/schema.py: G segments of a scan level, H half of a segment, K widths.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from recsys.models.items import ItemEncoder
from recsys.models.layers import BlockNorm, NestedFFN, NestedLinear
from recsys.models.mixers.lru import NestedLRU
from recsys.models.sequence_module import SequenceModule
from recsys.models.trunk import Block
from recsys.schema import Ragged

PADDING, START, FIRST_ITEM = 0, 1, 2
"""Rows of the embedding table that sequences look up; item i stands in row FIRST_ITEM + i."""
NO_LABEL = -1


def left_padded(rows: Ragged, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens [B, length], labels [B, length]): start and all items but the last; all items."""
    tokens_BL = torch.full((len(rows), length), PADDING)
    labels_BL = torch.full((len(rows), length), NO_LABEL)
    for row in range(len(rows)):
        items = torch.from_numpy(rows[row])
        first = length - len(items)
        tokens_BL[row, first] = START
        tokens_BL[row, first + 1 :] = FIRST_ITEM + items[:-1]
        labels_BL[row, first:] = items
    return tokens_BL, labels_BL


class SplitLinear(nn.Module):
    """A block-lower-triangular linear map as one layer per increment; complex where there is an imaginary part."""

    def __init__(self, re: NestedLinear, im: NestedLinear | None = None):
        super().__init__()
        self.blocks = re.blocks
        self.shape = re.weight.shape
        dtype = torch.float32 if im is None else torch.complex64
        self.parts = nn.ModuleList(nn.Linear(fan_in, b - a, dtype=dtype) for (a, b), fan_in in re.blocks)
        weight, bias = re.weight.detach(), re.bias.detach()
        if im is not None:
            bias_im = torch.zeros_like(bias) if im.bias is None else im.bias.detach()
            weight, bias = torch.complex(weight, im.weight.detach()), torch.complex(bias, bias_im)
        with torch.no_grad():
            for part, ((a, b), fan_in) in zip(self.parts, self.blocks, strict=True):
                part.weight.copy_(weight[a:b, :fan_in])
                part.bias.copy_(bias[a:b])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = zip(self.parts, self.blocks, strict=True)
        return torch.cat([part(x[..., :fan_in]) for part, (_, fan_in) in parts], dim=-1)

    def gradients(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the whole matrix and the whole bias."""
        weight = self.parts[0].weight.new_zeros(self.shape)
        for part, ((a, b), fan_in) in zip(self.parts, self.blocks, strict=True):
            weight[a:b, :fan_in] = part.weight.grad
        return weight, torch.cat([part.bias.grad for part in self.parts])


class SplitNorm(nn.Module):
    """A LayerNorm per increment."""

    def __init__(self, norm: BlockNorm):
        super().__init__()
        self.blocks = norm.blocks
        self.parts = nn.ModuleList(nn.LayerNorm(b - a, eps=norm.eps) for a, b in norm.blocks)
        with torch.no_grad():
            for part, (a, b) in zip(self.parts, self.blocks, strict=True):
                part.weight.copy_(norm.weight[a:b])
                part.bias.copy_(norm.bias[a:b])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = zip(self.parts, self.blocks, strict=True)
        return torch.cat([part(x[..., a:b]) for part, (a, b) in parts], dim=-1)

    def gradients(self) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(
            torch.cat([getattr(part, name).grad for part in self.parts]) for name in ("weight", "bias")
        )


class ComplexLRU(nn.Module):
    """y_t = Re(C h_t + c), h_t = lambda h_(t-1) + gamma (B x_t + b), in complex64."""

    def __init__(self, lru: NestedLRU):
        super().__init__()
        self.nu_log, self.theta_log, self.gamma_log = map(copied, (lru.nu_log, lru.theta_log, lru.gamma_log))
        self.B, self.C = SplitLinear(lru.in_re, lru.in_im), SplitLinear(lru.out_re, lru.out_im)

    def forward(self, x_BLD: torch.Tensor, valid_BL: torch.Tensor) -> torch.Tensor:
        lambda_D = torch.exp(torch.complex(-torch.exp(self.nu_log), torch.exp(self.theta_log)))
        h_BLD = self.B(x_BLD.to(torch.complex64)) * torch.exp(self.gamma_log)
        return self.C(doubling_scan(h_BLD, valid_BL, lambda_D)).real

    def gradients(self) -> dict[str, torch.Tensor]:
        found = {name: getattr(self, name).grad for name in ("nu_log", "theta_log", "gamma_log")}
        for name, linear in {"in": self.B, "out": self.C}.items():
            weight, bias = linear.gradients()
            found |= {f"{name}_re.weight": weight.real, f"{name}_re.bias": bias.real}
            found |= {f"{name}_im.weight": weight.imag, f"{name}_im.bias": bias.imag}
        del found["out_im.bias"]  # only the real part is read: ours has none
        return found


def doubling_scan(h_BLD: torch.Tensor, valid_BL: torch.Tensor, lambda_D: torch.Tensor) -> torch.Tensor:
    """States from inputs; the length is a power of two and what is not valid stands in front.

    Level by level neighbouring segments become one: the right half gains what the left half's last state is worth
    lambda, lambda^2, ... later, unless that state is padding (then all before it is padding too).
    """
    batch, length, width = h_BLD.shape
    powers_HD = lambda_D[None]
    for level in range(1, length.bit_length()):
        half = 1 << (level - 1)
        h_GHD = h_BLD.reshape(-1, 2 * half, width)
        left, right = h_GHD[:, :half], h_GHD[:, half:]
        valid_G = valid_BL.reshape(-1, 2 * half)[:, half - 1]
        right = right + powers_HD * left[:, -1:] * valid_G[:, None, None]
        h_BLD = torch.cat([left, right], dim=1).reshape(batch, length, width)
        powers_HD = torch.cat([powers_HD, powers_HD * powers_HD[-1]])
    return h_BLD


class PaddedFFN(nn.Module):
    """W2 (SiLU(Wg x) * (W1 x))."""

    def __init__(self, ffn: NestedFFN):
        super().__init__()
        self.gate, self.up, self.down = map(SplitLinear, (ffn.gate, ffn.up, ffn.down))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class PaddedBlock(nn.Module):
    """Mixer and feed-forward, each with residual and norm after it."""

    def __init__(self, block: Block):
        super().__init__()
        self.mixer, self.ffn = ComplexLRU(block.mixer), PaddedFFN(block.ffn)
        self.norm1, self.norm2 = SplitNorm(block.norm1), SplitNorm(block.norm2)

    def forward(self, x_BLD: torch.Tensor, valid_BL: torch.Tensor) -> torch.Tensor:
        x_BLD = self.norm1(x_BLD + self.mixer(x_BLD, valid_BL))
        return self.norm2(x_BLD + self.ffn(x_BLD))


class ItemTable(nn.Module):
    """Content of one table through a projection, plus a vector per item; and the bias of an item."""

    def __init__(self, items: ItemEncoder):
        super().__init__()
        (name,) = items.missing
        self.name = name
        self.register_buffer("content_IF", items.get_buffer(f"whitened_{name}"))
        self.register_buffer("present_I", items.get_buffer(f"present_{name}"))
        self.weight, self.missing = copied(items.projections[name].weight), copied(items.missing[name])
        self.ids, self.bias = copied(items.ids.weight), copied(items.own_bias)

    def forward(self) -> torch.Tensor:
        """[I, D]"""
        projected_ID = F.linear(self.content_IF, self.weight)
        return torch.where(self.present_I[:, None], projected_ID, self.missing) + self.ids

    def gradients(self) -> dict[str, torch.Tensor]:
        return {
            f"projections.{self.name}.weight": self.weight.grad,
            f"missing.{self.name}": self.missing.grad,
            "ids.weight": self.ids.grad,
            "own_bias": self.bias.grad,
        }


class PlainFMRLRec(nn.Module):
    """Loss of a left-padded batch, from a copy of `module`'s weights. Every item must have been trained on."""

    def __init__(self, module: SequenceModule):
        super().__init__()
        config = module.config
        plain = {"norm": "post", "input_norm": True, "loss": "full", "distil": 0, "width_weights": "uniform"}
        plain |= {"dropout": 0, "id_dropout": 0, "modality_dropout": 0, "repeat_bias": False}
        plain |= {"width_temperature": False, "id_vectors": True, "item_bias": True, "trunk": "lru"}
        other = {name: value for name, value in plain.items() if getattr(config, name) != value}
        if other or len(config.tables) != 1 or len(module.objective.trained) != len(module.objective.place_I):
            raise ValueError(f"the two forms differ unless one table, all items trained on, and {other}")
        self.widths = config.widths
        self.start, self.items = copied(module.trunk.start), ItemTable(module.items)
        self.in_norm = SplitNorm(module.trunk.in_norm)
        self.blocks = nn.ModuleList(map(PaddedBlock, module.trunk.blocks))

    def forward(self, tokens_BL: torch.Tensor, labels_BL: torch.Tensor) -> torch.Tensor:
        items_ID = self.items()
        rows = torch.cat([torch.zeros_like(self.start)[None], self.start[None], items_ID])
        x_BLD = self.in_norm(F.embedding(tokens_BL, rows, padding_idx=PADDING))
        length = tokens_BL.shape[1]
        more = 2 ** math.ceil(math.log2(length)) - length
        x_BLD = F.pad(x_BLD, (0, 0, more, 0))
        valid_BL = F.pad(tokens_BL != PADDING, (more, 0))
        for block in self.blocks:
            x_BLD = block(x_BLD, valid_BL)
        x_BLD = x_BLD[:, more:]
        items_ID = self.items()  # a second time, for the scores
        logits = [x_BLD[..., :m] @ items_ID[:, :m].T + self.items.bias for m in self.widths]
        logits_NI = torch.cat(logits).flatten(0, 1)
        labels_N = labels_BL.repeat(len(self.widths), 1).flatten()
        return F.cross_entropy(logits_NI, labels_N, ignore_index=NO_LABEL)

    def gradients(self) -> dict[str, torch.Tensor]:
        """Under the names and in the shapes of our module's parameters."""
        found = {"trunk.start": self.start.grad}
        found |= {f"items.{name}": value for name, value in self.items.gradients().items()}
        pairs = {"trunk.in_norm": self.in_norm}
        for number, block in enumerate(self.blocks):
            prefix = f"trunk.blocks.{number}"
            found |= {f"{prefix}.mixer.{name}": value for name, value in block.mixer.gradients().items()}
            pairs |= {f"{prefix}.{name}": getattr(block, name) for name in ("norm1", "norm2")}
            pairs |= {f"{prefix}.ffn.{name}": getattr(block.ffn, name) for name in ("gate", "up", "down")}
        for name, pair in pairs.items():
            found[f"{name}.weight"], found[f"{name}.bias"] = pair.gradients()
        return found


def copied(parameter: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().clone())
