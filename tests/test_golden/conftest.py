"""Vectors given by FUNDAX_GOLDEN may be of some systems only; our own are of all."""

import os

import pytest


@pytest.fixture(autouse=True)
def vectors_are_there(request, golden):
    """The system is the second word of the test file's name, or the parameter `peer`."""
    call = getattr(request.node, "callspec", None)
    system = call.params.get("peer") if call else None
    system = system or request.path.stem.split("_")[1]
    if "FUNDAX_GOLDEN" in os.environ and not (golden / system).is_dir():
        pytest.skip(f"FUNDAX_GOLDEN={golden} holds no {system}/")
