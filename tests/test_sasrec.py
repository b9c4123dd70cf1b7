"""SASRec as published: positions from a row's end and a plain feed-forward, against the equations over padded rows."""

import math

import numpy as np
import pytest
import torch
from contracts.worlds import world
from test_mixers import by_row, packed_of, planted

from recsys.config import parse
from recsys.errors import ModelError
from recsys.models.bert4rec import BERT4Rec
from recsys.models.fmrlrec import FMRLRec
from recsys.models.layers import PlainFFN
from recsys.models.mixers.attention import EndPositions
from recsys.models.packing import pack
from recsys.models.sasrec import SASRec
from recsys.models.sequence_module import training_batch
from recsys.models.trunk import Trunk, TrunkConfig
from recsys.schema import Queries, Ragged
from recsys.serving.forms import open_form
from recsys.serving.network import Network

WIDTH, WINDOW = 8, 9
PUBLISHED = {
    "widths": [WIDTH], "window": WINDOW, "heads": 2, "norm": "post", "positions": "input", "ffn": "gelu",
    "ffn_multiple": 4, "dropout": 0.5, "loss": "bce", "negatives": 1,
}  # fmt: skip
LENGTHS = (5, 0, 1, WINDOW - 1, 3, 40, 5)


def shaken(model_class=SASRec, **settings):
    """A model whose every weight is away from its initial value."""
    model = model_class(parse(model_class.Config, PUBLISHED | settings, where="x"))
    torch.manual_seed(1)
    model.setup(world("hidden").context())
    with torch.no_grad():
        for weight in model.module.parameters():
            weight += 0.3 * torch.randn_like(weight)
    model.module.eval()
    return model


def histories() -> list[list[int]]:
    rng = np.random.default_rng(2)
    return [rng.integers(48, size=length).tolist() for length in LENGTHS]


# ---- the equations, over rows padded on the left


def norm(x: torch.Tensor, layer) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + layer.eps) * layer.weight + layer.bias


def published(trunk: Trunk, rows: list[torch.Tensor], heads: int = 2) -> list[torch.Tensor]:
    """What S3-Rec's encoder makes of each row's tokens [L, D]: padded on the left to the window, position c added in
    column c, padding hidden from everybody, a causal mask; every block LayerNorm(x + sublayer(x)) twice."""
    columns = WINDOW
    x = torch.zeros(len(rows), columns, WIDTH, dtype=rows[0].dtype)
    real = torch.zeros(len(rows), columns, dtype=torch.bool)
    for number, row in enumerate(rows):
        x[number, columns - len(row) :] = row
        real[number, columns - len(row) :] = True
    position = trunk.positions.vectors.flip(0)  # by column: the last is the newest token's
    x = norm(x + position, trunk.in_norm)
    seen = real[:, None, :] & torch.ones(columns, columns, dtype=torch.bool).tril()
    bias = torch.where(seen, 0.0, -1e9).to(x.dtype)
    size = WIDTH // heads
    for block in trunk.blocks:
        q, k, v = (x @ block.mixer.qkv.weight.T + block.mixer.qkv.bias).split(WIDTH, dim=-1)
        mixed = []
        for part in (slice(head * size, (head + 1) * size) for head in range(heads)):
            logits = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size) + bias
            mixed.append(torch.softmax(logits, -1) @ v[..., part])
        out = torch.cat(mixed, -1) @ block.mixer.out.weight.T + block.mixer.out.bias
        x = norm(x + out, block.norm1)
        hidden = x @ block.ffn.up.weight.T + block.ffn.up.bias
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x = norm(x + hidden @ block.ffn.down.weight.T + block.ffn.down.bias, block.norm2)
    return [x[number, columns - len(row) :] for number, row in enumerate(rows)]


def test_every_token_of_a_training_row_follows_the_padded_equations():
    """Values and gradients, inner tokens too: each is trained at its distance to the row's end."""
    module = shaken().module.double()
    trunk = module.trunk
    rows = Ragged.of([row[-WINDOW:] for row in histories() if row])
    batch, packed = training_batch(rows), pack(rows)
    counts = batch["counts_T"].tolist()
    items_ID = module.items()
    u_PD = trunk(items_ID, batch["tokens_P"], counts)
    offsets = np.cumsum(counts) - counts
    tokens = [torch.stack([trunk.start, *items_ID[rows[row][:-1]]]) for row in range(len(rows))]
    expected = published(trunk, tokens)
    slow_PD = torch.empty_like(u_PD)
    for place, row in enumerate(packed.order_B):
        slow_PD[offsets[: rows.lengths[row]] + place] = expected[row]
    torch.testing.assert_close(u_PD, slow_PD, rtol=1e-9, atol=1e-9)
    # items_ID is in both graphs
    leaves = [module.items.ids.weight, *trunk.parameters()]
    quick, slow = (torch.autograd.grad(out.sin().sum(), leaves, retain_graph=True) for out in (u_PD, slow_PD))
    for a, b in zip(quick, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
    assert trunk.positions.vectors.shape == (WINDOW, WIDTH)


def test_scoring_reads_the_newest_items_at_the_same_places():
    model = shaken()
    trunk, asked = model.module.trunk, histories()
    with torch.no_grad():
        items_ID = model.module.items()
        tokens = [torch.stack([trunk.start, *items_ID[row[-(WINDOW - 1) :]]]) for row in asked]
        expected = torch.stack([row[-1] for row in published(trunk, tokens)])
    found = model.query_vectors(Queries.of(asked))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5)


# ---- its parts


