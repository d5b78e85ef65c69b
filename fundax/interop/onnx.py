"""ONNX: graphs that onnxruntime and other programs run without JAX, with their weights in a safetensors file.

`image.onnx` takes photographs u8 [B S S 3] at the size of the model and normalises them itself; an image-text model has
`text.onnx` as well. The batch may have any size. Both read their weights from `onnx.safetensors`, from which the folder is
read back like any other."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.extend import core

from fundax.interop import folder, stablehlo
from fundax.interop.checkpoint import Checkpoint, Format
from fundax.interop.onnx_rules import ONE, OPSET, REDUCED, RULES, SAME, TWO, Graph
from fundax.interop.weights import State, folder_of, write_safetensors
from fundax.params import flatten, unflatten
from fundax.runtime import serialize
from fundax.runtime.workdir import read_json
from fundax.types import UserError

NAME = "ONNX"
WEIGHTS = "onnx.safetensors"
IR = 10  # version of the file format, which onnxruntime 1.18 and later read
SEARCHED = ("report",)  # an output that beam search finds word by word, which is left out
PARTS = {"params": "weights", "extra": "statistics"}  # names in the file, unlike those of stablehlo
USAGE = """
import onnxruntime

program = onnxruntime.InferenceSession("FOLDER/image.onnx")
names = [one.name for one in program.get_outputs()]
out = dict(zip(names, program.run(None, {"image": pixels})))  # u8 [B S S 3]
"""


def detect(state: State) -> bool:
    """Whether these are the keys of onnx.safetensors."""
    return bool(state) and all(key.startswith(tuple(f"{part}/" for part in PARTS.values())) for key in state)


def write_folder(model: Checkpoint, out: str | Path, overwrite: bool = False) -> None:
    """Write the folder. Raises UserError for a folder that is not empty, for a computation without a rule, without onnx."""
    if importlib.util.find_spec("onnx") is None:
        raise UserError("exporting to onnx needs onnx: pip install -e '.[onnx]'")
    onnx, state = importlib.import_module("onnx"), _state(model)  # this file has the same name
    with folder.fresh_folder(out, overwrite) as temporary:
        write_safetensors(state, temporary / WEIGHTS)
        places = _places(temporary / WEIGHTS)
        for name, inputs in stablehlo.inputs_of(model.objective).items():
            graph = graph_of(onnx, _program(model.objective, name), state, inputs)
            for tensor in graph.initializer:
                if tensor.name in state:
                    tensor.data_location = onnx.TensorProto.EXTERNAL
                    for key, value in places[tensor.name].items():
                        tensor.external_data.add(key=key, value=value)
            opset = [onnx.helper.make_opsetid("", OPSET)]
            program = onnx.helper.make_model(graph, opset_imports=opset, ir_version=IR, producer_name="fundax")
            (temporary / f"{name}.onnx").write_bytes(program.SerializeToString())
        folder.write_record(temporary, state, model, {})
        folder.write_card(temporary, model, "onnx", USAGE, "image-feature-extraction")


def read_model(path: Path, state: State, modality: str = "") -> Checkpoint:
    """The model of a folder that `write_folder` wrote."""
    del modality
    record, tree = read_json(folder_of(path) / folder.RECORD), unflatten(state)
    objective = serialize.from_json(record["objective"])
    parts = {ours: tree.get(theirs, {}) for ours, theirs in PARTS.items()}
    return Checkpoint(objective, parts["params"], record["preprocessing"], extra=parts["extra"])


def difference(path: str | Path, model: Checkpoint) -> float | None:
    """The largest difference between onnxruntime and fundax, of each output relative to its largest value, if that is above 1."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    runtime = importlib.import_module("onnxruntime")
    found, rng, state = 0.0, np.random.default_rng(0), _state(model)
    for name, inputs in stablehlo.inputs_of(model.objective).items():
        highest = {np.dtype(np.uint8): 256, np.dtype(np.int32): 2}
        values = {
            key: rng.integers(0, highest[np.dtype(one.dtype)], (2, *one.shape[1:])).astype(one.dtype)
            for key, one in inputs.items()
        }
        session = runtime.InferenceSession(str(Path(path) / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        theirs = dict(zip([one.name for one in session.get_outputs()], session.run(None, values), strict=True))
        ours = jax.jit(_program(model.objective, name))(state, *values.values())
        for key, value in ours.items():
            gap = np.abs(theirs[key].astype(np.float64) - value).max() / max(1.0, float(np.abs(value).max()))
            found = max(found, float(gap))
    return found


def _state(model: Checkpoint) -> State:
    trees = {theirs: getattr(model, ours) for ours, theirs in PARTS.items() if getattr(model, ours)}
    return {path: np.asarray(leaf) for path, leaf in flatten(trees).items()}


def _program(objective: Any, name: str) -> Callable[..., dict[str, jax.Array]]:
    """StableHLO's program, for weights under the names of this format."""
    program = stablehlo.program_of(objective, name)
    names = {f"{theirs}/": f"{ours}/" for ours, theirs in PARTS.items()}

    def renamed(weights: Mapping[str, Any], *values: Any) -> dict[str, jax.Array]:
        out = program({_renamed(path, names): leaf for path, leaf in weights.items()}, *values)
        return {name: leaf for name, leaf in out.items() if name not in SEARCHED}

    return renamed


def _renamed(path: str, names: Mapping[str, str]) -> str:
    start = next(one for one in names if path.startswith(one))
    return names[start] + path.removeprefix(start)


def _places(path: Path) -> dict[str, dict[str, str]]:
    """Where each tensor lies in a safetensors file, which begins with the length of its header, as ONNX says it."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    found = {}
    for name, (begin, end) in ((k, one["data_offsets"]) for k, one in header.items() if k != "__metadata__"):
        found[name] = {"location": path.name, "offset": str(8 + length + begin), "length": str(end - begin)}
    return found


# --------------------------------------------------------------------------------------- tracing


def graph_of(
    onnx: Any, program: Callable[..., Mapping[str, Any]], weights: Mapping[str, Any], inputs: Mapping[str, Any]
) -> Any:
    """The GraphProto of program(weights, *inputs), which returns arrays by name.

    Args:
        onnx: the package.
        weights: arrays by name; they become initializers without data.
        inputs: shape and dtype of each input by name; the first axis of each is the symbol of the batch.
    Raises:
        UserError: the program uses a primitive without a rule.
    """
    specs = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in weights.items()}
    traced, shapes = jax.make_jaxpr(program, return_shape=True)(specs, *inputs.values())
    first = next(iter(inputs))
    graph = Graph(onnx, inputs[first].shape[0], first)
    constants = [graph.constant(np.asarray(value)) for value in traced.consts]
    results = run(graph, traced.jaxpr, constants, [*sorted(specs), *inputs])
    ends = [
        onnx.helper.make_node("Identity", [value], [name]) for name, value in zip(sorted(shapes), results, strict=True)
    ]
    nodes, used = _needed([*graph.nodes, *ends], set(shapes))
    arrays = [onnx.numpy_helper.from_array(value, name) for name, value in graph.constants.items() if name in used]
    arrays += [
        onnx.TensorProto(name=name, data_type=_kind(onnx, one), dims=one.shape)
        for name, one in specs.items()
        if name in used
    ]
    infos = [[_info(onnx, name, value) for name, value in one.items()] for one in (inputs, shapes)]
    return onnx.helper.make_graph(nodes, "fundax", *infos, arrays)


def _kind(onnx: Any, value: Any) -> int:
    return onnx.helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))


def _info(onnx: Any, name: str, value: Any) -> Any:
    sizes = [int(size) if isinstance(size, int | np.integer) else "batch" for size in value.shape]
    return onnx.helper.make_tensor_value_info(name, _kind(onnx, value), sizes)


def _needed(nodes: Sequence[Any], wanted: set[str]) -> tuple[list[Any], set[str]]:
    """The nodes that the outputs depend on, and the names that they read."""
    kept, used = [], set(wanted)
    for node in reversed(nodes):
        if used & set(node.output):
            kept.append(node)
            used |= set(node.input)
    return kept[::-1], used


def run(graph: Graph, jaxpr: Any, constants: Sequence[str], inputs: Sequence[str]) -> list[str]:
    """Write the equations of a jaxpr; returns the names of its results."""
    values: dict[Any, str] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *inputs), strict=True))

    def read(one: Any) -> str:
        if isinstance(one, core.Literal):
            aval: Any = one.aval
            return graph.constant(np.asarray(one.val, aval.dtype))
        return values[one]

    for equation in _used(jaxpr):
        if equation.primitive.name == "platform_index":  # which form of a computation suits a processor, see _inner
            found = [""]
        else:
            found = _equation(graph, equation, [read(one) for one in equation.invars])
        values |= dict(zip(equation.outvars, found, strict=True))
    return [read(one) for one in jaxpr.outvars]


def _used(jaxpr: Any) -> list[Any]:
    """The equations that the results depend on."""
    kept, wanted = [], {one for one in jaxpr.outvars if not isinstance(one, core.Literal)}
    for equation in reversed(jaxpr.eqns):
        if wanted & set(equation.outvars):
            kept.append(equation)
            wanted |= {one for one in equation.invars if not isinstance(one, core.Literal)}
    return kept[::-1]


def _equation(graph: Graph, equation: Any, values: list[str]) -> list[str]:
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        return _unrolled(graph, params, values)
    inner, values = _inner(params, values)
    if inner is not None:
        body, constants = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
        return run(graph, body, [graph.constant(np.asarray(one)) for one in constants], values)
    if name in SAME:
        return values
    if name in ONE or name in TWO:
        return [graph.add((ONE | TWO)[name], *values)]
    if name in REDUCED:
        return [graph.add(REDUCED[name], values[0], graph.axes(equation.params["axes"]), keepdims=0)]
    if name not in RULES:
        raise UserError(f"{NAME}: the model computes {name!r}, which has no rule in fundax.interop.onnx_rules")
    return [RULES[name](graph, equation, *values)]


def _inner(params: Mapping[str, Any], values: list[str]) -> tuple[Any, list[str]]:
    """The function within an equation, and its inputs; of one that depends on the processor, the general form."""
    if params.get("branches_platforms"):
        return params["branches"][params["branches_platforms"].index(None)], values[1:]
    names = ("jaxpr", "call_jaxpr", "fun_jaxpr")
    return next((params[key] for key in names if key in params), None), values


def _unrolled(graph: Graph, params: Mapping[str, Any], values: list[str]) -> list[str]:
    """A loop of a fixed length over stacked layers."""
    first, carried = params["num_consts"], params["num_consts"] + params["num_carry"]
    closed, carry, stacked = values[:first], values[first:carried], values[carried:]
    constants = [graph.constant(np.asarray(one)) for one in params["jaxpr"].consts]
    kept: list[list[str]] = []
    order = range(params["length"])
    for i in reversed(order) if params["reverse"] else order:
        rows = [graph.add("Gather", value, graph.constant(i, np.int64), axis=0) for value in stacked]
        out = run(graph, params["jaxpr"].jaxpr, constants, [*closed, *carry, *rows])
        carry, each = out[: params["num_carry"]], out[params["num_carry"] :]
        kept.append([graph.add("Unsqueeze", value, graph.axes([0])) for value in each])
    kept = kept[::-1] if params["reverse"] else kept
    return [*carry, *(graph.add("Concat", *one, axis=0) for one in zip(*kept, strict=True))]


FORMAT = Format(
    "onnx", NAME, stablehlo.FORMAT.holds, (WEIGHTS, folder.RECORD), detect, read_model, write_folder, USAGE,
    difference=difference, order=13,
)  # fmt: skip
