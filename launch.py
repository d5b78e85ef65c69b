"""The command line of fundax. `python launch.py VERB --help` says what a verb takes.

    train CONFIG --workdir DIR [arguments of the config]     learn; the same command goes on after a stop
    eval DIR [--checkpoint best] [arguments of the config]   the evaluations of a run, again or on other data
    export DIR --to FORMAT OUT                                a run as a folder for other programs
    import PATH --workdir DIR                                 such a folder, or a checkpoint file, as a run
    compile CONFIG --topology v5e:4x4 [...]                   does it fit a TPU slice, and how fast at best; without one
    predict DIR --left A --right B --classes "x, y"           probabilities per eye and patient, of a RET-CLIP model
    predict DIR --image A                                     the report of an image, of a report model
    predict DIR --image A B ... --out OUT                     masks, or a CSV of landmarks, of such a model
    synth DIR --n 1000 --out FOLDER                           synthetic images of a diffusion run, each marked as such
    explain DIR IMAGE... --out FOLDER                         where a ViT's attention lies, over the photographs
    report RUN... --out page.html                             one page about runs: intervals, curves, cases, tests between them
    data show | data convert | data build                     a contact sheet of a source; shards of it; a public data set

Ctrl-C (exit code 130) and SIGTERM (0) finish the step and save. A mistake of the user's is one line and exit code 2.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fundax import arguments


def train(argv: list[str]) -> None:
    """Train a config; its own arguments follow, and `train CONFIG --help` lists them."""
    parser = _parser("train", train, allow_abbrev=False, add_help=False)
    parser.add_argument("config", nargs="?")
    parser.add_argument("--workdir", help="folder of the run: checkpoints, metrics, figures")
    writers: Any = {"action": "append", "default": [], "choices": ("tensorboard", "wandb")}
    parser.add_argument("--log-to", help="beside metrics.jsonl; may be given twice", **writers)
    parser.add_argument("-h", "--help", action="store_true")
    _cluster_arguments(parser)
    own, rest = parser.parse_known_args(argv)
    if own.config is None:
        parser.print_help()
        raise SystemExit(0 if own.help else 2)
    if own.workdir is None and not own.help:
        raise _mistake("train: --workdir DIR is missing")
    cluster = _cluster(own)
    _prepare()
    from dataclasses import replace

    from fundax.recipe import load
    from fundax.train import fit

    recipe, _ = load(own.config, [*rest, "--help"] if own.help else rest)  # --help ends here
    _meet(cluster)  # after the config: its mistakes are found without waiting for others
    fit(replace(recipe, writers=(*recipe.writers, *own.log_to)), own.workdir or "")
    _report(own.workdir or "")


def evaluate(argv: list[str]) -> None:
    """Evaluate a run with its own config; further arguments change the config's, such as other data."""
    parser = _parser("eval", evaluate, allow_abbrev=False)
    parser.add_argument("workdir")
    parser.add_argument("--checkpoint", default="latest", help="latest, best or a step")
    _cluster_arguments(parser)
    own, rest = parser.parse_known_args(argv)
    cluster = _cluster(own)
    _prepare()
    from dataclasses import replace

    from fundax.recipe import load
    from fundax.runtime.checkpoint import resolve
    from fundax.runtime.workdir import read_config
    from fundax.train import fit

    argv = read_config(own.workdir).get("argv", [])
    resolve(own.workdir, own.checkpoint)
    recipe, _ = load(Path(own.workdir) / "config.py", [*argv, *rest])
    _meet(cluster)
    fit(replace(recipe, steps=0), own.workdir, checkpoint=own.checkpoint)
    _report(own.workdir)


def export(argv: list[str]) -> None:
    """Write a run as a folder that other programs open."""
    parser = _parser("export", export)
    parser.add_argument("workdir")
    parser.add_argument("--to", required=True, help="huggingface, open_clip, ret_clip, bert, timm, visionfm, retfound")
    parser.add_argument("out")
    parser.add_argument("--checkpoint", default="latest", help="latest, best or a step")
    parser.add_argument("--overwrite", action="store_true")
    own = parser.parse_args(argv)
    _prepare()
    from fundax.interop.exchange import export_run

    print(export_run(own.workdir, own.to, own.out, checkpoint=own.checkpoint, overwrite=own.overwrite))


