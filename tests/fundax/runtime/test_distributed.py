"""Every platform's real variable names give the right cluster; contradictions are one clear line."""

import pytest

from fundax.runtime.distributed import NO_STEP, ONE, TPU_VM, Cluster, Flags, first_host, resolve_distributed
from fundax.types import UserError

SLURM = {
    "SLURM_JOB_ID": "4100",
    "SLURM_STEP_NODELIST": "gpu[007-008]",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_GPUS_ON_NODE": "8",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
}
TASK_PER_GPU = SLURM | {
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_GPUS_ON_NODE": "4",
}
MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "16",
    "OMPI_COMM_WORLD_RANK": "9",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "8",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
}
TORCHRUN = {
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
    "WORLD_SIZE": "4",
    "RANK": "3",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3",
}
XPK = {"JAX_COORDINATOR_IP": "10.0.0.2", "JAX_COORDINATOR_PORT": "3389", "NNODES": "4", "NODE_RANK": "2"}
PORT = 65535 - 4096 + 1

CASES = {
    "nothing set": ({}, ONE),
    "slurm, one task and eight GPUs per node": (SLURM, Cluster("slurm", f"gpu007:{PORT + 4}", 2, 1, gpus=8)),
    "slurm, one task per GPU, all visible": (
        TASK_PER_GPU | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"},
        Cluster("slurm", f"gpu007:{PORT + 4}", 8, 6, (2,), gpus=1),
    ),
    "slurm, one task per GPU, bound": (
        TASK_PER_GPU | {"CUDA_VISIBLE_DEVICES": "2"},
        Cluster("slurm", f"gpu007:{PORT + 4}", 8, 6, gpus=1),
    ),
    "slurm, two tasks for eight GPUs": (
        SLURM
        | {
            "SLURM_STEP_NODELIST": "n1",
            "SLURM_STEP_TASKS_PER_NODE": "2",
            "SLURM_LOCALID": "1",
            "SLURM_NODEID": "0",
        },
        Cluster("slurm", f"n1:{PORT + 4}", 2, 1, (4, 5, 6, 7), gpus=4),
    ),
    "slurm, one task": (SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1"}, ONE),
    "slurm, an sbatch shell without srun": ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, NO_STEP),
    "open mpi 4": (MPI, Cluster("openmpi", f"10.96.0.1:{PORT + 1531576320 % 4096}", 16, 9, (1,), gpus=1)),
    "open mpi 5 with a coordinator": (
        {k: v for k, v in MPI.items() if "uri" not in k} | {"FUNDAX_COORDINATOR": "head:1234"},
        Cluster("openmpi", "head:1234", 16, 9, (1,), gpus=1),
    ),
    "torchrun": (TORCHRUN, Cluster("torchrun", "node0:29500", 4, 3, (2, 3), gpus=2)),
    "torchrun, whose own store has the port": (
        TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": "True"},
        Cluster("torchrun", "node0:29501", 4, 3, (2, 3), gpus=2),
    ),
    "torchrun, one process": (TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"}, ONE),
    "torchrun inside slurm": (SLURM | TORCHRUN, Cluster("torchrun", "node0:29500", 4, 3, (2, 3), gpus=2)),
    "xpk on GPUs": (XPK, Cluster("xpk", "10.0.0.2:3389", 4, 2)),
    "a TPU pod": (
        {"TPU_WORKER_HOSTNAMES": "t0,t1,t2,t3", "TPU_WORKER_ID": "2"},
        Cluster("tpu", None, None, None),
    ),
    "one TPU host": ({"TPU_WORKER_HOSTNAMES": "localhost"}, ONE),
    "multislice": (
        {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "t0:8080"},
        Cluster("tpu", None, None, None),
    ),
    "our own variables win": (
        SLURM | {"FUNDAX_COORDINATOR": "a:1", "FUNDAX_NUM_PROCESSES": "2", "FUNDAX_PROCESS_ID": "0"},
        Cluster("environment", "a:1", 2, 0),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_environment(name):
    env, expected = CASES[name]
    assert resolve_distributed(env) == expected


def test_a_tpu_machine_that_no_variable_speaks_for_asks_its_metadata_server():
    assert resolve_distributed({}, tpu=True) == TPU_VM
    assert (
        resolve_distributed(SLURM, tpu=True).platform == "slurm"
        and resolve_distributed({}, Flags("off"), tpu=True) == ONE
    )


def test_flags_win_and_off_is_off():
    assert resolve_distributed(SLURM, Flags("auto", "h:9", 3, 2)) == Cluster("flags", "h:9", 3, 2)
    assert resolve_distributed(SLURM, Flags("off")) == ONE
    assert resolve_distributed(SLURM | TORCHRUN, Flags("slurm")).platform == "slurm"


WRONG = {
    "two tasks, no process id": ({}, Flags("auto", "h:9", 2, None), "--process-id missing"),
    "no port": ({}, Flags("auto", "h", 2, 0), "expected host:port"),
    "process out of range": ({}, Flags("auto", "h:9", 2, 2), "expected 0 to 1"),
    "unknown platform": ({}, Flags("slrum"), "expected auto, off, or one of"),
    "asked for and absent": ({}, Flags("slurm"), "not set"),
    "own variables without coordinator": (
        {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
        Flags(),
        "JAX_COORDINATOR_ADDRESS missing",
    ),
    "torchrun without address": (
        {"RANK": "0", "WORLD_SIZE": "2"},
        Flags(),
        "MASTER_ADDR, MASTER_PORT not set",
    ),
    "open mpi 5": ({k: v for k, v in MPI.items() if "uri" not in k}, Flags(), "set FUNDAX_COORDINATOR"),
    "GPUs that do not divide": (TORCHRUN | {"CUDA_VISIBLE_DEVICES": "0,1,2"}, Flags(), "do not divide"),
    "not a number": ({"RANK": "x", "WORLD_SIZE": "2"}, Flags(), "expected a whole number"),
    "xpk without coordinator": ({"NNODES": "2", "NODE_RANK": "0"}, Flags(), "JAX_COORDINATOR_IP"),
    "multislice without coordinator": (
        {"MEGASCALE_NUM_SLICES": "2"},
        Flags(),
        "MEGASCALE_COORDINATOR_ADDRESS",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong(name):
    env, flags, message = WRONG[name]
    with pytest.raises(UserError, match=message):
        resolve_distributed(env, flags)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("gpu[007-010,12],x1", "gpu007"), ("a,b", "a"), ("n[3]", "n3"), ("r1n[2-4]-ib", "r1n2-ib")],
)
def test_first_host(nodes, host):
    assert first_host(nodes) == host
