"""A run that is killed, or started a second time, continues from its last checkpoint and ends with the same bits."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_objective import recipe

from fundax.recipe import Intervals
from fundax.runtime.checkpoint import load_params
from fundax.train.loop import fit
from fundax.types import UserError

REPO = Path(__file__).parents[2]
STEPS = 60
RUN = """
import sys, time
from tiny_objective import Rows, recipe
from fundax.recipe import Intervals
from fundax.train.loop import fit

class Slow(Rows):
    def __next__(self):
        time.sleep(0.02)
        return super().__next__()

fit(recipe(steps=int(sys.argv[2]), intervals=Intervals(1, 2, 0), train=lambda shard, shards: Slow(8, shard, shards)), sys.argv[1])
"""


def started(workdir):
    # the root first, because tests/ has a folder fundax as well
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(REPO), str(REPO / "tests")))}
    command = [sys.executable, "-c", RUN, str(workdir), str(STEPS)]
    return subprocess.Popen(command, cwd=REPO, env=environment, stderr=subprocess.PIPE)


def latest(workdir):
    return max((int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()), default=-1)


def kill_after_progress(workdir, rng):
    before, run = latest(workdir), started(workdir)
    while run.poll() is None and latest(workdir) == before:
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.2))
    run.kill()
    run.communicate()


def test_killed_runs_end_with_the_same_bits(tmp_path):
    whole = fit(recipe(steps=STEPS, intervals=Intervals(0, 0, 0)), tmp_path / "whole")
    parts, rng = tmp_path / "parts", random.Random(0)
    for _ in range(2):
        kill_after_progress(parts, rng)
    assert 0 < latest(parts) < STEPS, "both kills came too late to test anything"
    last = started(parts)
    before = latest(parts)
    while latest(parts) == before:
        time.sleep(0.001)
    with pytest.raises(UserError, match=rf"another training .* is writing to this folder \(process {last.pid} on"):
        fit(recipe(steps=STEPS, intervals=Intervals(1, 2, 0)), parts)
    _, printed = last.communicate()  # as if alone
    rows = [json.loads(line) for line in (parts / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, STEPS + 1))
    assert "resuming after step" in printed.decode()
    params, extra = load_params(parts)
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(whole.params))
    assert float(extra["seen"]) == STEPS * 8
