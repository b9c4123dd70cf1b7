"""The neighbour encoder against plain references for one item, its masks, and its form in NumPy."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from recsys.ego_graph import ALPHA, EIGENVECTORS, HOPS, ego_edges, laplacian_positions
from recsys.models.graph.encoder import Ego, EncoderConfig, NeighbourEncoder

WIDTH, FANOUT, RELATIONS, ITEMS, VALUES = 8, 3, 2, 7, 4
KINDS = list(itertools.product(("pool", "sa", "ca", "sa_hop"), ("rank", "laplacian", "gnn", "hop", "none")))
NODES_BN = torch.tensor([[1, 4, -1, 8, 10, -1], [-1] * 6, [0, 3, 5, 7, 8, 9]])
"""Neighbours of three items: 0 to 6 are items, 7 to 10 values."""
LISTS_IN = torch.tensor([[4, -1], [4, 2], [-1, -1], [5, 0], [-1, -1], [-1, -1], [1, 2]])


def encoder_of(encoder: str, position: str, tokens: int = 2, blocks: int = 2) -> NeighbourEncoder:
    """With random weights everywhere, gates and norms too."""
    torch.manual_seed(1)
    config = EncoderConfig(encoder=encoder, position=position, tokens=tokens, blocks=blocks, fanout=FANOUT)
    made = NeighbourEncoder(config, WIDTH, {"text": 5, "image": 3}, RELATIONS, VALUES).double().eval()
    with torch.no_grad():
        for value in made.parameters():
            value.copy_(torch.randn(value.shape) * 0.4)
    return made


def inputs() -> tuple[dict, Ego, torch.Tensor]:
    """Rows of three items (the second has nothing, the third no image), their neighbours, content of all items."""
    torch.manual_seed(2)
    present = {"text": [True, False, True], "image": [True, False, False]}
    rows = {
        name: (torch.randn(3, width).double(), torch.tensor(present[name]))
        for name, width in (("text", 5), ("image", 3))
    }
    weights_BN = torch.where(NODES_BN >= 0, torch.rand(3, 6) + 0.1, 0.0).double()
    edges_BSS = ego_edges(NODES_BN.numpy(), LISTS_IN.numpy())
    spectrum = torch.from_numpy(laplacian_positions(edges_BSS)).double()
    return (
        rows,
        Ego(NODES_BN, weights_BN, torch.from_numpy(edges_BSS), spectrum),
        torch.randn(ITEMS, WIDTH).double(),
    )


def result(made: NeighbourEncoder, rows, ego: Ego, content_ID: torch.Tensor) -> torch.Tensor:
    return made(rows, ego, made.node_tokens(content_ID, torch.arange(VALUES)))


def attended(
    block: nn.Module, queries: torch.Tensor, memory: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """torch's own attention with the same weights, over tokens that are all there."""
    own = nn.MultiheadAttention(WIDTH, block.attention.heads, batch_first=True).double()
    parts = [getattr(block.attention, name).weight for name in ("query", "key", "value")]
    with torch.no_grad():
        own.in_proj_weight.copy_(torch.cat(parts))
        own.in_proj_bias.zero_()
        own.out_proj.weight.copy_(block.attention.out.weight)
        own.out_proj.bias.copy_(block.attention.out.bias)
    return own(queries[None], memory[None], memory[None], attn_mask=bias)[0][0]


def through(
    block: nn.Module, x: torch.Tensor, memory: torch.Tensor | None, bias: torch.Tensor
) -> torch.Tensor:
    first, second = (1, 1) if block.gates is None else block.gates.tanh()
    own = block.norm1(x)
    if memory is None or len(memory):
        x = x + first * attended(block, own, own if memory is None else memory, bias)
    return x + second * block.down(F.relu(block.up(block.norm2(x))))


