"""The same model behind FastAPI as tutorials write it: what benchmarks/serve.py measures against.

    python benchmarks/reference_server.py BUNDLE [--trees 200]

pydantic in and out, a plain `def` route, the user's history out of a dict, the whole history through a torch network
at every request, a torch product with the candidates' vectors. --trees: then a LightGBM booster over features that
are put together candidate by candidate. One torch thread: with more, requests wait for each other.
"""

import argparse
import math
import socket
from pathlib import Path

import lightgbm
import numpy as np
import torch
import torch.nn.functional as F
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from reference_fmrlrec import doubling_scan

from recsys import schema
from recsys.bundle import Bundle

FEATURES = 8
"""Of a candidate: score, place, popularity, share of the history in its categories, seen, and so on."""


class Encoder(torch.nn.Module):
    """The network of an `lru` form over one history, with a log-doubling scan."""

    def __init__(self, bundle: Bundle):
        super().__init__()
        form = bundle.form
        if form.program != "lru" or form.meta["norm"] != "post" or "in.weight" not in form.arrays:
            raise SystemExit("the reference knows fMRLRec as it comes: trunk lru, post-norm, input norm")
        for name, value in form.arrays.items():
            self.register_buffer(name.replace(".", "_"), torch.from_numpy(np.array(value)))
        self.register_buffer("items", torch.from_numpy(np.array(form.item_vectors_ID)))
        self.register_buffer("bias", torch.from_numpy(np.array(form.item_bias_I)))
        self.parts = list(zip((0, *form.widths[:-1]), form.widths, strict=True))
        self.blocks, self.eps = int(form.meta["blocks"]), float(form.meta["eps"])

    def norm(self, x_LD: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self.get_buffer(f"{name}_weight"), self.get_buffer(f"{name}_bias")
        parts = [
            F.layer_norm(x_LD[:, a:b], (b - a,), weight[a:b], bias[a:b], self.eps) for a, b in self.parts
        ]
        return torch.cat(parts, dim=1)

    def recurrence(self, x_LD: torch.Tensor, block: int) -> torch.Tensor:
        def array(name: str) -> torch.Tensor:
            return self.get_buffer(f"{block}_mix_{name}")

        v_LD = torch.complex(
            F.linear(x_LD, array("B_re"), array("b_re")), F.linear(x_LD, array("B_im"), array("b_im"))
        )
        more = 2 ** math.ceil(math.log2(len(v_LD))) - len(v_LD)
        valid_1L = F.pad(torch.ones(1, len(v_LD), dtype=torch.bool), (more, 0))
        lambda_D = torch.complex(array("lambda_re"), array("lambda_im"))
        h_LD = doubling_scan(F.pad(v_LD, (0, 0, more, 0))[None], valid_1L, lambda_D)[0, more:]
        return F.linear(h_LD.real, array("C_re"), array("c")) - F.linear(h_LD.imag, array("C_im"))

    def forward(self, history: torch.Tensor) -> torch.Tensor:
        """[D] query vector of item indices, oldest first."""
        u_LD = self.norm(torch.cat([self.start[None], self.items[history]]), "in")
        for block in range(self.blocks):

            def linear(name: str, x: torch.Tensor, block: int = block) -> torch.Tensor:
                return F.linear(
                    x, self.get_buffer(f"{block}_{name}"), self.get_buffer(f"{block}_{name}_bias")
                )

            u_LD = self.norm(u_LD + self.recurrence(u_LD, block), f"{block}_norm1")
            hidden_LD = F.silu(linear("gate", u_LD)) * linear("up", u_LD)
            u_LD = self.norm(u_LD + linear("down", hidden_LD), f"{block}_norm2")
        return u_LD[-1]


class Body(BaseModel):
    """A request: with candidates they are ranked, without them the catalogue."""

    user_id: int | str
    candidates: list[int | str] | None = None
    k: int = 10


class Line(BaseModel):
    """One ranked item."""

    item_id: int | str
    score: float
    title: str | None


class Answer(BaseModel):
    """A ranked list, best first."""

    items: list[Line]


class Ranker:
    """Everything in memory: users' histories, items, the network, perhaps a booster."""

    def __init__(self, folder: Path, trees: int):
        torch.set_num_threads(1)
        bundle = Bundle.open(folder)
        self.encoder = Encoder(bundle).eval()
        self.item_ids = bundle.items[schema.ITEM].to_list()
        self.titles = bundle.items[schema.TITLE].to_list()
        self.categories = bundle.items[schema.CATEGORY].to_list()
        self.index_of = {item_id: index for index, item_id in enumerate(self.item_ids)}
        users = bundle.users[schema.USER].to_list()
        self.histories = {user: bundle.histories[row].tolist() for row, user in enumerate(users)}
        self.popularity = bundle.item_counts_I.tolist()
        scales, self.repeat = bundle.form.arrays["scales"], bundle.form.arrays.get("repeat")
        if self.repeat is not None:
            raise SystemExit("the reference has no repeat bias")
        self.scale = float(scales[-1])
        self.booster = booster(trees) if trees else None

    @torch.inference_mode()
    def __call__(self, body: Body) -> Answer:
        history = self.histories.get(body.user_id, [])
        query_D = self.encoder(torch.tensor(history, dtype=torch.long))
        vectors, bias = self.encoder.items, self.encoder.bias
        if body.candidates is None:
            scores_I = self.scale * (vectors @ query_D) + bias
            scores_I[history] = -torch.inf
            scores, indices = (found.tolist() for found in torch.topk(scores_I, body.k))
        else:
            indices = [self.index_of[item_id] for item_id in body.candidates]
            rows = torch.tensor(indices)
            scores = (self.scale * (vectors[rows] @ query_D) + bias[rows]).tolist()
        if self.booster is not None:
            scores = self.booster.predict(self.features(history, indices, scores), num_threads=1).tolist()
        order = sorted(range(len(indices)), key=lambda place: -scores[place])
        lines = [
            Line(
                item_id=self.item_ids[indices[place]],
                score=scores[place],
                title=self.titles[indices[place]],
            )
            for place in order
        ]
        return Answer(items=lines)

    def features(self, history: list[int], indices: list[int], scores: list[float]) -> np.ndarray:
        """[C, FEATURES]"""
        seen = set(history)
        liked = [set(self.categories[item] or ()) for item in history[-20:]]
        rows = []
        for place, (index, score) in enumerate(zip(indices, scores, strict=True)):
            own = set(self.categories[index] or ())
            shared = sum(bool(own & names) for names in liked) / max(len(liked), 1)
            count = self.popularity[index]
            rows.append(
                [score, place, count, math.log1p(count), shared, len(history), index in seen, len(own)]
            )
        return np.array(rows, dtype=np.float64)


def booster(trees: int) -> lightgbm.Booster:
    """So many trees of 16 leaves over random features: what a prediction costs does not depend on what was learnt."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((5_000, FEATURES))
    data = lightgbm.Dataset(rows, rows.sum(axis=1) + rng.standard_normal(5_000))
    settings = {"objective": "regression", "num_leaves": 16, "verbosity": -1, "num_threads": 1, "seed": 0}
    return lightgbm.train(settings, data, num_boost_round=trees)


def serve(ranker: Ranker) -> None:
    app = FastAPI()

    @app.get("/health")
    def health() -> str:
        return "ok"

    @app.post("/v1/rank")
    def rank(body: Body) -> Answer:
        return ranker(body)

    @app.post("/v1/recommend")
    def recommend(body: Body) -> Answer:
        return ranker(body)

    uvicorn.run(app, host="127.0.0.1", port=free_port(), log_level="warning")


def free_port() -> int:
    """A port that nobody listens on, announced as `recsys serve` announces its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    print(f"reference on http://127.0.0.1:{port}", flush=True)
    return port


def options(description: str | None) -> argparse.Namespace:
    """bundle and trees, as every reference takes them."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--trees", type=int, default=0, help="of the booster; 0 = no booster")
    return parser.parse_args()


if __name__ == "__main__":
    asked = options(__doc__)
    serve(Ranker(asked.bundle, asked.trees))
