"""The small graph of an item and its neighbours: who is joined to whom, and where each stands in it. NumPy only.

Node 0 is the item itself; node n + 1 is its n-th neighbour. Models use it offline and in service alike.
"""

import numpy as np

EIGENVECTORS = 4
"""Dimensions of the Laplacian position."""
ALPHA, HOPS = 0.5, 2
"""Diffusion over the graph: sum over i up to HOPS of ALPHA (1 - ALPHA)^i A^i, A the mean over neighbours."""
ABSENT = -1e4
"""Logit of a token that is not there: its weight is zero in float32."""
_BLOCK = 64


def ego_edges(nodes_BN: np.ndarray, lists_IN: np.ndarray) -> np.ndarray:
    """[B, 1 + N, 1 + N] bool, symmetric, without loops: the item with every neighbour, and neighbours of which one has
    the other in its own list.

    nodes_BN: neighbours, -1 = none. lists_IN: the lists of the items themselves; nodes from I on have none.
    """
    size, width = len(nodes_BN), nodes_BN.shape[1]
    edges_BSS = np.zeros((size, width + 1, width + 1), bool)
    lists = np.concatenate([lists_IN, np.full((1, lists_IN.shape[1]), -2)])  # -2 is nobody
    for start in range(0, size, _BLOCK):
        here = slice(start, start + _BLOCK)
        nodes = nodes_BN[here]
        there = nodes >= 0
        own = lists[np.where(there & (nodes < len(lists_IN)), nodes, len(lists_IN))]
        inner = (own[:, :, None, :] == nodes[:, None, :, None]).any(-1) & there[:, None, :]
        edges_BSS[here, 1:, 1:] = inner | inner.transpose(0, 2, 1)
        edges_BSS[here, 0, 1:] = edges_BSS[here, 1:, 0] = there
    return edges_BSS


def laplacian_positions(edges_BSS: np.ndarray) -> np.ndarray:
    """[B, N, EIGENVECTORS] float32: the neighbours' entries in the eigenvectors of the normalised Laplacian that follow
    the trivial one; zeros where the graph is too small.

    An eigenvector's sign is free: its largest entry is made positive. Where eigenvalues coincide, so is their basis;
    the one that LAPACK finds is taken, the same for the same graph.
    """
    degree_BS = edges_BSS.sum(axis=2)
    scale_BS = 1 / np.sqrt(np.maximum(degree_BS, 1))
    laplacian = -(edges_BSS * scale_BS[:, :, None] * scale_BS[:, None, :])
    nodes = np.arange(edges_BSS.shape[1])
    laplacian[:, nodes, nodes] = np.where(
        degree_BS > 0, 1.0, 3.0
    )  # eigenvalues end at 2: absent nodes come last
    vectors = np.linalg.eigh(laplacian)[1][:, :, 1 : 1 + EIGENVECTORS]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=1)[:, None], axis=1)
    vectors = vectors * np.where(largest < 0, -1, 1)
    out = np.zeros((*edges_BSS.shape[:2], EIGENVECTORS), np.float32)
    out[:, :, : vectors.shape[2]] = vectors * (degree_BS > 0)[:, :, None]
    return out[:, 1:]
