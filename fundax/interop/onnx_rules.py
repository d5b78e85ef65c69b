"""Rules for `interop.onnx`: how each primitive of a JAX program is written as ONNX nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fundax.types import UserError

OPSET = 18
SAME = ("stop_gradient", "copy", "optimization_barrier", "sharding_constraint")
ONE = {  # of one value: the same operator in ONNX
    "exp": "Exp", "log": "Log", "tanh": "Tanh", "erf": "Erf", "logistic": "Sigmoid", "sqrt": "Sqrt", "abs": "Abs",
    "neg": "Neg", "sign": "Sign", "floor": "Floor", "ceil": "Ceil", "not": "Not", "cos": "Cos", "sin": "Sin",
}  # fmt: skip
TWO = {
    "add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min", "pow": "Pow",
    "eq": "Equal", "lt": "Less", "gt": "Greater", "le": "LessOrEqual", "ge": "GreaterOrEqual", "and": "And",
    "or": "Or", "xor": "Xor",
}  # fmt: skip
REDUCED = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin", "reduce_prod": "ReduceProd"}
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Graph:
    """The nodes and constants of an ONNX graph that is being written. A value is the name of a tensor."""

    def __init__(self, onnx: Any, batch: Any, batched: str) -> None:
        """`batch`: the symbol that stands for the size of the batch, which is the first axis of the input `batched`."""
        self.onnx, self.batch, self.batched = onnx, batch, batched
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.count = 0

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """A node; returns the name of its first output."""
        self.count += 1
        names = [f"{operator}_{self.count}" + (f"_{i}" if i else "") for i in range(outputs)]
        self.nodes.append(self.onnx.helper.make_node(operator, list(inputs), names, **attributes))
        return names[0]

    def constant(self, value: Any, dtype: Any = None) -> str:
        """A constant, such as axes."""
        array = np.asarray(value, dtype)
        self.count += 1
        name = f"constant_{self.count}"
        self.constants[name] = array
        return name

    def axes(self, values: Sequence[int]) -> str:
        """A constant of whole numbers."""
        return self.constant([int(value) for value in values], np.int64)

    def shape(self, sizes: Sequence[Any]) -> str:
        """A shape in which the size of the batch, or a multiple of it, is read when the graph runs."""
        if all(isinstance(size, int | np.integer) for size in sizes):
            return self.axes([int(size) for size in sizes])
        rows = self.add("Gather", self.add("Shape", self.batched), self.axes([0]))
        parts = []
        for size in sizes:
            if isinstance(size, int | np.integer):
                parts.append(self.axes([int(size)]))
            else:
                parts.append(self.add("Mul", rows, self.axes([int(size // self.batch)])))
        return self.add("Concat", *parts, axis=0)

    def cast(self, value: str, dtype: Any) -> str:
        """The same numbers in another dtype."""
        return self.add("Cast", value, to=self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def transposed(self, value: str, order: Sequence[int]) -> str:
        """The same value with its axes in another order."""
        order = [int(axis) for axis in order]
        return value if order == sorted(order) else self.add("Transpose", value, perm=order)


# ---------------------------------------------------------------------------------------- rules: numbers


def _cast(graph: Graph, equation: Any, x: str) -> str:
    return graph.cast(x, equation.params["new_dtype"])


def _rsqrt(graph: Graph, equation: Any, x: str) -> str:
    return graph.add("Reciprocal", graph.add("Sqrt", x))


def _log1p(graph: Graph, equation: Any, x: str) -> str:
    return graph.add("Log", graph.add("Add", x, _like(graph, equation, 1)))


def _expm1(graph: Graph, equation: Any, x: str) -> str:
    return graph.add("Sub", graph.add("Exp", x), _like(graph, equation, 1))


def _square(graph: Graph, equation: Any, x: str) -> str:
    return graph.add("Mul", x, x)


def _integer_pow(graph: Graph, equation: Any, x: str) -> str:
    return graph.add("Pow", x, _like(graph, equation, equation.params["y"]))


def _like(graph: Graph, equation: Any, value: float) -> str:
    return graph.constant(value, equation.invars[0].aval.dtype)


def _finite(graph: Graph, equation: Any, x: str) -> str:
    return graph.add("Not", graph.add("Or", graph.add("IsNaN", x), graph.add("IsInf", x)))


def _unequal(graph: Graph, equation: Any, x: str, y: str) -> str:
    return graph.add("Not", graph.add("Equal", x, y))


def _remainder(graph: Graph, equation: Any, x: str, y: str) -> str:
    return graph.add("Mod", x, y, fmod=1)


def _clamp(graph: Graph, equation: Any, low: str, x: str, high: str) -> str:
    return graph.add("Min", graph.add("Max", x, low), high)


def _select(graph: Graph, equation: Any, which: str, *cases: str) -> str:
    if len(cases) != 2:
        raise UserError(f"ONNX: a selection among {len(cases)} values has no rule in {__name__}")
    which = graph.cast(which, np.bool_)
    if equation.outvars[0].aval.dtype != np.bool_:
        return graph.add("Where", which, cases[1], cases[0])
    chosen = [graph.add("And", which, cases[1]), graph.add("And", graph.add("Not", which), cases[0])]
    return graph.add("Or", *chosen)  # onnxruntime's Where takes numbers alone


def _argmax(graph: Graph, equation: Any, x: str) -> str:
    kind, (axis,) = equation.invars[0].aval.dtype, equation.params["axes"]
    x = graph.cast(x, np.int32) if kind == np.bool_ else x
    operator = "ArgMax" if equation.primitive.name == "argmax" else "ArgMin"
    return graph.cast(graph.add(operator, x, axis=int(axis), keepdims=0), equation.params["index_dtype"])


def _any_or_all(graph: Graph, equation: Any, x: str) -> str:
    operator = "ReduceMax" if equation.primitive.name == "reduce_or" else "ReduceMin"
    axes = graph.axes([int(axis) for axis in equation.params["axes"]])
    return graph.cast(graph.add(operator, graph.cast(x, np.int32), axes, keepdims=0), np.bool_)


def _cumsum(graph: Graph, equation: Any, x: str) -> str:
    axis = graph.constant(equation.params["axis"], np.int64)
    return graph.add("CumSum", x, axis, reverse=int(equation.params["reverse"]))


def _product(graph: Graph, equation: Any, x: str, y: str) -> str:
    (left, right), (left_batch, right_batch) = equation.params["dimension_numbers"]
    kind = np.dtype(equation.outvars[0].aval.dtype)
    a, b = (one.aval for one in equation.invars)
    x, y = (v if one.dtype == kind else graph.cast(v, kind) for v, one in ((x, a), (y, b)))
    if (tuple(left), tuple(right)) == ((a.ndim - 1,), (0,)) and not left_batch and b.ndim == 2:
        return graph.add("MatMul", x, y)
    names = iter(_LETTERS)
    first = [next(names) for _ in range(a.ndim)]
    second = [next(names) for _ in range(b.ndim)]
    for i, j in zip((*left, *left_batch), (*right, *right_batch), strict=True):
        second[j] = first[i]
    free = [first[i] for i in range(a.ndim) if i not in (*left, *left_batch)]
    free += [second[j] for j in range(b.ndim) if j not in (*right, *right_batch)]
    result = [*(first[i] for i in left_batch), *free]
    return graph.add("Einsum", x, y, equation=f"{''.join(first)},{''.join(second)}->{''.join(result)}")


# ---------------------------------------------------------------------------------------- rules: shapes


def _reshape(graph: Graph, equation: Any, x: str) -> str:
    sizes = equation.params["new_sizes"]
    open_ = [not isinstance(size, int | np.integer) for size in sizes]
    if sum(open_) == 1 and 0 not in sizes:
        return graph.add("Reshape", x, graph.axes([-1 if o else int(s) for o, s in zip(open_, sizes, strict=True)]))
    return graph.add("Reshape", x, graph.shape(sizes))


def _broadcast(graph: Graph, equation: Any, x: str) -> str:
    before, sizes = equation.invars[0].aval.shape, equation.params["shape"]
    kept = [int(axis) for axis in equation.params["broadcast_dimensions"]]
    new = [axis for axis in range(len(sizes)) if axis not in kept]
    x = graph.add("Unsqueeze", x, graph.axes(new)) if new else x
    full = dict(zip(kept, before, strict=True))
    if all(full.get(axis, 1) == size for axis, size in enumerate(sizes)):
        return x
    return graph.add("Expand", x, graph.shape(sizes))


def _transpose(graph: Graph, equation: Any, x: str) -> str:
    return graph.transposed(x, equation.params["permutation"])


def _squeeze(graph: Graph, equation: Any, x: str) -> str:
    return graph.add("Squeeze", x, graph.axes([int(axis) for axis in equation.params["dimensions"]]))


def _expand(graph: Graph, equation: Any, x: str) -> str:
    return graph.add("Unsqueeze", x, graph.axes([int(axis) for axis in equation.params["dimensions"]]))


def _slice(graph: Graph, equation: Any, x: str) -> str:
    params, sizes = equation.params, equation.invars[0].aval.shape
    strides = params["strides"] or (1,) * len(sizes)
    parts = zip(params["start_indices"], params["limit_indices"], strides, sizes, strict=True)
    cut = [(axis, *part[:3]) for axis, part in enumerate(parts) if (part[0], part[2]) != (0, 1) or part[1] != part[3]]
    if not cut:
        return x
    axes, starts, ends, steps = ([int(value) for value in column] for column in zip(*cut, strict=True))
    return graph.add("Slice", x, graph.axes(starts), graph.axes(ends), graph.axes(axes), graph.axes(steps))


def _concatenate(graph: Graph, equation: Any, *parts: str) -> str:
    return graph.add("Concat", *parts, axis=int(equation.params["dimension"]))


def _pad(graph: Graph, equation: Any, x: str, value: str) -> str:
    config = equation.params["padding_config"]
    if any(inner for _, _, inner in config):
        raise UserError(f"ONNX: padding between elements has no rule in {__name__}")
    ends = [low for low, _, _ in config] + [high for _, high, _ in config]
    return graph.add("Pad", x, graph.axes(ends), value)


def _reverse(graph: Graph, equation: Any, x: str) -> str:
    axes = [int(axis) for axis in equation.params["dimensions"]]
    least = [np.iinfo(np.int64).min] * len(axes)
    ones = [-1] * len(axes)
    return graph.add("Slice", x, graph.axes(ones), graph.axes(least), graph.axes(axes), graph.axes(ones))


def _iota(graph: Graph, equation: Any) -> str:
    params = equation.params
    sizes, axis, kind = params["shape"], params["dimension"], params["dtype"]
    shape = [1] * len(sizes)
    shape[axis] = -1
    if isinstance(sizes[axis], int | np.integer):
        row = graph.constant(np.arange(int(sizes[axis])).astype(kind).reshape(shape))
    else:
        zero, one = graph.constant(0, np.int64), graph.constant(1, np.int64)
        end = graph.add("Squeeze", graph.shape([sizes[axis]]), graph.axes([0]))
        row = graph.add("Reshape", graph.cast(graph.add("Range", zero, end, one), kind), graph.axes(shape))
    return row if len(sizes) == 1 else graph.add("Expand", row, graph.shape(sizes))


def _stack(graph: Graph, equation: Any, *parts: str) -> str:
    axis = graph.axes([int(equation.params["axis"])])
    return graph.add("Concat", *(graph.add("Unsqueeze", one, axis) for one in parts), axis=int(equation.params["axis"]))


def _gather(graph: Graph, equation: Any, x: str, at: str) -> str:
    """GatherND over the axes that the indices name. Of other axes, the first slice_sizes elements are read."""
    numbers, taken = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    operand, where = (one.aval for one in equation.invars)
    batch, named = (list(map(int, axes)) for axes in (numbers.operand_batching_dims, numbers.start_index_map))
    rest = [axis for axis in range(operand.ndim) if axis not in (*batch, *named)]
    if any(taken[axis] != 1 for axis in named):
        raise UserError(f"ONNX: a slice from a computed place has no rule in {__name__}")
    for axis in rest:
        if taken[axis] != operand.shape[axis]:
            x = graph.add("Slice", x, graph.axes([0]), graph.axes([int(taken[axis])]), graph.axes([axis]))
    if "CLIP" in str(equation.params["mode"]):
        last = [operand.shape[axis] - 1 for axis in named]
        at = graph.add("Min", graph.add("Max", at, graph.constant(0, where.dtype)), graph.constant(last, where.dtype))
    first = list(map(int, numbers.start_indices_batching_dims))
    order = [*first, *(axis for axis in range(where.ndim) if axis not in first)]
    x = graph.transposed(x, [*batch, *named, *rest])
    found = graph.add("GatherND", x, graph.cast(graph.transposed(at, order), np.int64), batch_dims=len(batch))
    labels = [("index", axis) for axis in order[:-1]] + [("value", axis) for axis in rest]
    gone = (*batch, *map(int, numbers.collapsed_slice_dims))
    flat = [axis for axis in named if axis not in gone]  # read one by one, and kept as an axis of one element
    if flat:
        found = graph.add("Unsqueeze", found, graph.axes(range(len(labels), len(labels) + len(flat))))
        labels += [("value", axis) for axis in flat]
    values = iter([axis for axis in range(operand.ndim) if axis not in gone])
    indices = iter(range(where.ndim - 1))
    offset = set(map(int, numbers.offset_dims))
    wanted = [("value", next(values)) if i in offset else ("index", next(indices)) for i in range(len(labels))]
    return graph.transposed(found, [labels.index(one) for one in wanted])


def _convolution(graph: Graph, equation: Any, x: str, kernel: str) -> str:
    params, numbers = equation.params, equation.params["dimension_numbers"]
    x = graph.transposed(x, numbers.lhs_spec)
    pads = [[int(pad[side]) for pad in params["padding"]] for side in (0, 1)]
    strides, apart = (list(map(int, params[name])) for name in ("window_strides", "rhs_dilation"))
    groups = int(params["feature_group_count"])
    if any(step != 1 for step in params["lhs_dilation"]):
        y = _transposed_convolution(graph, equation, x, kernel, pads, apart)
    elif params["batch_group_count"] != 1:
        raise UserError(f"ONNX: a convolution of groups of the batch has no rule in {__name__}")
    else:
        kernel = graph.transposed(kernel, numbers.rhs_spec)
        fields = {"pads": [*pads[0], *pads[1]], "strides": strides, "dilations": apart, "group": groups}
        y = graph.add("Conv", x, kernel, **fields)
    return graph.transposed(y, np.argsort(numbers.out_spec).tolist())


def _transposed_convolution(graph: Graph, equation: Any, x: str, kernel: str, pads: Any, apart: list[int]) -> str:
    """A convolution of an image with zeros between its pixels, which is a ConvTranspose with the kernel turned round."""
    params = equation.params
    spec = params["dimension_numbers"].rhs_spec
    sizes = [int(equation.invars[1].aval.shape[axis]) for axis in spec[2:]]
    reach = [(size - 1) * step for size, step in zip(sizes, apart, strict=True)]
    cut = [[a - pad for a, pad in zip(reach, side, strict=True)] for side in pads]
    if params["feature_group_count"] != 1 or set(params["window_strides"]) != {1} or min(cut[0]) < 0:
        raise UserError(f"ONNX: this kind of transposed convolution has no rule in {__name__}")
    kernel = graph.transposed(kernel, [spec[1], spec[0], *spec[2:]])
    axes = list(range(2, 2 + len(sizes)))
    back, least = [-1] * len(axes), [np.iinfo(np.int64).min] * len(axes)
    kernel = graph.add("Slice", kernel, graph.axes(back), graph.axes(least), graph.axes(axes), graph.axes(back))
    ends, more = [max(one, 0) for one in cut[1]], [max(-one, 0) for one in cut[1]]
    strides = list(map(int, params["lhs_dilation"]))
    fields = {"pads": [*cut[0], *ends], "output_padding": more, "strides": strides, "dilations": apart}
    return graph.add("ConvTranspose", x, kernel, **fields)


def _max_pool(graph: Graph, equation: Any, x: str) -> str:
    params = equation.params
    columns = ("window_dimensions", "window_strides", "padding", "window_dilation")
    rows = list(zip(*(params[name] for name in columns), strict=True))
    moved = [axis for axis, row in enumerate(rows) if (row[0], row[1], tuple(row[2])) != (1, 1, (0, 0))]
    if set(params["base_dilation"]) != {1} or not moved:
        raise UserError(f"ONNX: this kind of pooling has no rule in {__name__}")
    before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    order = [axis for axis in range(len(rows)) if axis not in moved] + moved
    x = graph.add("Reshape", graph.transposed(x, order), graph.axes([-1, 1, *(before[axis] for axis in moved)]))
    pads = [int(rows[axis][2][side]) for side in (0, 1) for axis in moved]
    window, strides, apart = ([int(rows[axis][i]) for axis in moved] for i in (0, 1, 3))
    y = graph.add("MaxPool", x, kernel_shape=window, strides=strides, pads=pads, dilations=apart)
    y = graph.add("Reshape", y, graph.shape([after[axis] for axis in order]))
    return graph.transposed(y, np.argsort(order).tolist())


def _erfc(graph: Graph, equation: Any, x: str) -> str:
    return graph.add("Sub", _like(graph, equation, 1), graph.add("Erf", x))


RULES: dict[str, Callable[..., str]] = {
    "convert_element_type": _cast, "rsqrt": _rsqrt, "log1p": _log1p, "expm1": _expm1, "square": _square,
    "integer_pow": _integer_pow, "is_finite": _finite, "ne": _unequal, "rem": _remainder, "clamp": _clamp,
    "select_n": _select, "argmax": _argmax, "argmin": _argmax, "reduce_or": _any_or_all, "reduce_and": _any_or_all,
    "cumsum": _cumsum, "dot_general": _product, "reshape": _reshape, "broadcast_in_dim": _broadcast,
    "transpose": _transpose, "squeeze": _squeeze, "expand_dims": _expand, "slice": _slice, "pad": _pad,
    "concatenate": _concatenate, "stack": _stack, "rev": _reverse, "iota": _iota, "gather": _gather, "erfc": _erfc,
    "conv_general_dilated": _convolution, "reduce_window_max": _max_pool,
}  # fmt: skip
