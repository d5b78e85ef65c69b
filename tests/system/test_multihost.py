"""Processes joined over loopback: the same rows, the same losses, saves, restarts in other shapes, deaths.

`python scripts/several_processes.py` does more of the same: both configs restarted in every shape.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from tiny_objective import recipe

from fundax.recipe import Intervals
from fundax.runtime.checkpoint import load_params, saved_steps
from fundax.train.loop import fit
from scripts.several_processes import LATER, QUICK, SAVING, TOLERANCE, Shape, difference, free_port

REPO = Path(__file__).parents[2]
MIDDLE, LAST = 2, 3

# Processes are forked after the imports and before JAX looks for devices: that cannot happen in pytest's own.
JOB = """
import shutil, sys
from dataclasses import replace
from pathlib import Path
from fundax.train import loop
from fundax.recipe import Intervals
from scripts import several_processes as several

folder, job = Path(sys.argv[1]), sys.argv[2]

def smoke(where, steps):
    meshes = {"mm_fundus_clip": "-1,2,2", "ret_clip": "1,-1,1"}  # FSDP with tensor parallelism, FSDP over all
    for name, mesh in meshes.items():
        several.run(f"configs/{name}.py", folder / where / name, steps, "-1,1" if where == "whole" else mesh)

def linear(where, steps):
    from tiny_objective import recipe
    given = recipe(steps=steps, mesh=(-1, 1), intervals=Intervals(1, 2, 0))
    several.fit_noting(given, folder / where)

work = {"smoke": smoke, "linear": linear}[job]
middle, last = int(sys.argv[3]), int(sys.argv[4])
several.together(several.Shape(1, 8), lambda: work("whole", last))
several.together(several.SAVING, lambda: work("saved", middle))
for shape in several.LATER if job == "linear" else several.LATER[:1]:
    name = str(shape).replace(" ", "")
    shutil.copytree(folder / "saved", folder / name)
    several.together(shape, lambda: work(name, last))
"""


def environment(devices=1, **more):
    flags = f"--xla_force_host_platform_device_count={devices} {QUICK}"
    paths = os.pathsep.join((str(REPO), str(REPO / "tests")))
    return os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": paths, "PYTHONWARNINGS": "ignore", **more}


def job(folder, name, middle, last):
    argv = [sys.executable, "-c", JOB, str(folder), name, str(middle), str(last)]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3"}
    done = subprocess.run(argv, env=environment(**cache), cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def same(folder, run, shape, first, last):
    off, rows = difference(
        folder / run, folder / run.replace(run.split("/")[0], "whole"), shape.processes, range(first, last + 1)
    )
    assert rows, f"{run}: other rows"
    assert off <= TOLERANCE, f"{run}: a loss is off by {off}"


def test_smoke_runs_of_two_processes_are_those_of_one_and_go_on_as_one(tmp_path):
    job(tmp_path, "smoke", MIDDLE, LAST)
    for name in ("mm_fundus_clip", "ret_clip"):
        same(tmp_path, f"saved/{name}", SAVING, 1, MIDDLE)
        same(tmp_path, f"1x8/{name}", Shape(1, 8), MIDDLE + 1, LAST)
        lines = (tmp_path / "saved" / name / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2], "one process writes, once"


def test_a_run_goes_on_as_any_number_of_processes(tmp_path):
    job(tmp_path, "linear", 4, 8)
    same(tmp_path, "saved", SAVING, 1, 4)
    expected = evaluations(tmp_path / "whole")
    assert [step for step, _ in expected] == [0, 8]
    for shape in LATER:
        name = str(shape).replace(" ", "")
        same(tmp_path, name, shape, 5, 8)
        found = evaluations(tmp_path / name)
        assert [step for step, _ in found] == [0, 4, 8], "evaluated once, by all together"
        np.testing.assert_allclose((found[0][1], found[-1][1]), [value for _, value in expected], rtol=1e-5)


def evaluations(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["held_out/error"]) for row in rows if "held_out/error" in row]


PLATFORMS = """
from scripts.several_processes import Shape, together
import jax, jax.distributed

def torchrun(port, k):
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(k), "LOCAL_RANK": str(k)}

def xpk(port, k):
    return {"JAX_COORDINATOR_IP": "127.0.0.1", "JAX_COORDINATOR_PORT": str(port), "NNODES": "2", "NODE_RANK": str(k)}

def slurm(port, k):
    return {"SLURM_JOB_ID": str(port), "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2", "SLURM_PROCID": str(k),
            "SLURM_LOCALID": str(k), "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0"}

