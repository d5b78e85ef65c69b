"""Floating-point operations of a function, counted from its jaxpr: products and convolutions, loops times their length.

XLA's own `cost_analysis` counts the body of a scan once, so a model of 32 scanned layers looks like one of a single layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def forward_flops(function: Callable, *arguments: Any) -> int:
    """2 x multiply-adds of every dot_general and convolution that one call makes; arguments may be abstract.

    A while loop of unknown length counts as one turn. Elementwise work, softmax and norms are left out, as is usual
    for model FLOPs (Chowdhery et al. 2022, appendix B)."""
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def training_flops(loss: Callable, *arguments: Any) -> int:
    """Model FLOPs of one training step: the forward pass and twice that backward. What remat repeats is not counted."""
    return 3 * forward_flops(loss, *arguments)


def _count(jaxpr: Jaxpr) -> int:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> int:
    name = equation.primitive.name
    if name == "dot_general":
        return _dot(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name == "cond":
        return max(_count(branch.jaxpr) for branch in equation.params["branches"])
    times = equation.params["length"] if name == "scan" else 1
    if name == "shard_map":  # its body is what one device does
        times = equation.params["mesh"].size
    return times * sum(_count(inner) for inner in _inner(equation.params))


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