def import_(argv: list[str]) -> None:
    """Read a checkpoint of another program into a run."""
    parser = _parser("import", import_)
    parser.add_argument("path")
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--like", help="the size, such as H/14-378, of a file without configuration beside it")
    parser.add_argument("--modality", default="", help="of an image encoder: whose normalisation it takes; ImageNet's")
    own = parser.parse_args(argv)
    _prepare()
    from fundax.interop.exchange import import_run

    print(import_run(own.path, own.workdir, own.like, own.modality))


def predict(argv: list[str]) -> None:
    """What a model says of a patient's images; `predict MODEL --help` lists what that model takes."""
    parser = _parser("predict", predict, allow_abbrev=False, add_help=False)
    parser.add_argument("model", nargs="?", help="a run, or a folder that another program's layout was written to")
    parser.add_argument("--checkpoint", default="latest", help="latest, best or a step")
    own, _ = parser.parse_known_args(argv)
    if own.model is None:
        parser.print_help()
        raise SystemExit(0 if set(argv) & {"-h", "--help"} else 2)
    _prepare()
    from rich.console import Console

    from fundax.inference.dispatch import predictor_of

    module = predictor_of(own.model)
    parser.add_argument("-h", "--help", action="help")
    module.add_arguments(parser)
    Console().print(module.run(own.model, parser.parse_args(argv)))


def compile_(argv: list[str]) -> None:
    """Compile a config's train step for a TPU slice that need not be there (or for the devices here); run nothing.

    Memory against the chip's, collectives, and the step time its peak numbers allow. Exit code 1: it does not fit.
    """
    parser = _parser("compile", compile_, allow_abbrev=False)
    parser.add_argument("config")
    parser.add_argument("--topology", help="v5e:4x4, v5p:2x4x4, v6e:16x16, v5e:4x4*2 (two slices), ...")
    parser.add_argument("--mesh", help="data,model or data,fsdp,model instead of the config's; one may be -1")
    parser.add_argument("--shardings", action="store_true", help="print how every array of the state is split")
    parser.add_argument(
        "--count", action="store_true", help="compile nothing: memory of the state and FLOPs, in seconds"
    )
    own, rest = parser.parse_known_args(argv)
    if own.topology:
        os.environ["JAX_PLATFORMS"] = "cpu"  # the host needs no accelerator, and one that is there is not wanted
    _prepare()
    from dataclasses import replace

    from rich.console import Console

    from fundax.recipe import load
    from fundax.roofline import compile as aot

    recipe, _ = load(own.config, rest)
    if own.mesh:
        recipe = replace(recipe, mesh=_sizes(own.mesh))
    console = Console(width=None if sys.stdout.isatty() else 132)
    if own.shardings:
        console.print(aot.shardings_table(recipe, aot.target(recipe, own.topology)[0]))
    report = aot.compile_step(recipe, own.topology, not own.count)
    console.print(aot.tables(report))
    if report.fits is False:
        raise SystemExit(1)


def _sizes(words: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in words.split(","))
    except ValueError:
        raise _mistake(f"compile: --mesh {words!r}: expected numbers such as 4,2 or 1,-1,2") from None


def synth(argv: list[str]) -> None:
    """Images of a diffusion run, with a manifest that marks each as synthetic and a check against memorisation."""
    parser = _parser("synth", synth)
    arguments.synth(parser)
    own = parser.parse_args(argv)
    _prepare()
    from fundax.inference.synthesize import How, summary, synthesize

    findings = None if own.findings is None else tuple(name.strip() for name in own.findings.split(",") if name.strip())
    how = How(own.seed, own.steps, own.sampler, own.guidance, findings, own.modality, own.batch)
    fields = {"checkpoint": own.checkpoint, "base": own.base, "check": not own.no_check, "overwrite": own.overwrite}
    print(summary(own.out, synthesize(own.workdir, own.out, own.n, how, **fields)))


def explain(argv: list[str]) -> None:
    """Where the class token of a run's ViT looks, over photographs: each head, their mean, and rollout."""
    parser = _parser("explain", explain)
    arguments.explain(parser)
    own = parser.parse_args(argv)
    _prepare()
    from fundax.inference.explain import explain as draw

    fields = {"checkpoints": own.checkpoints, "modality": own.modality, "mass": own.mass, "overwrite": own.overwrite}
    for path in draw(own.workdir, own.images, own.out, **fields):
        print(path)


