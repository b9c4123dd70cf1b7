"""A nested linear-recurrent network as ONNX graphs: one event, and whole histories. Built node by node, without torch.

ONNX has no complex arithmetic: a state is two tensors, re and im. The module `onnx` is handed in by the caller, so that
serving itself rests on the base install.
"""

from types import ModuleType
from typing import Any

import numpy as np

from recsys.errors import ModelError
from recsys.schema import Form

OPSET, IR_VERSION = 17, 8
"""The oldest operator set with LayerNormalization, so that older runtimes open the graphs too."""
MIXER = "mix."
"""Prefix of the mixer's arrays within a block of the form."""
_LIMIT = 2**31 - 2**20
"""Bytes of weights; a protobuf message ends at 2 GiB."""


class _Graph:
    """Nodes in the making. Weights become initialisers of the outermost graph, which inner graphs may name."""

    def __init__(self, onnx: ModuleType, form: Form):
        self.onnx, self.form = onnx, form
        self.width = form.widths[-1]
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self._count = 0

    def node(
        self, kind: str, *inputs: str, outputs: int = 1, to: list[str] | None = None, **attributes: Any
    ) -> Any:
        """Append a node; the name of its output, or the list of them."""
        if to is None:
            self._count += 1
            to = [f"{kind}_{self._count}_{place}" for place in range(outputs)]
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), to, **attributes))
        return to[0] if len(to) == 1 else to

    def constant(self, name: str, value: np.ndarray) -> str:
        if name not in self.constants:
            self.constants[name] = self.onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def array(self, name: str) -> str:
        """An array of the form."""
        return self.constant(name, self.form.arrays[name])

    def integers(self, *values: int) -> str:
        return self.constant("integers_" + "_".join(map(str, values)), np.array(values, np.int64))

    def value(self, name: str, kind: str, shape: list[str | int]) -> Any:
        """The declaration of an input or output; kind: FLOAT, INT64 or BOOL."""
        return self.onnx.helper.make_tensor_value_info(name, getattr(self.onnx.TensorProto, kind), shape)

    def model(self, name: str, inputs: list[Any], outputs: list[Any]) -> Any:
        """The finished, checked model."""
        helper = self.onnx.helper
        graph = helper.make_graph(self.nodes, name, inputs, outputs, list(self.constants.values()))
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="recsys",
        )
        self.onnx.checker.check_model(model)
        return model


def step_model(onnx: ModuleType, form: Form) -> Any:
    """One event: item [B] int64 and re_0, im_0, re_1, ... [B, D] to vector [B, D] and next_re_0, next_im_0, ...

    Item -1 is the start of a history: with states of zeros it gives the states and the vector of an empty one.
    Raises ModelError for a form that is not an lru network, or is too large for the format.
    """
    graph = _opened(onnx, form)
    names = _states(form)
    after, vector = _advance(graph, "item", names)
    for source, name in zip([*after, vector], [*(f"next_{name}" for name in names), "vector"], strict=True):
        graph.node("Identity", source, to=[name])
    rows = ["batch", graph.width]
    inputs = [
        graph.value("item", "INT64", ["batch"]),
        *(graph.value(name, "FLOAT", rows) for name in names),
    ]
    outputs = [graph.value(name, "FLOAT", rows) for name in ("vector", *(f"next_{name}" for name in names))]
    return graph.model("step", inputs, outputs)


