"""The command line of fundax. `python launch.py VERB --help` lists the arguments of a verb.

    train CONFIG --workdir DIR [arguments of the config]     train; rerun the same command to resume
    fit images.csv --workdir DIR                             a classifier of photographs, from ImageNet's weights
    eval RUN [--checkpoint best] [arguments of the config]   evaluate a run again, or on other data
    export RUN OUT --to FORMAT                                write a run as a folder for other programs
    push FOLDER OWNER/NAME                                    upload an exported folder to the Hugging Face hub
    import PATH --workdir DIR                                 write such a folder, or a weights file, as a run
    compile CONFIG --topology v5e:4x4 [...]                   does it fit on a TPU slice, and how fast at best
    predict RUN --image A B ... [--classes "x, y"]            classes in words, labels, values, masks, points, reports
    predict RUN --left A --right B --classes "x, y"           probabilities per eye and patient (RET-CLIP)
    predict RUN --view cfp_left=A oct_left=B --classes "x, y" probabilities per view, eye and visit (models of visits)
    embed RUN FOLDER_OR_TABLE... --out features.npz           features of any number of images
    synth RUN --n 1000 --out FOLDER                           synthetic images of a diffusion run, each marked as such
    explain RUN IMAGE... --out FOLDER [--text "exudates"]     what a model reads, drawn over the photographs
    serve RUN                                                a page and an API that show photographs to a model
    report RUN... --out page.html                             one page about runs: intervals, curves, cases, tests
    env gpu|tpu|cpu                                           variables that make training faster, for a shell
    data show | data convert | data build                     a contact sheet; shards of a source; a public data set
    data synthesize | data stats                              synthetic visits as files; mean and deviation of modalities

Ctrl-C (exit code 130) and SIGTERM (0) stop training at once and save. User errors print one line and exit with status 2.
"""

from __future__ import annotations

import difflib
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fundax.cli.options import Cluster, Fit, Output, Stored, Target


def train(argv: list[str]) -> None:
    """Train a config. `train CONFIG --help` lists its arguments, too; rerun the same command to resume."""
    from dataclasses import replace

    from fundax.runtime.remote import mirrored
    from fundax.train import fit, is_complete
    from fundax.train.rerun import defaults_to_resume

    (own, processes), config, rest = _options("train CONFIG", train, argv, Output, Cluster)
    if not own.workdir and "--help" not in rest and not own.dry_run:
        raise _mistake("train: --workdir DIR is missing")
    if own.folds:
        _cross_validate(config, rest, own, _cluster(processes))
        return
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
        fit(recipe, workdir, take_over=own.take_over)
        if not complete:
            _report(str(workdir))


def _cross_validate(config: str, argv: list[str], own: Output, cluster: Any) -> None:
    """Train all folds; print their pooled metrics and write a page about them."""
    from fundax.cli.folds import cross_validate

    recipes = _recipes(config, argv)
    recipes("--fold", f"1/{own.folds}")  # errors come before other processes are met
    _meet(cluster)
    page = cross_validate(recipes, own.workdir, own.folds, own.take_over)
    _report(own.workdir)
    print(page)


def _recipes(config: str, argv: list[str]) -> Callable[..., Any]:
    """The recipe of a config under these arguments and further ones."""
    return lambda *more: _load(config, [*argv, *more], Output, Cluster)


def fit_photographs(argv: list[str]) -> None:
    """Fit a classifier of photographs: a probe of a pretrained encoder, then fine-tuning, both cross-validated by patient.

    DATA is a table, or a folder with a folder for each class. Further arguments are those that configs/linear_probe.py and
    configs/finetune.py both have, such as --classes, --image-size and --ordered.
    """
    from fundax.cli.folds import fit_better

    (own, processes), data, rest = _options("fit DATA", fit_photographs, argv, Fit, Cluster)
    if not own.workdir:
        raise _mistake("fit: --workdir DIR is missing")
    configs, shared = Path(__file__).parent / "configs", ["--data", data, "--init", own.init, *rest]
    runs = {"probe": _recipes(str(configs / "linear_probe.py"), shared)}
    if own.finetune:
        runs["finetune"] = _recipes(str(configs / "finetune.py"), ["--preset", "photographs", *shared])
    for recipes in runs.values():
        recipes("--fold", f"1/{own.folds}")
    _meet(_cluster(processes))
    print(fit_better(runs, own.workdir, own.folds))


