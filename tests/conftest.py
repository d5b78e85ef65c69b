"""Strict JAX for every test: eight fake CPU devices, rank promotion raises, warnings are errors (pyproject)."""

import os

os.environ["XLA_FLAGS"] = " ".join((
    "--xla_force_host_platform_device_count=8",
    # eight devices on a busy machine of few cores: a sum that one of them is late for is not a deadlock
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=300",
    # small programs that run once: compiling them is the suite's time, and machine code left unpolished halves it
    "--xla_backend_optimization_level=0",
    # the older way to emit loops compiles smoke runs in two thirds of the time; sums may round otherwise
    "--xla_cpu_use_fusion_emitters=false",
    os.environ.get("XLA_FLAGS", ""),  # what is given wins
))  # fmt: skip
os.environ["JAX_PLATFORMS"] = os.environ.get("FUNDAX_TEST_PLATFORM", "cpu")  # benchmarks/gpu.sh tests on a GPU
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "agg")

from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
# Compiling is most of the suite's time: programs are kept from one worker, subprocess and run to the next.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPO / ".pytest_cache" / "programs"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax  # noqa: E402 (it reads the environment)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_threefry_partitionable", True)


GIVEN = os.environ.get("FUNDAX_GOLDEN")


@pytest.fixture(scope="session")
def golden_of_ours() -> Path:
    """The vectors of the original PyTorch code."""
    return REPO / "tests" / "golden"


@pytest.fixture(scope="session")
def golden(golden_of_ours: Path) -> Path:
    """Those, or other vectors of the same layout, which come in by FUNDAX_GOLDEN."""
    return Path(GIVEN) if GIVEN else golden_of_ours


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Vectors that are given may be of some systems only. Our own are of all, and one that is missing is an error."""
    systems = [system for mark in item.iter_markers("vectors") for system in mark.args]
    if "golden" in getattr(item, "fixturenames", ()) and not systems:
        pytest.fail("this test reads golden vectors: mark it pytest.mark.vectors('flair', ...) with their folders")
    if GIVEN and systems and not Path(GIVEN).is_dir():
        pytest.fail(f"FUNDAX_GOLDEN={GIVEN} is not a folder")
    missing = [system for system in systems if GIVEN and not (Path(GIVEN) / system).is_dir()]
    if missing:
        pytest.skip(f"FUNDAX_GOLDEN={GIVEN} has no folder {', '.join(missing)}")


@pytest.fixture(autouse=True)
def every_warning_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings that are given once in a process are given in each test."""
    monkeypatch.setattr("data_pipelines.notices._given", set())


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images and public tokenizer tables outside the repository; tests that need them skip if they are missing."""
    path = Path(os.environ.get("FUNDAX_SHARED", REPO.parent / "shared")) / "data"
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; set FUNDAX_SHARED to the folder that holds data/")
    return path
