"""Arguments of the verbs that also take the arguments of a config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tyro.conf import UseAppendAction


@dataclass(frozen=True)
class Output:
    """Where the run is stored and logged.

    Args:
        workdir: Folder of the run: checkpoints, metrics and figures.
        log_to: Where to log in addition to metrics.jsonl; may be given twice.
        folds: Cross-validate: train a model for each of this many folds of the patients, pool their predictions.
        batch_per_device: Number of examples of each device in a step, in place of --batch.
        profile: Number of steps that the profiler traces, in WORKDIR/profile.
        dry_run: Run this number of steps at full size on made-up arrays, print their speed, and read and save nothing.
        take_over: Write to the folder at once although a process on another machine owns it, which is known to be dead.
    """

    workdir: str = ""
    folds: int = 0
    log_to: UseAppendAction[tuple[Literal["tensorboard", "wandb"], ...]] = ()
    batch_per_device: int = 0
    profile: int = 0
    dry_run: int = 0
    take_over: bool = False


@dataclass(frozen=True)
class Fit:
    """Arguments of `launch.py fit`.

    Args:
        workdir: Folder to write: probe/, finetune/, report.html and model/, the better of both.
        folds: Number of folds of the patients; each is predicted by models that have not seen it.
        init: Weights to start from.
        finetune: Fine-tune the encoder after the probe, which takes most of the time.
    """

    workdir: str = ""
    folds: int = 5
    init: str = "imagenet"
    finetune: bool = True


@dataclass(frozen=True)
class Cluster:
    """Arguments for several processes (docs/guide/launching.md).

    Args:
        distributed: Platform that starts the processes: auto finds it out, off uses one process.
        coordinator: Address HOST:PORT of process 0, with --num-processes and --process-id.
        num_processes: Number of processes.
        process_id: Number of this process, counted from 0.
    """

    distributed: str = "auto"
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


@dataclass(frozen=True)
class Stored:
    """Arguments of `launch.py eval`: the run to evaluate.

    Args:
        checkpoint: Checkpoint: best, latest or a step; by default best if the run selected one.
        name: Name of the results on other data than the run's; by default that of the data.
        config: Config to use instead of the copy in the run; the arguments of the run must then be given again.
        trust: Run the copy of the config in the run, even if it is not one of fundax's configs. It is a program: read it first.
        take_over: Write to the folder at once although a process on another machine owns it, which is known to be dead.
    """

    checkpoint: str = ""
    name: str = ""
    config: str = ""
    trust: bool = False
    take_over: bool = False


@dataclass(frozen=True)
class Target:
    """Arguments of `launch.py compile`: the machines to compile for.

    Args:
        topology: TPU slice, such as v5e:4x4, v5p:2x4x4 or v5e:4x4*2 (two slices); without it, the devices of this machine.
        shardings: Print how every array of the state is divided.
        count: Compile nothing: only the memory of the state and the FLOPs, in seconds.
        search: Try meshes and rematerialisation, and print this number of the fastest that fit.
    """

    topology: str = ""
    shardings: bool = False
    count: bool = False
    search: int = 0