def openmpi(port, k):
    return {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": str(k), "OMPI_COMM_WORLD_LOCAL_RANK": str(k),
            "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_MCA_orte_hnp_uri": f"{port}.0;tcp://127.0.0.1:1"}

def sum_of_all():
    from jax.experimental import multihost_utils
    assert multihost_utils.process_allgather(jax.process_index() + 1).sum() == 3

for variables in (torchrun, xpk, slurm, openmpi):
    together(Shape(2, 2), sum_of_all, variables)
"""


def test_processes_meet_by_the_variables_of_each_platform():
    done = subprocess.run(
        [sys.executable, "-c", PLATFORMS], env=environment(), cwd=REPO, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("torchrun", "xpk", "slurm", "openmpi"):
        assert done.stdout.count(f"using 2 of 2 local devices, 2 processes ({name})") == 2


MISTAKES = """
import os, signal, sys, time
import jax
from pathlib import Path
from fundax.train import loop
from fundax.recipe import Intervals
from fundax.types import UserError
from scripts.several_processes import Shape, together
from tiny_objective import Linear, Rows, recipe

def fit(**fields):
    given = recipe(mesh=(-1, 1), evals={}, intervals=Intervals(1, 1, 0), **fields)
    try:
        loop.fit(given, sys.argv[1])
    except UserError as error:
        print(f"{jax.process_index()}: {error}", flush=True)

def compiling(*arguments):
    if jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(600)
    return compiled(*arguments)

def signal_while_compiling():
    loop.compiled = compiling
    try:
        fit(steps=8)
    except SystemExit as end:
        print(f"{jax.process_index()}: left with {end.code}", flush=True)

class SlowToCompile(Linear):
    # its program for 7 images, the evaluation after step 2, compiles for ten minutes in process 1
    def forward(self, params, extra, batch):
        if batch["image"].shape[0] == 7 and jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)
        return super().forward(params, extra, batch)

def signal_while_an_evaluation_compiles():
    rows = iter((6, 7))
    def error(forward, params, extra):
        batch = next(Rows(next(rows), 0, 1))
        return {"error": forward(params, extra, batch)["value"].mean()}
    given = recipe(mesh=(-1, 1), objective=SlowToCompile(), evals={"held_out": error}, intervals=Intervals(1, 0, 2))
    try:
        loop.fit(given, sys.argv[1] + "-evaluated")
    except SystemExit as end:
        print(f"{jax.process_index()}: left an evaluation with {end.code}", flush=True)

def left_alone():
    if jax.process_index() == 0:
        time.sleep(4)  # the other one has joined by then
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(100)

compiled = loop.compiled
together(Shape(2, 1), signal_while_compiling)
together(Shape(2, 1), signal_while_an_evaluation_compiles)
try:
    together(Shape(2, 1), left_alone)
except SystemExit as end:
    print(end, flush=True)
together(Shape(2, 1), lambda: fit(steps=8 + jax.process_index()))

def late(source, target, rename=os.rename, **fields):
    if str(target).endswith("checkpoints/4"):
        time.sleep(1)  # the save of step 4 is in progress while step 5 fails
    rename(source, target, **fields)

def stops(name, **fields):
    try:
        loop.fit(recipe(mesh=(-1, 1), evals={}, intervals=Intervals(1, 1, 0), **fields), sys.argv[1] + name)
    except UserError as error:
        print(f"{jax.process_index()}: {error}", flush=True)
        os._exit(2)  # as launch.py does

os.rename = late
ends = lambda shard, shards: Rows(8, shard, shards, ends=4 if shard else None)
for name, fields in (("", {"poison": 4}), ("-ended", {"train": ends})):
    try:
        together(Shape(2, 1), lambda: stops(name, steps=8, **fields))
    except SystemExit as end:
        print(end, flush=True)
