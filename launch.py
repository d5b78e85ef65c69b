"""The command line of fundax. `python launch.py VERB --help` lists the arguments of a verb.

    train CONFIG --workdir DIR [arguments of the config]     train; rerun the same command to resume
    eval RUN [--checkpoint best] [arguments of the config]   evaluate a run again, or on other data
    export RUN OUT --to FORMAT                                write a run as a folder for other programs
    import PATH --workdir DIR                                 write such a folder, or a weights file, as a run
    compile CONFIG --topology v5e:4x4 [...]                   does it fit on a TPU slice, and how fast at best
    predict RUN --left A --right B --classes "x, y"           probabilities per eye and patient (RET-CLIP)
    predict RUN --image A                                     the report of an image (report models)
    predict RUN --image A B ... --out OUT                     masks, or a CSV of landmarks
    synth RUN --n 1000 --out FOLDER                           synthetic images of a diffusion run, each marked as such
    explain RUN IMAGE... --out FOLDER                         where a ViT attends, drawn over the photographs
    report RUN... --out page.html                             one page about runs: intervals, curves, cases, tests
    env gpu|tpu|cpu                                           variables that make training faster, for a shell
    data show | data convert | data build                     a contact sheet; shards of a source; a public data set

Ctrl-C (exit code 130) and SIGTERM (0) finish the step and save. User errors print one line and exit with status 2.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from tyro.conf import UseAppendAction


@dataclass(frozen=True)
class Output:
    """Where the run is stored and logged.

    Args:
        workdir: Folder of the run: checkpoints, metrics and figures.
        log_to: Where to log besides metrics.jsonl; may be given twice.
        batch_per_device: Number of examples of each device in a step, in place of --batch.
        profile: Number of steps that the profiler traces, in WORKDIR/profile.
        dry_run: Run this number of steps at full size on made-up arrays, print their speed, and read and save nothing.
    """

    workdir: str = ""
    log_to: UseAppendAction[tuple[Literal["tensorboard", "wandb"], ...]] = ()
    batch_per_device: int = 0
    profile: int = 0
    dry_run: int = 0


@dataclass(frozen=True)
class Cluster:
    """Several processes (docs/guide/launching.md).

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
    """The run to evaluate.

    Args:
        checkpoint: Checkpoint: best, latest or a step; by default best if the run selected one.
        name: Name of the results on other data than the run's; by default that of the data.
        config: Config to use instead of the copy in the run; the arguments of the run must then be given again.
    """

    checkpoint: str = ""
    name: str = ""
    config: str = ""