def encode_model(onnx: ModuleType, form: Form) -> Any:
    """Whole histories: items [B, L] int64, right-padded with -1, and lengths [B] int64 to vector [B, D].

    Raises ModelError as `step_model`.
    """
    graph = _opened(onnx, form)
    names = _states(form)
    zeros = onnx.helper.make_tensor("zero", onnx.TensorProto.FLOAT, [1], [0.0])
    minus_one = onnx.helper.make_tensor("start", onnx.TensorProto.INT64, [1], [-1])
    batch = graph.node("Shape", "lengths")
    # every row begins with the start of a history, so that an empty one takes a step too
    column = graph.node("Concat", batch, graph.integers(1), axis=0)
    starts = graph.node("ConstantOfShape", column, value=minus_one)
    tokens = graph.node("Concat", starts, "items", axis=1)
    last = graph.node("Shape", tokens, start=1, end=2)
    one, zero = (graph.constant(f"scalar_{value}", np.array(value, np.int64)) for value in (1, 0))
    steps = graph.node("Range", zero, graph.node("Squeeze", last), one)
    lengths = graph.node("Unsqueeze", "lengths", graph.integers(1))
    present = graph.node("LessOrEqual", graph.node("Unsqueeze", steps, graph.integers(0)), lengths)
    shape = graph.node("Concat", batch, graph.integers(graph.width), axis=0)
    nothing = graph.node("ConstantOfShape", shape, value=zeros)
    body = _scan_body(graph, names)
    finals = [f"final_{name}" for name in names]
    carried = [nothing] * (len(names) + 1)
    graph.node(
        "Scan", *carried, tokens, present, to=[*finals, "vector"],
        body=body, num_scan_inputs=2, scan_input_axes=[1, 1],
    )  # fmt: skip
    inputs = [graph.value("items", "INT64", ["batch", "length"]), graph.value("lengths", "INT64", ["batch"])]
    return graph.model("encode", inputs, [graph.value("vector", "FLOAT", ["batch", graph.width])])


def _opened(onnx: ModuleType, form: Form) -> _Graph:
    if form.program != "lru":
        raise ModelError(f"no ONNX graph of a {form.program!r} program", expected="lru")
    size = form.item_vectors_ID.nbytes + sum(array.nbytes for array in form.arrays.values())
    if size > _LIMIT:
        raise ModelError(
            f"{size / 2**30:.1f} GiB of weights", expected="less than 2 GiB in ONNX", fix="a narrower width"
        )
    return _Graph(onnx, form)


def _states(form: Form) -> list[str]:
    return [f"{part}_{number}" for number in range(int(form.meta["blocks"])) for part in ("re", "im")]


def _scan_body(graph: _Graph, names: list[str]) -> Any:
    """A step in which a row past its length stays as it was."""
    outer, graph.nodes = graph.nodes, []
    rows = ["batch", graph.width]
    before = [*(f"in_{name}" for name in names), "in_vector"]
    after, vector = _advance(graph, "token", before[:-1])
    present = graph.node("Unsqueeze", "present", graph.integers(1))
    for old, new in zip(before, [*after, vector], strict=True):
        graph.node("Where", present, new, old, to=[f"out_{old}"])
    inputs = [
        *(graph.value(name, "FLOAT", rows) for name in before),
        graph.value("token", "INT64", ["batch"]),
        graph.value("present", "BOOL", ["batch"]),
    ]
    outputs = [graph.value(f"out_{name}", "FLOAT", rows) for name in before]
    body = graph.onnx.helper.make_graph(graph.nodes, "event", inputs, outputs)
    graph.nodes = outer
    return body


def _advance(graph: _Graph, token: str, before: list[str]) -> tuple[list[str], str]:
    """`Network.step` as nodes: (states, vectors) after one more item per row; -1 is the start vector."""
    form = graph.form
    pre = form.meta.get("norm", "post") == "pre"
    own = graph.node("Gather", graph.constant("items_ID", form.item_vectors_ID), token)  # -1 is a row as well
    first = graph.node("Unsqueeze", graph.node("Less", token, graph.integers(0)), graph.integers(1))
    u = graph.node("Where", first, graph.array("start"), own)
    if "in.weight" in form.arrays:
        u = _norm(graph, u, "in")
    after = []
    for number in range(int(form.meta["blocks"])):
        state = before[2 * number : 2 * number + 2]
        norm1, norm2 = f"{number}.norm1", f"{number}.norm2"
        y, state = _lru(graph, _norm(graph, u, norm1) if pre else u, state, f"{number}.{MIXER}")
        after += state
        u = graph.node("Add", u, y)
        u = u if pre else _norm(graph, u, norm1)
        u = graph.node("Add", u, _ffn(graph, _norm(graph, u, norm2) if pre else u, f"{number}."))
        u = u if pre else _norm(graph, u, norm2)
    return after, u