def evaluate(argv: list[str]) -> None:
    """Evaluate a run with its own config; further arguments change those of the run.

    Other data (--data OTHER) are scored whole, with the run's classes, and stored in addition to the run's own results.
    """
    from fundax.runtime.remote import mirrored

    (own, processes), run, rest = _options("eval RUN", evaluate, argv, Stored, Cluster)
    cluster = _cluster(processes)
    with mirrored(run) as folder:
        _evaluate(own, cluster, str(folder), rest)


def _evaluate(own: Stored, cluster: Any, run: str, rest: list[str]) -> None:
    from dataclasses import replace

    from fundax.runtime.checkpoint import resolve
    from fundax.runtime.workdir import read_config
    from fundax.train import fit
    from fundax.train.rerun import named, repeated, trusted_config, wrong

    stored = read_config(run)
    step = resolve(run, own.checkpoint)
    again, defaults = repeated(run, [] if own.config else stored.get("argv", []), rest)
    config = own.config or str(trusted_config(run, own.trust))
    try:
        recipe = _load(config, again, Stored, Cluster, verb="eval", defaults=defaults)
    except _user_errors() as error:
        raise wrong(error, run, stored, rest) if not own.config else error from None
    _meet(cluster)
    fit(replace(named(recipe, run, own.name, step), steps=0), run, checkpoint=step, take_over=own.take_over)
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
    from fundax.inference.dispatch import predictor_of
    from fundax.runtime.log import console
    from fundax.runtime.workdir import check_output

    module = predictor_of(own.model)
    parser.add_argument("-h", "--help", action="help")
    module.add_arguments(parser)
    given = parser.parse_args(argv)
    if getattr(given, "out", None):
        check_output(given.out)  # before hours of images
    console(stderr=False, soft_wrap=False).print(module.run(own.model, given))


def compile_(argv: list[str]) -> None:
    """Compile the training step of a config for a TPU slice, which need not be present; nothing is run.

    Prints memory, collectives and the fastest possible step. Exit code 1: it does not fit into the memory.
    """
    from fundax.roofline import compile as aot
    from fundax.runtime import log

    (own,), config, rest = _options("compile CONFIG", compile_, argv, Target)
    recipe = _load(config, rest, Target, verb="compile")
    topology = own.topology or None
    console = log.console(stderr=False, soft_wrap=False, width=None if sys.stdout.isatty() else 132)
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


# Verbs that also take the arguments of a config or a model; those of fundax/cli/verbs.py take what their signatures say.
VERBS: Mapping[str, Callable[[list[str]], None]] = {
    "train": train,
    "fit": fit_photographs,
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
        from fundax.runtime.log import printable

        print(printable("error: " + " ".join(str(error).split())), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except Exception as error:
        from fundax.runtime.workdir import refusal

        if refused := refusal(error):  # by the file system
            print(f"error: {refused}", file=sys.stderr)
            return 2
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
    from fundax.cli import verbs
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
    """Detect other processes from the environment and the flags, before JAX starts."""
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
    """A line if another process has ended, else the traceback."""
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
    """Exit. sys.exit would wait for other processes, which may be waiting for this one, and for what a signal left undone."""
    if _abandoned() or (code and _among_others()) or (code == 130):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if code == 2:  # the error is printed; what it left unfinished (Orbax without free files) would add tracebacks
        sys.unraisablehook = lambda unraisable: None
        warnings.simplefilter("ignore")
    sys.exit(code)


def _abandoned() -> bool:
    preemption = sys.modules.get("fundax.runtime.preemption")
    return preemption is not None and preemption.abandoned()


def _code(argv: list[str]) -> int:
    """The exit code of `main`, also where it is left by SystemExit."""
    try:
        return main(argv)
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)


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
    _leave(_code(sys.argv[1:]))
