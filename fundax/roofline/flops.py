"""What a function costs, counted from its jaxpr: products and convolutions, and the memory they move; loops times their length.

XLA's own `cost_analysis` counts the body of a scan once, so a model of 32 scanned layers looks like one of a single layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

PRODUCTS = ("dot_general", "conv_general_dilated")


def forward_flops(function: Callable, *arguments: Any) -> int:
    """2 x multiply-adds of every dot_general and convolution that one call makes; arguments may be abstract.

    A while loop of unknown length counts as one turn. Elementwise work, softmax and norms are left out, as is usual
    for model FLOPs (Chowdhery et al. 2022, appendix B)."""
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr, _flops)


def training_flops(loss: Callable, *arguments: Any) -> int:
    """Model FLOPs of one training step: the forward pass and twice that backward. What remat repeats is not counted."""
    return 3 * forward_flops(loss, *arguments)


def product_bytes(function: Callable, *arguments: Any) -> int:
    """Bytes that the products of one call read and write: operands and results once each, in their own dtypes.

    Everything elementwise is taken to be fused with them, so this is less than a real program moves."""
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr, _bytes)


def _count(jaxpr: Jaxpr, cost: Callable[[Any], int]) -> int:
    """Of the equations that a result depends on: under jit the others are never run."""
    needed, total = {id(v) for v in jaxpr.outvars}, 0
    for equation in reversed(jaxpr.eqns):
        if any(id(v) in needed for v in equation.outvars) or equation.effects:
            needed |= {id(v) for v in equation.invars}
            total += _equation(equation, cost)
    return total


def _equation(equation: Any, cost: Callable[[Any], int]) -> int:
    name = equation.primitive.name
    if name in PRODUCTS:
        return cost(equation)
    if name == "cond":
        return max(_count(branch.jaxpr, cost) for branch in equation.params["branches"])
    times = equation.params["length"] if name == "scan" else 1
    if name == "shard_map":  # its body is what one device does
        times = equation.params["mesh"].size
    return times * sum(_count(inner, cost) for inner in _inner(equation.params))


def _flops(equation: Any) -> int:
    return _dot(equation) if equation.primitive.name == "dot_general" else _convolution(equation)


def _bytes(equation: Any) -> int:
    avals = [v.aval for v in (*equation.invars, *equation.outvars)]
    return sum(math.prod(aval.shape) * aval.dtype.itemsize for aval in avals)


def _inner(params: dict[str, Any]) -> list[Jaxpr]:
    found = []
    for value in params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(part, ClosedJaxpr):
                found.append(part.jaxpr)
            elif isinstance(part, Jaxpr):
                found.append(part)
    return found


def _dot(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)


def _convolution(equation: Any) -> int:
    kernel = equation.invars[1].aval.shape
    outputs = equation.params["dimension_numbers"].rhs_spec[0]
    per_output = math.prod(kernel) // kernel[outputs]
    return 2 * math.prod(equation.outvars[0].aval.shape) * per_output