def report(argv: list[str]) -> None:
    """One HTML page about one run or several: numbers with intervals, pictures, groups, cases, tests, configuration."""
    parser = _parser("report", report)
    arguments.report(parser)
    own = parser.parse_args(argv)
    _prepare()
    from fundax.results.page import report as write

    print(write(own.runs, own.out, title=own.title, resamples=own.resamples, attention=own.attention))


def data(argv: list[str]) -> None:
    """Look at a source (show), write it as ArrayRecord shards (convert), or write a public data set as TFDS (build)."""
    parser = _parser("data", data)
    arguments.data(parser)
    own = parser.parse_args(argv)
    if own.verb == "build":
        from data_pipelines.datasets import build as write
        from data_pipelines.open import DATA_DIR

        print(write(own.name, own.from_dir, own.data_dir or DATA_DIR))
    elif own.verb == "convert":
        from data_pipelines.convert import Sizing, convert
        from data_pipelines.open import DATA_DIR, named

        source = named(own.source, data_dir=own.data_dir or DATA_DIR).source
        sizing = Sizing(own.size, own.images, own.quality)
        print(convert(source, own.out, sizing, shard=own.shard, workers=own.workers))
    else:
        from data_pipelines.contact_sheet import contact_sheet
        from data_pipelines.open import DATA_DIR, named

        source = named(own.source, data_dir=own.data_dir or DATA_DIR).source
        print(contact_sheet(source, own.out, count=own.count, start=own.start))


VERBS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "eval": evaluate,
    "export": export,
    "import": import_,
    "compile": compile_,
    "predict": predict,
    "synth": synth,
    "explain": explain,
    "report": report,
    "data": data,
}


def main(argv: Sequence[str]) -> int:
    """Run one verb; the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if argv else 2
    try:
        if argv[0] not in VERBS:
            near = difflib.get_close_matches(argv[0], VERBS, n=1)
            raise _mistake(f"unknown verb {argv[0]!r}" + (f"; did you mean {near[0]}?" if near else ""))
        VERBS[argv[0]](list(argv[1:]))
    except _user_errors() as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    except Exception as error:
        if not _among_others():
            raise
        print(_lost(error), file=sys.stderr)
        return 1
    return 0


def _cluster_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("several processes (docs/launching.md)")
    group.add_argument("--distributed", default="auto", metavar="NAME", help="auto, off, or the platform's name")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0; with --num-processes, --process-id")
    group.add_argument("--num-processes", type=int, metavar="N")
    group.add_argument("--process-id", type=int, metavar="I")


def _cluster(own: argparse.Namespace) -> Any:
    """What the environment and the flags say of other processes; JAX has not started."""
    from fundax.runtime.distributed import Flags, has_tpu, resolve_distributed

    flags = Flags(own.distributed, own.coordinator, own.num_processes, own.process_id)
    return resolve_distributed(os.environ, flags, tpu=has_tpu())


def _meet(cluster: Any) -> None:
    from fundax.runtime.distributed import initialize

    said = initialize(cluster)
    import jax

    if jax.process_index() == 0:
        print(said, file=sys.stderr, flush=True)


def _among_others() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


def _lost(error: Exception) -> str:
    """One line where another process has gone, else the whole traceback."""
    import traceback

    import jax

    line = (str(error).strip().splitlines() or [""])[0]
    signs = ("gloo", "nccl", "unavailable", "coordination", "peer", "barrier", "deadline", "another task")
    told_by_jax = isinstance(error, jax.errors.JaxRuntimeError) or "gloo" in line.lower()  # which raises ValueError too
    if told_by_jax and any(sign in line.lower() for sign in signs):
        return f"error: another process has ended or cannot be reached ({line}); start all again to go on from the last save"
    return "".join(traceback.format_exception(error))


def _leave(code: int) -> NoReturn:
    """Exit. After an error the other processes are not waited for: they may be waiting for this one."""
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


class _Parser(argparse.ArgumentParser):
    """Mistakes as one line, with the nearest known name."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise _mistake(f"{self.prog}: {message}")


def _parser(verb: str, function: Callable[[list[str]], None], **fields: object) -> argparse.ArgumentParser:
    return _Parser(prog=f"launch.py {verb}", description=function.__doc__, **fields)  # type: ignore[arg-type]


def _prepare() -> None:
    """Before JAX is imported: compiled programs are kept from one run to the next."""
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
