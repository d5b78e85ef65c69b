"""Multi-process training: find the cluster from the environment, before JAX starts, and join its processes.

On TPUs JAX detects the cluster itself. Elsewhere its detection has pitfalls: under SLURM and Open MPI it uses one device
per process, so that a task with eight GPUs trains on one of them, and it does not read the variables of torchrun. Here a
pure function turns the environment into one explicit `Cluster`, and the run prints how many local devices it uses.

Precedence: flags, FUNDAX_* and JAX_* variables, torchrun's variables, XPK/GKE, Open MPI, SLURM, TPU, a single process."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import re
import signal
import sys
import threading
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fundax.runtime.process import exit_at_once
from fundax.types import UserError

PORTS = 2**12  # the job id selects one of the last 4,096 ports, as in JAX, so that two jobs on a node do not collide


@dataclass(frozen=True)
class Cluster:
    """Arguments of jax.distributed.initialize. processes: None: JAX detects the cluster (TPU); 1: it is not called."""

    platform: str
    coordinator: str | None = None  # host:port
    processes: int | None = 1
    process: int | None = 0
    local_devices: tuple[int, ...] | None = None  # None: all visible devices
    gpus: int | None = None  # number of GPUs of this process according to the environment


@dataclass(frozen=True)
class Flags:
    """Command-line flags. platform: "auto", "off" or the name of one of PLATFORMS."""

    platform: str = "auto"
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None


ONE = Cluster("one process")
TPU = Cluster("tpu", processes=None, process=None)
TPU_VM = Cluster("tpu vm", processes=None, process=None)
NO_STEP = Cluster("one process: the SLURM job has more tasks, but srun did not start this one")
ALONE = Flags()
FLAGS = ("--coordinator", "--num-processes", "--process-id")


def resolve_distributed(env: Mapping[str, str], flags: Flags = ALONE, *, tpu: bool = False) -> Cluster:
    """The cluster that the environment and the flags describe; `tpu`: this machine has TPU chips (has_tpu).

    Raises UserError, naming the variable, if something is missing or contradictory.
    """
    if flags.platform == "off":
        return ONE
    given = (flags.coordinator, flags.processes, flags.process)
    if any(x is not None for x in given):
        return _explicit("flags", given, FLAGS)
    if flags.platform != "auto":
        if flags.platform not in PLATFORMS:
            raise UserError(f"--distributed {flags.platform}: expected auto, off, or one of {', '.join(PLATFORMS)}")
        cluster = PLATFORMS[flags.platform](env)
        if cluster is None:
            raise UserError(f"--distributed {flags.platform}: its variables are not set in this environment")
        return cluster
    detected = next((cluster for read in PLATFORMS.values() if (cluster := read(env))), None)
    # The hosts of a Cloud TPU VM find each other through the metadata server, not through their environment.
    return detected or (TPU_VM if tpu else ONE)


def has_tpu() -> bool:
    """Whether this machine has TPU chips and libtpu, without initialising JAX."""
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def _explicit(platform: str, values: tuple, names: tuple[str, str, str]) -> Cluster:
    """A cluster from coordinator, number of processes and process id; UserError if one is missing or wrong."""
    missing = [name for name, value in zip(names, values, strict=True) if value is None]
    if missing:
        raise UserError(f"{platform}: {' and '.join(missing)} missing; {', '.join(names)} go together")
    coordinator, processes, process = values
    if ":" not in coordinator:
        raise UserError(f"{names[0]} is {coordinator!r}; expected host:port")
    processes, process = _number(processes, names[1]), _number(process, names[2])
    if not 0 <= process < processes:
        raise UserError(f"{names[2]} is {process}; expected 0 to {processes - 1} ({names[1]} is {processes})")
    return Cluster(platform, coordinator, processes, process) if processes > 1 else ONE


def _number(value: str | int, name: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise UserError(f"{name} is {value!r}; expected a whole number") from None


def _need(env: Mapping[str, str], platform: str, *names: str) -> list[str]:
    missing = [name for name in names if not env.get(name)]
    if missing:
        raise UserError(f"{platform}: {', '.join(missing)} not set; or give {', '.join(FLAGS)}")
    return [env[name] for name in names]


# --- one reader per platform, which returns None on other platforms ---------------------------------------------------


def _own(env: Mapping[str, str]) -> Cluster | None:
    for names in (
        ("FUNDAX_COORDINATOR", "FUNDAX_NUM_PROCESSES", "FUNDAX_PROCESS_ID"),
        ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"),
    ):
        values = tuple(env.get(name) or None for name in names)
        if values[1] is not None or values[2] is not None:
            return _explicit("environment", values, names)
    return None


def _torchrun(env: Mapping[str, str]) -> Cluster | None:
    if "RANK" not in env or "WORLD_SIZE" not in env:
        return None
    processes, process = _number(env["WORLD_SIZE"], "WORLD_SIZE"), _number(env["RANK"], "RANK")
    if processes == 1:
        return ONE
    host, given = _need(env, "torchrun variables", "MASTER_ADDR", "MASTER_PORT")
    # torchrun itself listens on MASTER_PORT, unless another launcher set these variables
    port = _number(given, "MASTER_PORT") + (env.get("TORCHELASTIC_USE_AGENT_STORE") == "True")
    names = ("MASTER_ADDR:MASTER_PORT", "WORLD_SIZE", "RANK")
    cluster = _explicit("torchrun", (f"{host}:{port}", processes, process), names)
    tasks = _number(env.get("LOCAL_WORLD_SIZE", "1"), "LOCAL_WORLD_SIZE")
    return _with_devices(cluster, env, tasks, _number(env.get("LOCAL_RANK", "0"), "LOCAL_RANK"), None)


def _xpk(env: Mapping[str, str]) -> Cluster | None:
    if "NNODES" not in env or "NODE_RANK" not in env:
        return None
    if _number(env["NNODES"], "NNODES") == 1:
        return ONE
    host, port = _need(env, "XPK", "JAX_COORDINATOR_IP", "JAX_COORDINATOR_PORT")
    return _explicit(
        "xpk",
        (f"{host}:{port}", env["NNODES"], env["NODE_RANK"]),
        ("JAX_COORDINATOR_IP", "NNODES", "NODE_RANK"),
    )


def _open_mpi(env: Mapping[str, str]) -> Cluster | None:
    if "OMPI_COMM_WORLD_SIZE" not in env:
        return None
    processes = _number(env["OMPI_COMM_WORLD_SIZE"], "OMPI_COMM_WORLD_SIZE")
    if processes == 1:
        return ONE
    (rank,) = _need(env, "Open MPI", "OMPI_COMM_WORLD_RANK")
    names = ("FUNDAX_COORDINATOR", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
    cluster = _explicit("openmpi", (_mpi_coordinator(env), processes, rank), names)
    tasks = _number(env.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1"), "OMPI_COMM_WORLD_LOCAL_SIZE")
    local = _number(env.get("OMPI_COMM_WORLD_LOCAL_RANK", "0"), "OMPI_COMM_WORLD_LOCAL_RANK")
    return _with_devices(cluster, env, tasks, local, None)


def _mpi_coordinator(env: Mapping[str, str]) -> str:
    """host:port. Open MPI 4 has the launching host and the job in one variable; Open MPI 5 has neither."""
    if env.get("FUNDAX_COORDINATOR"):
        return env["FUNDAX_COORDINATOR"]
    uri = env.get("OMPI_MCA_orte_hnp_uri", "")  # "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"
    match = re.match(r"(\d+)\.\d+;tcp://([^,:;]+)", uri)
    if not match:
        raise UserError(
            "Open MPI: OMPI_MCA_orte_hnp_uri not set (Open MPI 5 does not set it); set FUNDAX_COORDINATOR=host:port"
        )
    return f"{match[2]}:{_port(int(match[1]))}"


def _slurm(env: Mapping[str, str]) -> Cluster | None:
    if "SLURM_JOB_ID" not in env:
        return None
    if not env.get("SLURM_STEP_NODELIST"):  # in sbatch and salloc shells there is a job but no step
        return NO_STEP if env.get("SLURM_NTASKS", "1") != "1" else None
    tasks = _number(env.get("SLURM_STEP_NUM_TASKS") or _need(env, "SLURM", "SLURM_NTASKS")[0], "SLURM_NTASKS")
    if tasks == 1:
        return ONE
    job, process = _need(env, "SLURM", "SLURM_JOB_ID", "SLURM_PROCID")
    host = first_host(env["SLURM_STEP_NODELIST"])
    coordinator = env.get("FUNDAX_COORDINATOR") or f"{host}:{_port(_number(job, 'SLURM_JOB_ID'))}"
    cluster = _explicit("slurm", (coordinator, tasks, process), ("SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID"))
    here = _tasks_here(env)
    local = _number(env.get("SLURM_LOCALID", "0"), "SLURM_LOCALID")
    on_node = _number(env["SLURM_GPUS_ON_NODE"], "SLURM_GPUS_ON_NODE") if env.get("SLURM_GPUS_ON_NODE") else None
    return _with_devices(cluster, env, here, local, on_node)


def _tpu(env: Mapping[str, str]) -> Cluster | None:
    hosts = [h for h in env.get("TPU_WORKER_HOSTNAMES", "").split(",") if h]
    slices = env.get("MEGASCALE_NUM_SLICES", "1")
    if len(hosts) < 2 and _number(slices, "MEGASCALE_NUM_SLICES") < 2:
        return None
    if slices != "1":
        _need(env, "multislice", "MEGASCALE_COORDINATOR_ADDRESS", "MEGASCALE_SLICE_ID")
    return TPU


PLATFORMS = {
    "environment": _own,
    "torchrun": _torchrun,
    "xpk": _xpk,
    "openmpi": _open_mpi,
    "slurm": _slurm,
    "tpu": _tpu,
}


# --- parts --------------------------------------------------------------------------------------------------------


def _port(job: int) -> int:
    return 65535 - PORTS + 1 + job % PORTS


def first_host(nodes: str) -> str:
    """First host of a SLURM node list: "gpu[007-010,12],x1" gives "gpu007"."""
    match = re.match(r"([^,\[]+)(?:\[([^\]]+)\])?([^,]*)", nodes)
    if not match:
        raise UserError(f"SLURM_STEP_NODELIST is {nodes!r}; expected host names such as gpu[01-04]")
    return match[1] + re.split("[,-]", match[2] or "")[0] + match[3]


def _tasks_here(env: Mapping[str, str]) -> int:
    """Number of tasks on this node, from a list such as "2(x3),1" and SLURM_NODEID."""
    counts: list[int] = []
    for part in (env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE") or "1").split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if not match:
            raise UserError(f"SLURM_STEP_TASKS_PER_NODE has {part!r}; expected numbers such as 2(x3)")
        counts += [int(match[1])] * int(match[2] or 1)
    node = _number(env.get("SLURM_NODEID", "0"), "SLURM_NODEID")
    return counts[min(node, len(counts) - 1)]


def _with_devices(cluster: Cluster, env: Mapping[str, str], tasks: int, local: int, on_node: int | None) -> Cluster:
    """Add the local GPUs of this task. If every task sees all GPUs of the node, they are divided evenly, in order."""
    visible = [d for d in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if d] or list(range(on_node or 0))
    bound = on_node is not None and len(visible) < on_node  # the scheduler assigned GPUs to each task
    if cluster is ONE or not visible:
        return cluster
    if tasks == 1 or bound or len(visible) == 1:
        return replace(cluster, gpus=len(visible))
    if len(visible) % tasks:
        raise UserError(f"{cluster.platform}: {len(visible)} GPUs do not divide among {tasks} tasks on this node")
    each = len(visible) // tasks
    mine = tuple(range(local * each, (local + 1) * each))
    return replace(cluster, local_devices=mine, gpus=each)


# --- joining ------------------------------------------------------------------------------------------------------

LOST_S = 60  # seconds without a heartbeat after which a process counts as dead and the others exit


def initialize(cluster: Cluster, timeout_s: int = 300) -> str:
    """Join the other processes; returns a line such as "using 8 of 8 local devices, 4 processes".

    Call it before any other use of JAX. A second call does nothing. If the other processes cannot be reached within
    `timeout_s`, the process prints one line and exits with code 2; JAX itself would abort it.
    """
    import jax

    if not jax.distributed.is_initialized():
        late = threading.Timer(timeout_s, _give_up, (cluster, timeout_s))
        late.daemon = True
        late.start()
        try:
            _join(cluster, timeout_s + 60)
        finally:
            late.cancel()
        if jax.process_count() > 1:
            ctypes.CDLL(None).signal(int(signal.SIGABRT), _aborted)
        if jax.process_count() > 1 and jax.default_backend() == "cpu":
            # Only process 0 caches compiled programs. A cached program runs its collectives in another order than the
            # same program compiled afresh in the other processes (jax 0.10.2), and then Gloo aborts.
            jax.config.update("jax_enable_compilation_cache", False)
    mine, processes = jax.local_device_count(), jax.process_count()
    there = max(mine, cluster.gpus or 0) if jax.default_backend() == "gpu" else mine
    return f"using {mine} of {there} local devices, {processes} process{'es' if processes > 1 else ''} ({cluster.platform})"


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(number: int) -> None:
    """End with a line where JAX aborts from a thread of its own, which raises nothing: process 0 is gone, for example."""
    line = (
        "JAX has ended this process, probably because another one has ended or cannot be reached (the reason is above)"
    )
    os.write(2, f"error: {line}; restart all of them to resume from the last checkpoint\n".encode())
    os._exit(1)  # and nothing else: the other threads are as they were


def _give_up(cluster: Cluster, timeout_s: int) -> None:
    where = f"process {cluster.process} of {cluster.processes}, coordinator {cluster.coordinator}"
    print(
        f"error: {cluster.platform}: the other processes did not connect within {timeout_s} s ({where}). Check that all "
        "of them were started and that every node can reach the coordinator's port.",
        file=sys.stderr,
    )
    exit_at_once(2)  # this is a timer's thread: the main one is waiting in JAX


def _join(cluster: Cluster, timeout_s: int) -> None:
    import jax

    limits: dict[str, Any] = {"initialization_timeout": timeout_s, "heartbeat_timeout_seconds": LOST_S}
    if cluster.processes is None:
        # a TPU VM without a metadata server is a single host, for which JAX raises ValueError
        with contextlib.suppress(*[ValueError] if cluster == TPU_VM else []):
            jax.distributed.initialize(**limits)
    elif cluster.processes > 1:
        jax.distributed.initialize(
            coordinator_address=cluster.coordinator,
            num_processes=cluster.processes,
            process_id=cluster.process,
            local_device_ids=cluster.local_devices,
            cluster_detection_method="deactivate",
            **limits,
        )


def check_alike(settings: Mapping[str, Any]) -> None:
    """Check that all processes were given the same settings (JSON); nothing for a single process.

    Raises UserError in every process, naming the settings of process 0 and those that differ. Without this check, processes with
    different numbers of steps, for example, would wait for each other for ever.
    """
    import jax

    if jax.process_count() == 1:
        return
    import numpy as np
    from jax.experimental import multihost_utils

    written = {name: json.dumps(value, default=str) for name, value in sorted(settings.items())}
    mine = np.array([zlib.crc32(f"{name} {value}".encode()) for name, value in written.items()], np.uint32)
    counts = multihost_utils.process_allgather(np.int32(len(mine)))
    if len(set(counts.tolist())) > 1:
        raise UserError("the processes run different configs; start all of them with the same command")
    every = multihost_utils.process_allgather(mine)
    differ = (every != every[:1]).any(0)
    if differ.any():
        names = ", ".join(f"{name} {value}" for (name, value), off in zip(written.items(), differ, strict=True) if off)
        raise UserError(f"process {jax.process_index()} was given {names}, and others were given something else")