"""


def test_processes_end_together_and_what_all_call_saved_is_on_disk(tmp_path):
    argv = [sys.executable, "-c", MISTAKES, str(tmp_path / "run")]
    done = subprocess.run(argv, env=environment(), cwd=REPO, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 x 1: exit codes [-9, 1]" in done.stdout, done.stdout[:3000]
    assert "error: JAX has ended this process" in done.stderr
    for k in (0, 1):
        assert f"{k}: left with 0" in done.stdout, "SIGTERM to one process, while it compiles, ends both"
        assert f"{k}: left an evaluation with 0" in done.stdout, "and while an evaluation compiles"
        assert f"{k}: process {k} was given steps {8 + k}, and others were given something else" in done.stdout
        assert (
            f"{k}: step 5: loss nan, gradient norm nan: not finite, so training stopped; step 4 is saved and good"
            in done.stdout
        )
    assert "1: the training data ended before step 5" in done.stdout, "an error of one process"
    assert saved_steps(tmp_path / "run-evaluated") == [2] and saved_steps(tmp_path / "run-ended")[-1] == 4
    assert (
        saved_steps(tmp_path / "run")[-1] == 4 and np.isfinite(load_params(tmp_path / "run")[0]["head"]["kernel"]).all()
    )


CONFIG = '''"""Least squares, slowly."""
import time
from tiny_objective import Rows, recipe as linear
from fundax.recipe import Intervals

class Slow(Rows):
    def __next__(self):
        time.sleep(0.05)
        return super().__next__()

def recipe(*, steps: int = 60):
    every = Intervals(1, 5, 0)
    return linear(steps=steps, evals={}, mesh=(-1, 1), intervals=every, train=lambda shard, shards: Slow(8, shard, shards))
'''


def launched(folder, processes):
    (folder / "slow.py").write_text(CONFIG)
    coordinator = f"127.0.0.1:{free_port()}"
    argv = [sys.executable, "launch.py", "train", str(folder / "slow.py"), "--workdir", str(folder / "run")]
    flags = [["--coordinator", coordinator, "--num-processes", str(processes), "--process-id", str(k)]
             for k in range(processes)] if processes > 1 else [[]]  # fmt: skip
    env = environment(2 if processes == 1 else 1, XDG_CACHE_HOME=str(folder))
    return [subprocess.Popen([*argv, *more], env=env, cwd=REPO, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
            for more in flags]  # fmt: skip


def steps_done(folder):
    path = folder / "run" / "metrics.jsonl"
    return max((json.loads(line)["step"] for line in path.read_text().splitlines()), default=0) if path.exists() else 0


def saved(folder):
    return max((int(p.name) for p in (folder / "run" / "checkpoints").glob("*") if p.name.isdigit()), default=0)


def wait_for(runs, true):
    while not true():
        assert all(run.poll() is None for run in runs), [run.communicate()[1][-2000:] for run in runs]
        time.sleep(0.02)


def test_preemption_and_death_of_one_process_and_going_on_with_fewer(tmp_path):
    runs = launched(tmp_path, 2)
    wait_for(runs, lambda: steps_done(tmp_path) >= 3)
    runs[1].send_signal(signal.SIGTERM)  # one receives the signal; both save at the same step and exit
    printed = [run.communicate(timeout=120)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], printed
    assert "using 1 of 1 local devices, 2 processes (flags)" in printed[0] and "Stopped at step" in printed[0]
    first = saved(tmp_path)
    assert 3 < first < 60 and f"Stopped at step {first}/60" in printed[0]

    runs = launched(tmp_path, 2)
    wait_for(runs, lambda: saved(tmp_path) > first and steps_done(tmp_path) > saved(tmp_path) + 1)
    runs[1].kill()
    printed = runs[0].communicate(timeout=120)[1]  # the other ends within two minutes
    runs[1].communicate()
    assert runs[0].returncode == 1 and f"resuming after step {first}" in printed
    assert printed.strip().splitlines()[-1].startswith("error: another process has ended"), printed
    second = saved(tmp_path)
    assert first < second < 60

    (run,) = launched(tmp_path, 1)
    printed = run.communicate(timeout=120)[1]
    assert run.returncode == 0 and f"resuming after step {second} of 60" in printed
    whole = fit(recipe(steps=60, evals={}, intervals=Intervals(0, 0, 0)), tmp_path / "whole")
    params, extra = load_params(tmp_path / "run")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, jax.device_get(whole.params)
    )
    assert extra["seen"] == 60 * 8


def test_a_mistake_is_found_before_others_are_waited_for(tmp_path):
    argv = ["train", "configs/quickstart.py", "--workdir", str(tmp_path), "--num-processes", "2"]
    for more, line in (
        ([], "error: flags: --coordinator and --process-id missing"),
        (["--coordinator", "127.0.0.1:1", "--process-id", "1", "--bacth", "3"], "unknown argument --bacth"),
    ):
        done = subprocess.run(
            [sys.executable, "launch.py", *argv, *more],
            cwd=REPO,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2 and line in done.stderr and not list(tmp_path.iterdir())