def test_the_newest_token_has_the_same_position_in_a_row_of_any_length():
    torch.manual_seed(0)
    positions = EndPositions(WIDTH, window=60).double()
    rows = [torch.zeros_like(row) for row in planted()]
    for row, out in zip(rows, by_row(positions, rows), strict=True):
        torch.testing.assert_close(out, positions.vectors[: len(row)].flip(0))
    assert positions(torch.zeros(0, WIDTH), []).shape == (0, WIDTH)


def test_positions_are_added_once_and_to_the_input_alone():
    config = TrunkConfig(trunk="attention", widths=(WIDTH,), positions="input")
    names = [name for name, _ in Trunk(config).named_parameters() if "position" in name]
    assert names == ["positions.vectors"]
    names = [
        name
        for name, _ in Trunk(config.model_copy(update={"positions": "mixer"})).named_parameters()
        if "position" in name
    ]
    assert names == ["blocks.0.mixer.position", "blocks.1.mixer.position"]


def test_a_row_past_the_window_is_refused():
    tokens, counts, _ = packed_of(planted((4, 2), dtype=torch.float32))
    with pytest.raises(ModelError, match=r"4 tokens.*window = 3"):
        EndPositions(WIDTH, window=3)(tokens, counts)


def test_relu_between_two_layers():
    torch.manual_seed(0)
    ffn, x = PlainFFN((WIDTH,), 3, 0.0, "relu"), torch.randn(5, WIDTH)
    hidden = (x @ ffn.up.weight.T + ffn.up.bias).clamp_min(0)
    torch.testing.assert_close(ffn(x), hidden @ ffn.down.weight.T + ffn.down.bias)
    assert hidden.shape == (5, 3 * WIDTH)


def test_dropout_between_the_layers_is_the_older_forms():
    """SASRec's own drops there, S3-Rec's does not."""
    x = torch.ones(5, WIDTH)
    relu, gelu = (PlainFFN((WIDTH,), 4, 0.5, name) for name in ("relu", "gelu"))
    assert not torch.equal(relu(x), relu(x)) and torch.equal(gelu(x), gelu(x))
    assert torch.equal(relu.eval()(x), relu(x))


# ---- served


@pytest.mark.parametrize(
    ("model_class", "settings"),
    [
        (SASRec, {}),
        (SASRec, {"norm": "pre", "ffn": "relu", "repeat_bias": True}),
        (SASRec, {"input_norm": False, "ffn": "gated"}),
        (SASRec, {"positions": "mixer"}),
        (SASRec, {"trunk": "gru", "positions": "mixer", "ffn": "relu"}),
        (BERT4Rec, {}),
        (BERT4Rec, {"norm": "pre", "ffn": "relu", "ffn_multiple": 1}),
        (BERT4Rec, {"positions": "mixer"}),
    ],
)
def test_served_without_torch(model_class, settings):
    model, queries = shaken(model_class, **settings), Queries.of(histories())
    program = open_form(model.serving_form())
    expected = model.score(queries)
    assert expected.std() > 0.1
    np.testing.assert_allclose(program.score(queries), expected, rtol=1e-5, atol=1e-5)
    for row in range(len(queries)):
        alone = program.score(queries.take(slice(row, row + 1)))
        np.testing.assert_allclose(alone[0], expected[row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ffn", ["gelu", "relu"])
def test_a_plain_feed_forward_is_nested(ffn):
    """The network cut to a width gives the first values of the full one."""
    model = shaken(
        FMRLRec, trunk="lru", widths=[2, 4, WIDTH], heads=1, positions="mixer", ffn=ffn, loss="full"
    )
    program, queries = open_form(model.serving_form()), Queries.of(histories())
    for width in (2, 4, WIDTH):
        own = open_form(program.cut(width)).query_vectors(queries)
        np.testing.assert_allclose(own, model.query_vectors(queries, width), rtol=1e-5, atol=1e-5)


def test_positions_from_the_end_leave_no_state():
    program = open_form(shaken().serving_form())
    assert not program.steps
    with pytest.raises(ModelError, match=r"positions = input.*encode the whole history"):
        program.network.initial(1)


# ---- what was trained before


def test_a_form_from_before_these_settings_opens():
    """Names of arrays and meta are those that stored forms have; no name is asked for beyond them."""
    shapes = {
        "start": (2,), "in.weight": (2,), "in.bias": (2,),
        "0.mix.position": (5, 2), "0.mix.qkv": (3, 1, 2, 2), "0.mix.qkv_bias": (3, 1, 2),
        "0.mix.out": (2, 2), "0.mix.out_bias": (2,),
        "0.norm1.weight": (2,), "0.norm1.bias": (2,), "0.norm2.weight": (2,), "0.norm2.bias": (2,),
        "0.gate": (2, 2), "0.gate_bias": (2,), "0.up": (2, 2), "0.up_bias": (2,),
        "0.down": (2, 2), "0.down_bias": (2,), "scales": (1,),
    }  # fmt: skip
    model = shaken(
        widths=[2], window=5, heads=1, blocks=1, norm="pre", positions="mixer", ffn="gated", ffn_multiple=1
    )
    form = model.serving_form()
    assert {name: array.shape for name, array in form.arrays.items()} == shapes
    assert set(form.meta) == {"blocks", "ffn_multiple", "norm", "eps", "window"}
    network, item = Network(form, 2), 7
    stepped = network.step(network.initial(1), np.array([item])).vectors_BD
    np.testing.assert_allclose(stepped, model.query_vectors(Queries.of([[item]])), rtol=1e-5, atol=1e-5)
