"""Between packed and padded batches, and from a packed token to those before it (see `recsys.models.packing`).

Legend: P tokens, B rows, L steps of the longest row.
"""

import torch


def places(counts: list[int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(row_P, step_P): where every token stands; row r of step t is token sum(counts[:t]) + r."""
    counts_T = torch.tensor(counts, dtype=torch.long)
    step_P = torch.repeat_interleave(torch.arange(len(counts)), counts_T)
    row_P = torch.arange(len(step_P)) - (counts_T.cumsum(0) - counts_T)[step_P]
    return row_P.to(device), step_P.to(device)


def to_padded(x_P: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """[P, ...] as [B, L, ...]: rows aligned at their first token, zeros after their last."""
    rows, steps = counts[0] if counts else 0, len(counts)
    row_P, step_P = places(counts, x_P.device)
    flat = x_P.new_zeros(rows * steps, *x_P.shape[1:]).index_copy(0, row_P * steps + step_P, x_P)
    return flat.unflatten(0, (rows, steps))


def to_packed(x_BL: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """[B, L, ...] as [P, ...]: undoes `to_padded`, whatever stands in the padding."""
    row_P, step_P = places(counts, x_BL.device)
    return x_BL.flatten(0, 1).index_select(0, row_P * len(counts) + step_P)


def row_blocks(counts: list[int], shortest: int = 8, spare: float = 1.5) -> list[tuple[int, int, int]]:
    """(first row, row past the last, steps) of the blocks to pad by themselves; rows stand longest first.

    A block is cut where rows are half as long as its longest, unless those are at most `shortest` steps, or padding it
    whole makes less than `spare` places a token. Without rows there is one empty block.
    """
    found, first, steps, rows = [], 0, len(counts), counts[0] if counts else 0
    while first < rows or not found:
        tokens = sum(max(count - first, 0) for count in counts[:steps])
        whole = steps <= shortest or (rows - first) * steps <= spare * tokens
        end = rows if whole else counts[steps // 2]
        if whole or end > first:
            found.append((first, end, steps))
        first, steps = end, steps // 2
    return found


def earlier(counts: list[int], lag: int, device: torch.device) -> torch.Tensor:
    """For each token with one `lag` steps before it in its row, the index of that one.

    Such tokens are the last ones of the batch, all from step `lag` on; hence len(result) says which.
    """
    row_P, step_P = places(counts, device)
    counts_T = torch.tensor(counts, dtype=torch.long, device=device)
    offsets_T = counts_T.cumsum(0) - counts_T
    late = slice(sum(counts[:lag]), None)
    return offsets_T[step_P[late] - lag] + row_P[late]