@dataclass(frozen=True)
class Target:
    """What to compile for.

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


def train(argv: list[str]) -> None:
    """Train a config. `train CONFIG --help` lists its arguments, too; rerun the same command to resume."""
    from dataclasses import replace

    from fundax.rerun import defaults_to_resume
    from fundax.runtime.remote import mirrored
    from fundax.train import fit, is_complete

    (own, processes), config, rest = _options("train CONFIG", train, argv, Output, Cluster)
    if not own.workdir and "--help" not in rest and not own.dry_run:
        raise _mistake("train: --workdir DIR is missing")
    cluster = _cluster(processes)
    with mirrored(own.workdir) as workdir:
        if own.batch_per_device:
            import jax

            _meet(cluster)  # before the config, which needs the number of devices
            rest = [*rest, f"--batch={own.batch_per_device * jax.device_count()}"]
        defaults = defaults_to_resume(str(workdir) if own.workdir else "", rest)
        recipe = _load(config, rest, Output, Cluster, defaults=defaults)
        recipe = replace(recipe, writers=(*recipe.writers, *own.log_to), profile=own.profile)
        _meet(cluster)  # after the config, whose errors are then found without waiting for other processes
        if own.dry_run:
            from fundax.roofline.dry_run import dry_run

            dry_run(recipe, own.dry_run, str(workdir))
            return
        complete = is_complete(recipe, workdir)
        fit(recipe, workdir)
        if not complete:
            _report(str(workdir))


def evaluate(argv: list[str]) -> None:
    """Evaluate a run with its own config; further arguments change those of the run.

    Other data (--data OTHER) are scored whole, with the run's classes, and stored beside the run's own results.
    """
    from fundax.runtime.remote import mirrored

    (own, processes), run, rest = _options("eval RUN", evaluate, argv, Stored, Cluster)
    cluster = _cluster(processes)
    with mirrored(run) as folder:
        _evaluate(own, cluster, str(folder), rest)


def _evaluate(own: Stored, cluster: Any, run: str, rest: list[str]) -> None:
    from dataclasses import replace

    from fundax.rerun import named, repeated, wrong
    from fundax.runtime.checkpoint import resolve
    from fundax.runtime.workdir import read_config
    from fundax.train import fit

    stored = read_config(run)
    step = resolve(run, own.checkpoint)
    again, defaults = repeated(run, [] if own.config else stored.get("argv", []), rest)
    try:
        config = own.config or str(Path(run) / "config.py")
        recipe = _load(config, again, Stored, Cluster, verb="eval", defaults=defaults)
    except _user_errors() as error:
        raise wrong(error, run, stored, rest) if not own.config else error from None
    _meet(cluster)
    fit(replace(named(recipe, run, own.name, step), steps=0), run, checkpoint=step)
    _report(run)


def predict(argv: list[str]) -> None:
    """Predictions of a model for a patient's images; `predict RUN --help` lists the arguments for that kind of model."""
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise _mistake(f"{self.prog}: {message}")

    parser = Parser(prog="launch.py predict", description=predict.__doc__, allow_abbrev=False, add_help=False)
    parser.add_argument("model", nargs="?", metavar="RUN", help="a run, or an exported folder")
    parser.add_argument(
        "--checkpoint", default="", help="checkpoint: best, latest or a step; by default best if selected"
    )
    own, _ = parser.parse_known_args(argv)
    if own.model is None:
        parser.print_help()
        raise SystemExit(0 if set(argv) & {"-h", "--help"} else 2)
    from rich.console import Console

    from fundax.inference.dispatch import predictor_of

    module = predictor_of(own.model)
    parser.add_argument("-h", "--help", action="help")
    module.add_arguments(parser)
    Console(markup=False, emoji=False).print(module.run(own.model, parser.parse_args(argv)))


def compile_(argv: list[str]) -> None:
    """Compile the training step of a config for a TPU slice, which need not be present; nothing is run.

    Prints memory, collectives and the fastest possible step. Exit code 1: it does not fit into the memory.
    """
    from rich.console import Console

    from fundax.roofline import compile as aot

    (own,), config, rest = _options("compile CONFIG", compile_, argv, Target)
    recipe = _load(config, rest, Target, verb="compile")
    topology = own.topology or None
    console = Console(width=None if sys.stdout.isatty() else 132)
    if own.search:
        from fundax.roofline.search import search, search_table

        if not own.topology:
            raise _mistake("compile: --search needs --topology")

        def recipe_of(mesh: str, remat: str) -> Any:
            return _load(config, [*rest, f"--mesh={mesh}", f"--remat={remat}"], Target, verb="compile")

        console.print(search_table(search(recipe_of, own.topology, own.search), own.topology))
        return
    if own.shardings:
        console.print(aot.shardings_table(recipe, aot.target(recipe, topology)[0]))
    compiled = aot.compile_step(recipe, topology, not own.count)
    console.print(aot.tables(compiled))
    if compiled.fits is False:
        raise SystemExit(1)


# Verbs that also take the arguments of a config or a model; those of fundax/verbs.py take what their signatures say.
VERBS: Mapping[str, Callable[[list[str]], None]] = {
    "train": train,
    "eval": evaluate,
    "compile": compile_,
    "predict": predict,
}


