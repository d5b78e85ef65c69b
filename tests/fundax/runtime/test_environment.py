"""Variables by platform: the flags of GPUs are accepted by this jaxlib, which ends at an unknown one."""

import os
import shlex
import subprocess
import sys

import pytest

from fundax.runtime.environment import PRESETS, environment


@pytest.mark.parametrize("platform", list(PRESETS))
def test_a_shell_reads_the_variables(platform):
    script = environment(platform, "gs://bucket/a folder") + "\nenv"
    done = subprocess.run(
        ["sh", "-c", script], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True
    )
    found = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    assert PRESETS[platform].items() <= found.items()
    assert found["JAX_COMPILATION_CACHE_DIR"] == "gs://bucket/a folder"
    assert shlex.split(environment("cpu")) == ["export", "JAX_PLATFORMS=cpu"]


def test_jaxlib_knows_the_flags_of_gpus():
    code = "import jax; assert jax.devices()"
    env = os.environ | {"JAX_PLATFORMS": "cpu", **PRESETS["gpu"]}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True)
