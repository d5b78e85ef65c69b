"""Ophthalmic foundation models in JAX/Flax. See README.md for what it does and docs/ for how."""

__version__ = "0.1.0"