def main(argv: Sequence[str]) -> int:
    """Run one verb; returns the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if argv else 2
    _prepare()
    if argv[0] == "compile" and any(word.startswith("--topology") for word in argv):
        os.environ["JAX_PLATFORMS"] = "cpu"  # an accelerator of this machine is not needed, and not to be used
    try:
        _run(argv[0], list(argv[1:]))
    except _user_errors() as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    except Exception as error:
        if not _among_others():
            raise
        print(_lost(error), file=sys.stderr)
        return 1
    return 0


def _run(verb: str, argv: list[str]) -> None:
    if verb in ("train", "eval", "compile"):
        return VERBS[verb](argv)
    if verb != "env" and any("://" in word for word in argv):
        from fundax.runtime.remote import localized

        with localized(verb, argv) as words:
            return _run_here(verb, words)
    return _run_here(verb, argv)


def _run_here(verb: str, argv: list[str]) -> None:
    if verb in VERBS:
        return VERBS[verb](argv)
    from fundax import verbs
    from fundax.config import call
    from fundax.interop import export_names

    if verb == "data":
        verb, argv = " ".join([verb, *argv[:1]]), argv[1:]
    if verb in ("data", "data -h", "data --help"):
        verbs.list_data_verbs()
        raise SystemExit(2 if verb == "data" else 0)
    if verb not in verbs.VERBS:
        near = difflib.get_close_matches(verb, [*VERBS, *verbs.VERBS, "data"], n=1)
        raise _mistake(f"unknown verb {verb!r}" + (f"; did you mean {near[0]}?" if near else ""))
    return call(verbs.VERBS[verb], argv, f"launch.py {verb}", formats=", ".join(export_names()))


def _options(
    usage: str, verb: Callable[..., None], argv: list[str], *options: type
) -> tuple[list[Any], str, list[str]]:
    """The verb's own options, its positional argument (a config or a run), and the arguments of the config."""
    from fundax.config import show_help, take_options

    found, rest = take_options(argv, *options)
    position = 0
    if rest and rest[0].startswith("-"):  # the config or the run stands behind the arguments
        mine = [k for k, word in enumerate(rest) if word.endswith(".py") or (Path(word) / "config.json").is_file()]
        position = next((k for k in mine if rest[k].endswith(".py")), mine[-1] if mine else 0)
    if not rest or rest[position].startswith("-"):
        show_help(f"launch.py {usage}", verb.__doc__, *options)
        raise SystemExit(0 if "--help" in rest else 2)
    return found, rest[position], rest[:position] + rest[position + 1 :]


def _load(config: str, argv: Sequence[str], *options: type, verb: str = "train", **fields: Any) -> Any:
    from fundax.config import load

    return load(config, argv, others=options, prog=f"launch.py {verb}", **fields)[0]


def _cluster(own: Cluster) -> Any:
    """What the environment and the flags say about other processes; JAX has not started yet."""
    from fundax.runtime.distributed import Flags, has_tpu, resolve_distributed

    flags = Flags(own.distributed, own.coordinator, own.num_processes, own.process_id)
    return resolve_distributed(os.environ, flags, tpu=has_tpu())


def _meet(cluster: Any) -> None:
    from fundax.runtime.distributed import initialize

    message = initialize(cluster)
    import jax

    if jax.process_index() == 0:
        print(message, file=sys.stderr, flush=True)


def _among_others() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


def _lost(error: Exception) -> str:
    """One line where another process has ended, else the whole traceback."""
    import traceback

    import jax

    line = (str(error).strip().splitlines() or [""])[0]
    signs = ("gloo", "nccl", "unavailable", "coordination", "peer", "barrier", "deadline", "another task")
    from_jax = isinstance(error, jax.errors.JaxRuntimeError) or "gloo" in line.lower()  # which raises ValueError too
    if from_jax and any(sign in line.lower() for sign in signs):
        lost = f"error: another process has ended or cannot be reached ({line})"
        return f"{lost}; restart all of them to resume from the last checkpoint"
    return "".join(traceback.format_exception(error))


def _leave(code: int) -> NoReturn:
    """Exit. After an error, sys.exit would wait for the other processes, which may be waiting for this one."""
    if code and _among_others():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _user_errors() -> tuple[type[Exception], ...]:
    from data_pipelines.records import DataError
    from fundax.types import UserError

    return UserError, DataError


def _mistake(message: str) -> Exception:
    from fundax.types import UserError

    return UserError(f"{message} (launch.py --help)")


def _prepare() -> None:
    """Settings to make before JAX is imported: compiled programs are kept from one run to the next."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "fundax" / "jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from fundax.runtime.log import to_console

    to_console()


def _report(workdir: str) -> None:
    """Print tables and draw figures of the finished run, on process 0."""
    import jax

    if jax.process_index() == 0:
        from fundax.results.finished import show

        show(workdir)


if __name__ == "__main__":
    _leave(main(sys.argv[1:]))
