"""Test what a run does when it is resumed with another argument.

    python scripts/resume_matrix.py [--configs quickstart ret_clip finetune] [--only NAME ...]

Trains the smoke run of each config, removes its last checkpoint, and resumes it once for each argument of the config with
another value of that argument. There are three right answers: it ends with the same bits as undisturbed, it continues and
the log names the old and the new value, or it is refused with both values and the folder stays as it was. Prints each
answer. Exits with status 1 for any other one.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO)] if str(REPO) not in sys.path else []
CONFIGS = ("quickstart", "ret_clip", "finetune")
BASE = ("--smoke", "--mesh", "1,1", "--steps", "4", "--save-every", "2", "--eval-every", "2")
NOT_RESUMED = {"smoke"}  # another model altogether


CLASSES, COLOURS = ("AMD", "DR", "normal"), ((200, 60, 60), (60, 200, 60), (60, 60, 200))
# Values that a synthetic set or a table of a few eyes cannot be read with: the error says so, whatever the run was.
IMPOSSIBLE = {"modality_file", "rfmid_root", "separator"}


def files(folder: Path) -> dict[str, str]:
    """Make the files that arguments name: two equal tables in two places, another table, and a table of pairs of eyes."""
    import numpy as np
    from PIL import Image

    found = {}
    for name, rows in (("labels", 36), ("moved", 36), ("others", 24)):
        where = folder / name
        where.mkdir(parents=True)
        lines = ["image,picture,label,text,report,patient"]
        for k in range(rows):
            Image.fromarray(np.full((24, 24, 3), COLOURS[k % 3], np.uint8)).save(where / f"{k}.png")
            lines.append(f"{k}.png,{k}.png,{CLASSES[k % 3]},an eye,an eye,p{k}")
        table = where / ("others.csv" if name == "others" else "labels.csv")
        table.write_text("\n".join(lines) + "\n")
        found[name] = str(table)
    pairs = folder / "pairs.csv"
    pairs.write_text("patient,left,right,text\n" + "".join(f"p{k},labels/{k}.png,,eye {k}\n" for k in range(24)))
    return found | {"pairs": str(pairs), "folder": str(folder / "moved"), "split": str(folder / "split.json")}


def command(config: str, there: Mapping[str, str]) -> list[str]:
    """The arguments that a config is trained with."""
    data = ["--data", there["labels"], "--classes", *CLASSES] if config == "finetune" else ["--patients", "8"]
    return [*BASE, *data]


def arguments(config: str, argv: Sequence[str]) -> Iterator[tuple[str, Any, Any]]:
    """(name, type, value) of every argument in the signature of a config, under a command line."""
    from fundax import config as configs

    path = REPO / "configs" / f"{config}.py"
    values = configs.load(path, argv)[1]
    for name, parameter in inspect.signature(configs.module_of(path).recipe, eval_str=True).parameters.items():
        kind = parameter.annotation
        fields = get_type_hints(kind) if dataclasses.is_dataclass(kind) else {name: kind}
        yield from ((field, fields[field], values[field]) for field in fields if field in values)


def another(config: str, name: str, kind: Any, value: Any, there: Mapping[str, str]) -> list[str]:
    """Words that give an argument another value; [] for one that a resumed run cannot be given."""
    flag = f"--{name.replace('_', '-')}"
    table = there["pairs" if config == "ret_clip" else "others"]
    chosen = {
        "data": table, "val": table, "image_dir": there["folder"], "data_dir": there["folder"], "split": there["split"],
        "rfmid_root": there["folder"], "init": there["run"], "tokenizer": f"{there['run']}/tokenizer", "mesh": "1,1,1",
        "size": "base" if value == "tiny" else "tiny", "text_size": "tiny", "modality": "OCT", "modalities": "OCT",
        "best": "val/accuracy" if config == "finetune" else "zero_shot/accuracy", "fractions": "0.6 0.4", "part": "all",
        "classes": "normal DR AMD", "image_column": "picture", "text_column": "report", "separator": "tab",
        "checkpoint": "latest", "image_size": "64", "fold": "1/3", "modality_file": there["folder"], "tune": "layers:1",
    }  # fmt: skip
    chosen["preset"] = "visionfm" if config == "finetune" else "laptop"
    if name in chosen or name in NOT_RESUMED:
        return [flag, *chosen[name].split()] if name in chosen else []
    if get_origin(kind) is Literal:
        return [flag, next(str(one) for one in get_args(kind) if one not in (value, ""))]
    if isinstance(value, bool):
        return [f"--no-{name.replace('_', '-')}" if value else flag]
    if isinstance(value, int):
        return [flag, str(value + 2 if name == "steps" else 2 * value or 1)]
    if isinstance(value, float):
        return [flag, str(value / 2 or 0.25)]
    if value is None:
        return [flag, "True"]
    raise SystemExit(f"{config}: --{name} has no other value to try; add one to scripts/resume_matrix.py")


def answer(config: str, argv: Sequence[str], workdir: Path) -> tuple[str, str]:
    """("identical", ""), ("line", what changed) or ("refused", the error), as training says before it compiles."""
    from data_pipelines.records import DataError
    from fundax import config as configs
    from fundax.runtime.mesh import make_mesh
    from fundax.train.loop import check_batch, check_best
    from fundax.train.rerun import defaults_to_resume
    from fundax.train.stored import changes, in_words
    from fundax.types import UserError

    try:
        given = defaults_to_resume(str(workdir), argv)
        recipe = configs.load(REPO / "configs" / f"{config}.py", argv, defaults=given)[0]
        check_batch(recipe, make_mesh(recipe.mesh))
        found = changes(recipe, workdir)
        check_best(recipe, recipe.evals)
    except (UserError, DataError) as error:
        return "refused", " ".join(str(error).split())
    return ("line", in_words(found)) if found else ("identical", "")


def right(name: str, kind: str, message: str) -> bool:
    """Whether an answer is one of the three; a refusal and a line name the argument, and the old and the new value."""
    if kind == "identical":
        return name == "split"  # another file of the same parts
    named = re.search(rf"(--{name.replace('_', '-')}|\b{name}|\bclasses|\bdata|\bsplit) [^;]+ -> ", message)
    return bool(named) or (kind == "refused" and name in IMPOSSIBLE)


def cases(config: str, there: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """(name of an argument, the command line that changes it alone) for every argument of a config."""
    argv = command(config, there)
    for name, kind, value in arguments(config, argv):
        if words := another(config, name, kind, value, there):
            yield name, [*argv, *words]


def resumed(config: str, argv: Sequence[str], workdir: Path) -> tuple[int, str]:
    """Resume a run with the command line; returns the exit code and the output."""
    import launch

    message = io.StringIO()
    with contextlib.redirect_stderr(message), contextlib.redirect_stdout(message):
        code = launch.main(["train", str(REPO / "configs" / f"{config}.py"), "--workdir", str(workdir), *argv])
    return code, " ".join(message.getvalue().split())


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def carried_out(config: str, name: str, argv: Sequence[str], run: Path, folder: Path) -> tuple[str, str]:
    """The answer of a resumed run, "wrong" where it did something else."""
    from scripts.kill_and_resume import digest

    kind, message = answer(config, argv, run)
    if not right(name, kind, message):
        return "wrong", f"{kind}: {message}"
    again = folder / "again"
    shutil.rmtree(again, ignore_errors=True)
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / "4")
    before = contents(again)
    code, printed = resumed(config, argv, again)
    if kind == "refused":
        expected = message.replace(str(run), str(again))[:60]
        return (
            (kind, message) if code == 2 and expected in printed and contents(again) == before else ("wrong", printed)
        )
    line = f"changed: {message}" in printed if kind == "line" else "changed:" not in printed
    if code or not line:
        return "wrong", printed[-1000:]
    if kind == "identical" and digest(again) != digest(run):
        return "wrong", "other parameters than those of the undisturbed run"
    return kind, message


def main(argv: Sequence[str] | None = None) -> int:
    """Train each config once, and resume it with each argument."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=CONFIGS, help="names of configs")
    parser.add_argument("--only", nargs="*", help="arguments to change; default all")
    own, wrong, counts = parser.parse_args(argv), 0, {}
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    import launch

    launch._report = lambda workdir: None  # no figures
    with tempfile.TemporaryDirectory() as scratch:
        there = files(Path(scratch, "data"))
        for config in own.configs:
            folder = Path(scratch, config)
            run = folder / "run"
            there["run"] = str(run)
            folder.mkdir()
            code, message = resumed(config, command(config, there), run)
            if code:
                raise SystemExit(f"{config}: {message[-2000:]}")
            for name, changed in [("nothing", command(config, there)), *cases(config, there)]:
                if own.only and name not in own.only:
                    continue
                kind, message = carried_out(config, name if name != "nothing" else "split", changed, run, folder)
                counts[kind] = counts.get(kind, 0) + 1
                wrong += kind == "wrong"
                print(f"{config:10s} {name:14s} {kind:9s} {message[:200]}", flush=True)
    print(", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