def slow(made: NeighbourEncoder, rows, ego: Ego, content_ID: torch.Tensor, item: int) -> torch.Tensor:
    """One item, token by token, with nothing in it that is not there."""
    config, k = made.config, made.config.tokens
    own, gates = [], []
    for (name, (values, present)), gate in zip(rows.items(), made.own_gates, strict=True):
        if present[item]:
            own += made.maps[name](values[item]).view(k, WIDTH).unbind()
            gates += [gate / k] * k
    if not own:
        own, gates = [made.absent] * k, [made.own_gates[0] / k] * k
    nodes = [(slot, node) for slot, node in enumerate(ego.nodes_BN[item].tolist()) if node >= 0]
    near: list[torch.Tensor] = []
    for slot, node in nodes:
        block = made.item_map(content_ID[node]) if node < ITEMS else made.values[node - ITEMS]
        token = block.view(k, WIDTH) + made.relations[slot // FANOUT, 0]
        if config.position == "rank":
            token = token + made.places[0, slot % FANOUT]
        elif config.position == "hop":
            token = token + made.places[1]
        elif config.position == "laplacian":
            token = token + (made.spectral.weight @ ego.spectrum_BNE[item, slot]).view(k, WIDTH)
        near.append(token)
    inside = [0, *(slot + 1 for slot, _ in nodes)]
    edges = ego.edges_BSS[item][inside][:, inside].double()
    if config.position == "gnn" and nodes:
        x = torch.stack([torch.zeros(k * WIDTH).double(), *(token.flatten() for token in near)])
        mean = edges / edges.sum(1, keepdim=True).clamp(min=1)
        h = F.relu(made.hidden(torch.cat([x, mean @ x], dim=1)))
        near = list((x + made.output(torch.cat([h, mean @ h], dim=1)))[1:].view(len(nodes), k, WIDTH))
    weights = torch.stack([ego.weights_BN[item, slot] for slot, _ in nodes]) if nodes else torch.zeros(0)
    if config.encoder == "pool":
        total = sum(gate * token for gate, token in zip(gates, own, strict=True))
        for relation in range(RELATIONS):
            its = [place for place, (slot, _) in enumerate(nodes) if slot // FANOUT == relation]
            if its:
                mean = sum(weights[place] * near[place].mean(0) for place in its) / weights[its].sum()
                total = total + made.relation_gates[relation].tanh() * mean
        return total
    memory = torch.stack(near).flatten(0, 1) if nodes else torch.zeros(0, WIDTH).double()
    prior = weights.log().repeat_interleave(k) if nodes else torch.zeros(0)
    x = torch.stack(own)
    if config.encoder == "ca":
        for block in made.blocks:
            x = through(block, x, memory, prior.expand(len(x), -1))
        return sum(gate * token for gate, token in zip(gates, x, strict=True))
    if config.position == "hop":
        x = x + made.places[0]
    x = torch.cat([made.start[None], x, memory])
    bias = torch.cat([torch.zeros(1 + len(own)).double(), prior]).expand(len(x), -1)
    node = torch.tensor([0] * (1 + len(own)) + [place + 1 for place in range(len(nodes)) for _ in range(k)])
    joined = edges[node][:, node]
    if config.encoder == "sa_hop":
        bias = bias.masked_fill((joined == 0) & (node[:, None] != node), -torch.inf)
    for block in made.blocks:
        x = through(block, x, None, bias)
    if config.encoder == "sa":
        return x[0]
    mean = joined / joined.sum(1, keepdim=True).clamp(min=1)
    diffused = sum(
        ALPHA * (1 - ALPHA) ** hop * torch.linalg.matrix_power(mean, hop) for hop in range(HOPS + 1)
    )
    return (x + diffused @ x)[0]


@pytest.mark.parametrize(("encoder", "position"), KINDS)
@pytest.mark.parametrize("tokens", [1, 2])
def test_every_variant_against_one_item_at_a_time(encoder, position, tokens):
    made, (rows, ego, content_ID) = encoder_of(encoder, position, tokens), inputs()
    found = result(made, rows, ego, content_ID)
    for item in range(3):
        torch.testing.assert_close(found[item], slow(made, rows, ego, content_ID, item), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("encoder", ["pool", "ca"])
def test_gates_at_zero_leave_own_content_alone(encoder):
    """Which is how training starts."""
    rows, ego, content_ID = inputs()
    fresh = NeighbourEncoder(
        EncoderConfig(encoder=encoder, fanout=FANOUT), WIDTH, {"text": 5, "image": 3}, 2, VALUES
    )
    fresh = fresh.double()
    torch.testing.assert_close(result(fresh, rows, ego, content_ID), fresh.content(rows))
    made = encoder_of(encoder, "rank")
    assert not torch.allclose(result(made, rows, ego, content_ID)[0], made.content(rows)[0])


@pytest.mark.parametrize(("encoder", "position"), KINDS)
def test_what_is_absent_has_no_say(encoder, position):
    """Neither the row of a missing modality, nor the weight of a place that holds nobody."""
    made, (rows, ego, content_ID) = encoder_of(encoder, position), inputs()
    before = result(made, rows, ego, content_ID)
    image, present = rows["image"]
    rows["image"] = torch.where(present[:, None], image, 1e3), present
    torch.testing.assert_close(result(made, rows, ego, content_ID), before)
    other = content_ID.clone()
    other[[2, 6]] = 1e3  # nobody's neighbours
    torch.testing.assert_close(result(made, rows, ego, other), before)
    other[4] = 1e3  # one of the first item's, not of the third's
    after = result(made, rows, ego, other)
    assert not torch.allclose(after[0], before[0])
    torch.testing.assert_close(after[1:], before[1:])


@pytest.mark.parametrize(("encoder", "position"), [kind for kind in KINDS if kind[1] != "laplacian"])
def test_the_order_of_neighbours_matters_where_it_is_told(encoder, position):
    """Within a relation; the basis of a Laplacian's equal eigenvalues follows the order, so it is left out."""
    made, (rows, ego, content_ID) = encoder_of(encoder, position), inputs()
    order = torch.tensor([2, 0, 1, 5, 3, 4])
    sides = torch.cat([torch.tensor([0]), order + 1])
    moved = Ego(
        ego.nodes_BN[:, order],
        ego.weights_BN[:, order],
        ego.edges_BSS[:, sides][:, :, sides],
        ego.spectrum_BNE,
    )
    same = torch.allclose(
        result(made, rows, ego, content_ID), result(made, rows, moved, content_ID), atol=1e-9
    )
    assert same == (position != "rank")


def test_the_small_graph_against_a_loop():
    found = ego_edges(NODES_BN.numpy(), LISTS_IN.numpy())
    for item, nodes in enumerate(NODES_BN.tolist()):
        for a, b in itertools.product(range(7), repeat=2):
            ends = [nodes[place - 1] if place else None for place in (a, b)]
            there = all(end is None or end >= 0 for end in ends)
            if 0 in (a, b):
                joined = a != b
            else:
                lists = [LISTS_IN[end].tolist() if 0 <= end < ITEMS else [] for end in ends]
                joined = ends[1] in lists[0] or ends[0] in lists[1]
            assert found[item, a, b] == (there and joined), (item, a, b)


def test_laplacian_positions_are_eigenvectors():
    edges = ego_edges(NODES_BN.numpy(), LISTS_IN.numpy())
    found = laplacian_positions(edges)
    assert found.shape == (3, 6, EIGENVECTORS) and not found[1].any()
    degree = edges[2].sum(1)
    laplacian = np.eye(7) - edges[2] / np.sqrt(np.outer(degree, degree))
    values = np.linalg.eigvalsh(laplacian)
    assert abs(values[0]) < 1e-9
    # the trivial vector is sqrt(degree), and all others are at right angles to it
    first = -(np.sqrt(degree[1:]) @ found[2]) / np.sqrt(degree[0])
    vectors = np.concatenate([first[None], found[2]])
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(EIGENVECTORS), atol=1e-6)
    np.testing.assert_allclose(laplacian @ vectors, vectors * values[1 : EIGENVECTORS + 1], atol=1e-6)
    assert not found[0, [2, 5]].any() and found[0, [0, 1, 3, 4]].any()  # absent places have no position


def test_signs_of_eigenvectors_are_drawn_in_training():
    made, (rows, ego, content_ID) = encoder_of("ca", "laplacian"), inputs()
    made.train()
    found = {tuple(result(made, rows, ego, content_ID)[2].tolist()) for _ in range(12)}
    assert len(found) > 3
