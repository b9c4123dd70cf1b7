"""A toy graph of users and items as dense matrices, and each preset written from its equations with them.

A reference takes the weights of a module and gives user vectors, item vectors and the loss, as scoring would see them:
no dropout, no noise, all edges.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

from recsys.features.whitening import Whitening
from recsys.models.base import FitContext
from recsys.models.graph.recommender import GraphModule, GraphRec
from recsys.schema import Dense, Log

USERS, ITEMS, K, COLD = 6, 8, 2, 7
"""Item 7 has no training row."""
PAIRS = [
    (0, 0),
    (0, 1),
    (0, 2),
    (1, 1),
    (1, 3),
    (2, 2),
    (2, 4),
    (3, 0),
    (3, 5),
    (3, 6),
    (4, 6),
    (4, 4),
    (5, 3),
]


def context() -> FitContext:
    """Six users, eight items, two tables; items 2 and 5 lack one of them, item 4 both."""
    user_N, item_N = np.array(PAIRS).T
    indptr = np.searchsorted(user_N, np.arange(USERS + 1))
    zeros_N = np.zeros(len(user_N))
    log = Log(user_N, item_N, zeros_N.astype(np.int64), zeros_N.astype(np.float32), indptr, ITEMS)
    rng, tables = np.random.default_rng(3), {}
    for name, width, absent in (("text", 5, [2, 4]), ("image", 3, [4, 5])):
        values_EF = rng.normal(size=(ITEMS, width)).astype(np.float32)
        present_E = ~np.isin(np.arange(ITEMS), absent)
        values_EF[~present_E] = np.nan
        tables["item", name] = Dense(values_EF, present_E)
    return FitContext(log, tables)


def fresh(model: type[GraphRec], **settings) -> GraphRec:
    """A model set up on the toy graph, with weights that are far from their first values."""
    made = model(model.Config(tables=("text", "image"), widths=(6,), neighbours=K, **settings))
    torch.manual_seed(1)
    made.setup(context())
    with torch.no_grad():
        for weight in made.module.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    made.module.begin(0, np.random.default_rng(0))
    made.module.eval()
    return made


@dataclass
class World:
    """R: pairs [U, I]; A: D^-1/2 (0 R; R' 0) D^-1/2; x: whitened rows; has: presence; raw: rows that kNN looks at."""

    R: torch.Tensor
    A: torch.Tensor
    x: dict[str, torch.Tensor]
    has: dict[str, torch.Tensor]
    raw: dict[str, torch.Tensor]
    trained: torch.Tensor


def dense_world() -> World:
    ctx = context()
    R = torch.zeros(USERS, ITEMS)
    for user, item in PAIRS:
        R[user, item] = 1
    both = torch.zeros(USERS + ITEMS, USERS + ITEMS)
    both[:USERS, USERS:], both[USERS:, :USERS] = R, R.T
    scale = both.sum(1).clamp_min(1).rsqrt()
    counts, world = ctx.train.item_counts(), World(R, scale[:, None] * both * scale, {}, {}, {}, R.sum(0) > 0)
    for name in ("text", "image"):
        table = ctx.item_table(name)
        for scaled, into in ((True, world.x), (False, world.raw)):
            whitening = Whitening.fit(table, counts > 0, 256, scaled=scaled)
            rows = whitening(table.values_EF, table.present_E)
            into[name] = torch.from_numpy(np.where(table.present_E[:, None], rows, 0).astype(np.float32))
        world.has[name] = torch.from_numpy(table.present_E)
    return world


def cosines(rows: torch.Tensor) -> torch.Tensor:
    unit = F.normalize(rows.double(), dim=1)
    return (unit @ unit.T).float()


def knn(world: World, name: str, rows: torch.Tensor, *, cold: bool = False) -> torch.Tensor:
    """[I, I] cosines of the K nearest trained items with this content; with `cold`, of the cold item's row too."""
    cos, S = cosines(rows), torch.zeros(ITEMS, ITEMS)
    usable = world.has[name] & world.trained
    for i in range(ITEMS):
        if usable[i] or (cold and i == COLD):
            found = sorted((-cos[i, j].item(), j) for j in range(ITEMS) if usable[j] and j != i)
            for _, j in found[:K]:
                S[i, j] = cos[i, j]
    return S


def row_mean(S: torch.Tensor) -> torch.Tensor:
    sums = S.sum(1, keepdim=True)
    return S / torch.where(sums > 0, sums, 1.0)


def cosine_graph(world: World, name: str, **options) -> torch.Tensor:
    return row_mean(knn(world, name, world.raw[name], **options).clamp_min(0))


def plain_graph(world: World, weights: dict[str, float], **options) -> torch.Tensor:
    """The weighted mean of the tables' plain means, over the tables that a row has."""
    total = torch.zeros(ITEMS, ITEMS)
    for name, weight in weights.items():
        total += weight * row_mean((knn(world, name, world.raw[name], **options) != 0).float())
    return row_mean(total)


def lgc(A: torch.Tensor, x: torch.Tensor, layers: int) -> torch.Tensor:
    powers = [x]
    for _ in range(layers):
        powers.append(A @ powers[-1])
    return torch.stack(powers).mean(0)


def content(module: GraphModule, world: World) -> dict[str, torch.Tensor]:
    """W_m x^m, or the missing vector."""
    maps = module.content
    return {
        name: torch.stack(
            [
                maps.maps[name].weight @ world.x[name][i] if world.has[name][i] else maps.missing[name]
                for i in range(ITEMS)
            ]
        )
        for name in world.x
    }


def ids(module: GraphModule) -> torch.Tensor:
    """The cold item has none."""
    return torch.stack([module.items[i] * (i != COLD) for i in range(ITEMS)])


def bpr(users: torch.Tensor, items: torch.Tensor, triples: list[tuple[int, int, int]]) -> torch.Tensor:
    """Mean of -log s(own - other) over the triples whose other is not the own."""
    terms = [-F.logsigmoid(users[u] @ (items[i] - items[j])) for u, i, j in triples if i != j]
    return torch.stack(terms).mean()


def nce(a: torch.Tensor, b: torch.Tensor, rows: set[int], temperature: float) -> torch.Tensor:
    terms = []
    for i in sorted(rows):
        at = [F.cosine_similarity(a[i], b[j], dim=0) / temperature for j in sorted(rows)]
        terms.append(
            torch.logsumexp(torch.stack(at), 0) - F.cosine_similarity(a[i], b[i], dim=0) / temperature
        )
    return torch.stack(terms).mean()


def apart(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return 1 - F.cosine_similarity(a, b, dim=1).mean()


Triples = list[tuple[int, int, int]]
Found = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _vbpr(m: GraphModule, w: World, c: SimpleNamespace, triples: Triples) -> Found:
    own = content(m, w)
    items = torch.cat([ids(m), own["text"] + own["image"]], dim=1)
    return m.users, items, bpr(m.users, items, triples)


def _mmgcn(m: GraphModule, w: World, c: SimpleNamespace, triples: Triples) -> Found:
    both = (w.A > 0).float()
    mean, node_ids, outputs = row_mean(both), torch.cat([m.users, ids(m)]), []
    for name, own in content(m, w).items():
        x = torch.cat([m.preferences[name], own])
        for layer in m.layers[name]:
            h = F.leaky_relu(mean @ (x @ layer.gather.weight.T))
            x_hat = F.leaky_relu(x @ layer.own.weight.T + layer.own.bias) + node_ids
            x = F.leaky_relu(h @ layer.join.weight.T + layer.join.bias + x_hat)
        outputs.append(x)
    users, items = ((outputs[0] + outputs[1]) / 2).split([USERS, ITEMS])
    return users, items, bpr(users, items, triples)


def lattice_graph(m: GraphModule, w: World, c: SimpleNamespace, **options) -> torch.Tensor:
    """A of its equation."""
    a = torch.exp(m.importance) / torch.exp(m.importance).sum()
    raw = row_mean(sum(a[n] * cosine_graph(w, name, **options) for n, name in enumerate(w.x)))
    learnt = 0.0
    for n, name in enumerate(w.x):
        edges = knn(w, name, w.x[name] @ getattr(m, f"anchor_{name}").T, **options) != 0
        learnt = learnt + a[n] * edges * cosines(w.x[name] @ m.content.maps[name].weight.T).clamp_min(0)
    return c.raw_share * raw + (1 - c.raw_share) * row_mean(learnt)


def _lattice(m: GraphModule, w: World, c: SimpleNamespace, triples: Triples) -> Found:
    users, smooth = lgc(w.A, torch.cat([m.users, ids(m)]), c.layers).split([USERS, ITEMS])
    items = smooth + F.normalize(lattice_graph(m, w, c) @ ids(m), dim=1)
    return users, items, bpr(users, items, triples)


def _freedom(m: GraphModule, w: World, c: SimpleNamespace, triples: Triples) -> Found:
    users, smooth = lgc(w.A, torch.cat([m.users, ids(m)]), c.layers).split([USERS, ITEMS])
    items = smooth + plain_graph(w, {"text": 0.9, "image": 0.1}) @ ids(m)
    own = sum(bpr(users, part, triples) for part in content(m, w).values())
    return users, items, bpr(users, items, triples) + c.content_weight * own


def _bm3(m: GraphModule, w: World, c: SimpleNamespace, triples: Triples) -> Found:
    users, smooth = lgc(w.A, torch.cat([m.users, ids(m)]), c.layers).split([USERS, ITEMS])
    smooth = smooth + ids(m)

    def P(x: torch.Tensor) -> torch.Tensor:
        return x @ m.predictor.weight.T + m.predictor.bias

    us, its = [u for u, _, _ in triples], [i for _, i, _ in triples]
    loss = apart(P(users[us]), smooth[its]) + apart(P(smooth[its]), users[us])
    for own in content(m, w).values():
        loss = loss + 2.0 * (apart(P(own[its]), smooth[its]) + apart(P(own[its]), own[its]))
    return P(users), P(smooth), loss


def _gated(m: GraphModule, w: World, c: SimpleNamespace, graphs: dict, signals: dict) -> tuple:
    behaviour = lgc(w.A, torch.cat([m.users, ids(m)]), c.layers)
    spread, prefer = {}, {}
    for name, graph in graphs.items():
        gate, preference = m.gates[name], m.preferences[name]
        e = ids(m) * torch.sigmoid(signals[name] @ gate.weight.T + gate.bias)
        h = graph @ e
        spread[name] = torch.cat([w.A[:USERS, USERS:] @ h, h])
        prefer[name] = torch.sigmoid(behaviour @ preference.weight.T + preference.bias)
    return behaviour, spread, prefer


def _with_contrast(behaviour, side, c: SimpleNamespace, triples: Triples) -> Found:
    users, items = (behaviour + side).split([USERS, ITEMS])
    us, its = {u for u, _, _ in triples}, {i + USERS for _, i, _ in triples}
    both = nce(side, behaviour, us, c.temperature) + nce(side, behaviour, its, c.temperature)
    return users, items, bpr(users, items, triples) + c.contrast_weight * both


def _mgcn(m: GraphModule, w: World, c: SimpleNamespace, triples: Triples) -> Found:
    graphs = {name: cosine_graph(w, name) for name in w.x}
    behaviour, spread, prefer = _gated(m, w, c, graphs, content(m, w))
    Q, v = m.question[0], m.question[2].weight
    asked = {name: torch.exp(torch.tanh(h @ Q.weight.T + Q.bias) @ v.T) for name, h in spread.items()}
    common = sum(asked[name] * h for name, h in spread.items()) / sum(asked.values())
    own = sum(prefer[name] * (h - common) for name, h in spread.items())
    return _with_contrast(behaviour, (own + common) / 3, c, triples)


def _dft(x: torch.Tensor) -> torch.Tensor:
    """The transform as a matrix, all tones."""
    n = torch.arange(x.shape[1])
    waves = torch.exp(-2j * torch.pi * n[:, None] * n / len(n)) / len(n) ** 0.5
    return x.to(torch.complex64) @ waves.T.to(torch.complex64)


def _back(tones: torch.Tensor) -> torch.Tensor:
    """From the first half of the tones of a real signal."""
    size = 2 * (tones.shape[1] - 1)
    edge = torch.complex(
        tones.real[:, [0, -1]], torch.zeros(len(tones), 2)
    )  # of a real signal these are real
    inner = tones[:, 1:-1]
    whole = torch.cat([edge[:, :1], inner, edge[:, 1:], inner.flip(1).conj()], dim=1)
    n = torch.arange(size)
    waves = torch.exp(2j * torch.pi * n[:, None] * n / size) / size**0.5
    return (whole @ waves.T.to(torch.complex64)).real


def _smore(m: GraphModule, w: World, c: SimpleNamespace, triples: Triples) -> Found:
    graphs = {name: cosine_graph(w, name) for name in w.x}
    graphs["_fused"] = torch.maximum(graphs["text"], graphs["image"])
    tones = {name: _dft(own)[:, : own.shape[1] // 2 + 1] for name, own in content(m, w).items()}
    tones["_fused"] = tones["text"] * tones["image"]
    filters = {name: torch.complex(f[:, 0], f[:, 1]) for name, f in m.filters.items()}
    signals = {name: _back(filters[name] * own) for name, own in tones.items()}
    behaviour, spread, prefer = _gated(m, w, c, graphs, signals)
    return _with_contrast(behaviour, sum(prefer[name] * h for name, h in spread.items()) / 3, c, triples)


def _lgmrec(m: GraphModule, w: World, c: SimpleNamespace, triples: Triples) -> Found:
    behaviour = lgc(w.A, torch.cat([m.users, ids(m)]), c.layers)
    total, hyper = behaviour, []
    for name, own in content(m, w).items():
        g = w.A @ w.A @ torch.cat([row_mean(w.R) @ own, own])
        total = total + F.normalize(g, dim=1)
        logits = torch.where(w.has[name][:, None], w.x[name] @ m.hyperedges[name], m.unassigned[name])
        H_I, H_U = torch.softmax(logits / 0.2, 1), torch.softmax(w.R @ logits / 0.2, 1)
        y = behaviour[USERS:]
        for _ in range(c.hyper_layers):
            E = H_I.T @ (y * w.trained[:, None])
            y = H_I @ E
        hyper.append(torch.cat([H_U @ E, y]))
    users, items = (total + c.hyper_weight * F.normalize(hyper[0] + hyper[1], dim=1)).split([USERS, ITEMS])
    us, its = {u for u, _, _ in triples}, {i + USERS for _, i, _ in triples}
    both = nce(*hyper, us, 0.2) + nce(*hyper, its, 0.2)
    return users, items, bpr(users, items, triples) + c.contrast_weight * both


def _pgl(m: GraphModule, w: World, c: SimpleNamespace, triples: Triples) -> Found:
    x = torch.cat([F.normalize(own, dim=1) for own in content(m, w).values()], dim=1)
    users, smooth = lgc(w.A, torch.cat([m.users, x]), c.layers).split([USERS, ITEMS])
    items = smooth + plain_graph(w, {"text": 0.5, "image": 0.5}) @ x
    us, its = {u for u, _, _ in triples}, {i for _, i, _ in triples}
    both = nce(users, users, us, 0.2) + nce(items, items, its, 0.2)
    return users, items, bpr(users, items, triples) + c.contrast_weight * both


REFERENCES: dict[str, Callable[..., Found]] = {
    "vbpr": _vbpr, "mmgcn": _mmgcn, "lattice": _lattice, "freedom": _freedom, "bm3": _bm3, "mgcn": _mgcn,
    "smore": _smore, "lgmrec": _lgmrec, "pgl": _pgl,
}  # fmt: skip