def _linear(graph: _Graph, x: str, weight: str, bias: str | None = None) -> str:
    """x W^T + b."""
    inputs = [x, graph.array(weight)] + ([] if bias is None else [graph.array(bias)])
    return graph.node("Gemm", *inputs, transB=1)


def _lru(graph: _Graph, u: str, state: list[str], prefix: str) -> tuple[str, list[str]]:
    """h <- lambda h + B u + b, y = Re(C h) + c, in real and imaginary parts."""
    re, im = state
    lambda_re, lambda_im = graph.array(f"{prefix}lambda_re"), graph.array(f"{prefix}lambda_im")
    kept_re = graph.node("Sub", graph.node("Mul", lambda_re, re), graph.node("Mul", lambda_im, im))
    kept_im = graph.node("Add", graph.node("Mul", lambda_re, im), graph.node("Mul", lambda_im, re))
    re = graph.node("Add", kept_re, _linear(graph, u, f"{prefix}B_re", f"{prefix}b_re"))
    im = graph.node("Add", kept_im, _linear(graph, u, f"{prefix}B_im", f"{prefix}b_im"))
    y_re = _linear(graph, re, f"{prefix}C_re", f"{prefix}c")
    return graph.node("Sub", y_re, _linear(graph, im, f"{prefix}C_im")), [re, im]


def _ffn(graph: _Graph, x: str, prefix: str) -> str:
    """W2 (SiLU(W_g x) * (W1 x)), or W2 f(W1 x) of a feed-forward without gate."""
    down = f"{prefix}down", f"{prefix}down_bias"
    if f"{prefix}relu" in graph.form.arrays:
        hidden = _linear(graph, x, f"{prefix}relu", f"{prefix}relu_bias")
        return _linear(graph, graph.node("Relu", hidden), *down)
    if f"{prefix}gelu" in graph.form.arrays:
        hidden = _linear(graph, x, f"{prefix}gelu", f"{prefix}gelu_bias")
        return _linear(graph, _gelu(graph, hidden), *down)
    gate = _linear(graph, x, f"{prefix}gate", f"{prefix}gate_bias")
    gate = graph.node("Mul", gate, graph.node("Sigmoid", gate))
    hidden = graph.node("Mul", gate, _linear(graph, x, f"{prefix}up", f"{prefix}up_bias"))
    return _linear(graph, hidden, *down)


def _gelu(graph: _Graph, x: str) -> str:
    """x (1 + erf(x / sqrt 2)) / 2: the operator set has no node of its own."""
    root, one, half = (
        graph.constant(f"gelu_{name}", np.array(value, np.float32))
        for name, value in {"root": 2**0.5, "one": 1.0, "half": 0.5}.items()
    )
    erf = graph.node("Erf", graph.node("Div", x, root))
    return graph.node("Mul", graph.node("Mul", x, half), graph.node("Add", erf, one))


def _norm(graph: _Graph, x: str, name: str) -> str:
    """An independent LayerNorm on each increment."""
    form, widths = graph.form, graph.form.widths
    sizes = np.diff(widths, prepend=0).tolist()
    parts = [x]
    if len(sizes) > 1:
        parts = graph.node("Split", x, graph.integers(*sizes), outputs=len(sizes), axis=1)
    normed = []
    for part, size, end in zip(parts, sizes, widths, strict=True):
        columns = slice(end - size, end)
        weight, bias = (
            graph.constant(f"{name}.{kind}_{end}", form.arrays[f"{name}.{kind}"][columns])
            for kind in ("weight", "bias")
        )
        normed.append(
            graph.node("LayerNormalization", part, weight, bias, axis=-1, epsilon=float(form.meta["eps"]))
        )
    return normed[0] if len(normed) == 1 else graph.node("Concat", *normed, axis=1)
