"""Fuzz the file readers: damage files in many ways and open them. Every case must load or raise a one-line error.

    python scripts/fuzz.py [--cases 5000] [--seed 0] [--area images] [--show]

The areas are images, tables, weights, runs, shards and knowledge. A case is a small valid file with a few random changes:
bytes flipped, cut, zeroed, repeated or inserted; cells, quotation marks, separators and encodings of a table; values of a JSON
file. Each case is opened in a child process of its own with 5 s of processor time and 1 GiB of additional memory. Exits with
status 1 if a case ended with a traceback, took too long, took too much memory, crashed or ran code. `--show` prints each of
them with its number; `--only N` runs that case in this process.
"""

from __future__ import annotations

import argparse
import atexit
import functools
import json
import os
import random
import resource
import shutil
import sys
import tarfile
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.convert import Sizing, convert
from data_pipelines.images import decode, masks
from data_pipelines.language import knowledge
from data_pipelines.open import named
from data_pipelines.records import DataError
from data_pipelines.sources.ret_clip import open_pairs
from data_pipelines.sources.shards import array_records
from data_pipelines.sources.wrap import wrap
from fundax.interop import weights
from fundax.results.read import read_run
from fundax.runtime import serialize
from fundax.runtime.workdir import read_config, read_json, write_arrays
from fundax.types import UserError

REPO = Path(__file__).resolve().parent.parent
SECONDS, MEMORY = 5, 2**30
CLEAR, ACCEPTED, TRACEBACK, MEMORY_ERROR, CODE = range(10, 15)  # exit codes of a child
NAMES = {CLEAR: "clear", ACCEPTED: "accepted", TRACEBACK: "traceback", MEMORY_ERROR: "memory", CODE: "code"}
BAD = ("traceback", "memory", "code", "hang", "crash")
CALLS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "os.spawn", "pty.spawn", "webbrowser.open")


@dataclass(frozen=True)
class Area:
    """Valid files to damage (name, bytes), and the function that opens the damaged one. `prepare` fills the folder."""

    seeds: Callable[[Path], list[Path]]
    open: Callable[[Path], Any]
    damage: Callable[[bytes, random.Random], bytes]


# ----------------------------------------------------------------------------------------------- how files are damaged


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """Make one to four changes of bytes."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        length = rng.choice((1, 2, 8, 64, 1024))
        kind = rng.randrange(6)
        if kind == 0 and out:
            for place in range(at, min(at + length, len(out))):
                out[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at:]
        elif kind == 2:
            out[at : at + length] = bytes(min(length, len(out) - at))
        elif kind == 3:
            out[at:at] = out[at : at + length]
        elif kind == 4:
            out[at:at] = rng.randbytes(rng.choice((1, 4, 32)))
        else:
            head = min(64, len(out))  # headers hold sizes
            out[rng.randrange(head + 1) : head] = rng.randbytes(rng.randint(0, 4))
    return bytes(out)


def damage_table(data: bytes, rng: random.Random) -> bytes:
    """Change cells, quotation marks, separators, lines and the encoding of a table."""
    text = data.decode()
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(text) + 1)
        bit = rng.choice(
            ('"', ",", ";", "\t", "\n", "\r", "\0", "{", "}", "nan", "-1", "1e999", "\ufeff", "\U0001f441", "\\")
        )
        kind = rng.randrange(4)
        if kind == 0:
            text = text[:at] + bit + text[at:]
        elif kind == 1:
            lines = text.splitlines(keepends=True)
            rng.shuffle(lines) if rng.random() < 0.3 else lines.pop(rng.randrange(len(lines))) if lines else None
            text = "".join(lines)
        elif kind == 2:
            text = text[:at] + text[at + rng.randint(1, 8) :]
        else:
            text = text.replace(rng.choice((",", "\n", '"', "left", "0", "drusen")), bit, rng.randint(1, 3))
    encoding = rng.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16", "gb18030", "latin-1", "raw"))
    encoded = text.encode("utf-8" if encoding == "raw" else encoding, "replace")
    return damage_bytes(encoded, rng) if encoding == "raw" else encoded


def damage_json(data: bytes, rng: random.Random) -> bytes:
    """Change values, keys and types anywhere in a JSON file, or sometimes its bytes."""
    if rng.random() < 0.3:
        return damage_bytes(data, rng)
    value = json.loads(data)
    for _ in range(rng.randint(1, 3)):
        parents = [(value, key) for key in _keys(value)] + list(_places(value))
        if not parents:
            break
        parent, key = rng.choice(parents)
        other = rng.choice((None, 0, -1, 1e308, "", "x", "../x", "\ud800", [], {}, [1, "a"], True, "A" * 1000))
        if isinstance(parent, dict) and rng.random() < 0.2:
            parent.pop(key, None)
        else:
            parent[key] = other
    return json.dumps(value).encode()


def _keys(value: Any) -> list[Any]:
    return list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below a value."""
    inside = [value[key] for key in _keys(value)]
    return [(one, key) for one in inside for key in _keys(one)] + [place for one in inside for place in _places(one)]


# ------------------------------------------------------------------------------------------------------------ the areas

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)


def image_files(folder: Path) -> list[Path]:
    """One small image of every format and depth."""
    picture, paths = Image.fromarray(PIXELS), []
    for suffix in ("jpg", "png", "tif", "bmp", "gif", "webp", "ppm"):
        paths.append(folder / f"a.{suffix}")
        picture.save(paths[-1])
    for mode in ("L", "1", "P", "CMYK", "RGBA", "I;16", "F"):
        paths.append(folder / f"{mode.replace(';', '')}.{'png' if mode in ('L', '1', 'P', 'RGBA', 'I;16') else 'tif'}")
        converted = picture.convert("L").convert(mode) if mode in ("I;16", "F") else picture.convert(mode)
        converted.save(paths[-1])
    return paths


def open_image(path: Path) -> None:
    """Read a file as an image, at full and at reduced scale, and as a mask."""
    for read in (decode.load, lambda one: decode.load(one, 8), masks.load_mask):
        _try(read, path)


TABLE = '''image,text,label,patient,eye,modality,day,A,B
a.jpg,"normal, but mild drusen",normal,p1,left,CFP,2024-07-31,0,1
a.jpg,drusen of the left eye,AMD,p2,right,OCT,2024-08-01,1,0
a.jpg,"no ""drusen""",AMD,p3,left,CFP,2024-08-02,,1
'''


def table_files(folder: Path) -> list[Path]:
    """A table of images and one of pairs of eyes."""
    Image.fromarray(PIXELS).save(folder / "a.jpg")
    (folder / "images.csv").write_text(TABLE, encoding="utf-8")
    (folder / "pairs.csv").write_text(
        "patient,left,right,text\np1,a.jpg,a.jpg,drusen\np2,a.jpg,,clear\n", encoding="utf-8"
    )
    return [folder / "images.csv", folder / "pairs.csv"]


def open_table(path: Path) -> None:
    """Read every row: as it is, with several labels, with a template, and as pairs of eyes."""
    for word in (str(path), f"{path},label=A+B,empty=keep", f"{path},text=eye with {{text}}"):
        _try(lambda word: _rows(named(word).source), word)
    _try(lambda one: _rows(open_pairs(str(one), "")), path)


def weight_files(folder: Path) -> list[Path]:
    """The same arrays in every container that needs no torch, and a pickle of torch's zip form where torch is there."""
    state = {"a.weight": np.ones((3, 2), np.float32), "a.bias": np.zeros(3, np.float32)}
    weights.write_safetensors(state, folder / "model.safetensors")
    np.savez(folder / "model.npz", **state)  # pyright: ignore[reportArgumentType]
    index = {"metadata": {}, "weight_map": dict.fromkeys(state, "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    paths = [folder / "model.safetensors", folder / "model.npz", folder / "model.safetensors.index.json"]
    try:
        import torch
    except ImportError:
        return paths
    torch.save({k: torch.from_numpy(v) for k, v in state.items()}, folder / "model.pt")
    return [*paths, folder / "model.pt"]


def run_files(folder: Path) -> list[Path]:
    """The files of a small run, beside its checkpoint, and a result."""
    with tarfile.open(REPO / "tests" / "system" / "old_runs" / "workdirs" / "classify_vit.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    run = folder / "classify_vit"
    truth, score = np.tile(np.arange(3), 6), np.random.default_rng(0).random((18, 3)).astype(np.float32)
    write_arrays(
        run,
        "val",
        {
            "kind": np.array("classification"),
            "labels": truth,
            "probabilities": score / score.sum(1, keepdims=True),
            "classes": np.array(["a", "b", "c"]),
        },
    )
    rows = [json.dumps({"step": step, "time": 0.1, "val/macro_auc": 0.5}) for step in (1, 2)]
    (run / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    return [path for path in run.rglob("*") if path.suffix in (".json", ".jsonl", ".npz")]


def open_run(path: Path) -> None:
    """Call all functions that open a run without its checkpoint."""
    run = next(parent for parent in path.parents if (parent / "config.json").exists())
    _try(read_config, run)
    _try(lambda one: serialize.from_json(read_config(one)["objective"]), run)
    _try(lambda one: read_json(one / "preprocessing.json"), run)
    _try(lambda one: [read_run(one)], run)


def shard_files(folder: Path) -> list[Path]:
    """One shard of two records."""
    out = convert(wrap([(PIXELS, "drusen"), (PIXELS, "clear")]), folder / "shards", Sizing(16))
    return sorted(out.iterdir())


AREAS = {
    "images": Area(image_files, open_image, damage_bytes),
    "tables": Area(table_files, open_table, damage_table),
    "weights": Area(weight_files, lambda path: _try(weights.read_state, path), damage_bytes),
    "runs": Area(run_files, open_run, lambda data, rng: _by_kind(data, rng)),
    "shards": Area(shard_files, lambda path: _try(lambda one: _rows(array_records(one)), path.parent), damage_bytes),
    "knowledge": Area(
        lambda folder: [Path(shutil.copy(knowledge.FILE, folder / "knowledge.json"))],
        lambda path: _try(knowledge.load, path),
        damage_json,
    ),
}


def _by_kind(data: bytes, rng: random.Random) -> bytes:
    return damage_json(data, rng) if data[:1] == b"{" and b"\n{" not in data[:4096] else damage_bytes(data, rng)


def _rows(source: Any) -> None:
    for row in range(len(source)):
        _ = source[row]


_accepted = 0  # in a child: number of functions that opened the case without an error


def _try(function: Callable[[Any], Any], argument: Any) -> None:
    """Call a function that may raise a one-line DataError or UserError; other errors are not caught."""
    global _accepted
    try:
        function(argument)
        _accepted += 1
    except (DataError, UserError) as error:
        if "\n" in str(error) or not str(error).strip():
            raise AssertionError(f"not one line: {str(error)!r}") from error


# -------------------------------------------------------------------------------------------------------- running cases


@functools.cache
def valid_files(name: str) -> tuple[Path, list[Path]]:
    """A folder with the valid files of an area, and those to damage."""
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz_{name}_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder, [path.relative_to(folder) for path in sorted(AREAS[name].seeds(folder))]


def run_case(name: str, folder: Path, seed: int) -> None:
    """Write and open the case of a seed."""
    rng, area = random.Random(seed), AREAS[name]
    valid, paths = valid_files(name)
    shutil.copytree(valid, folder, dirs_exist_ok=True)
    path = folder / paths[rng.randrange(len(paths))]
    path.write_bytes(area.damage(path.read_bytes(), rng))
    area.open(path)


def in_child(name: str, seed: int, show: bool) -> str:
    """Run a case in a child process; the result is clear, accepted, traceback, memory, code, hang or crash."""
    valid_files(name)  # once, before the fork
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if child == 0:
            os._exit(_child(name, Path(folder), seed, show))
        _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        return NAMES.get(os.WEXITSTATUS(status), "crash")
    return "hang" if os.WTERMSIG(status) in (24, 9) else "crash"  # SIGXCPU


def _child(name: str, folder: Path, seed: int, show: bool) -> int:
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    if not show:
        os.dup2(silent, 2)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    called: list[str] = []
    sys.addaudithook(lambda event, _: called.append(event) if event in CALLS else None)
    try:
        run_case(name, folder, seed)
    except MemoryError:
        return MEMORY_ERROR
    except BaseException:
        traceback.print_exc()
        return TRACEBACK
    return CODE if called else ACCEPTED if _accepted else CLEAR


def main(argv: list[str] | None = None) -> int:
    """Run the cases; returns the exit code."""
    warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)  # the children use no JAX computation
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cases", type=int, default=5000, help="number of cases, over all areas (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the first case (default: %(default)s)")
    parser.add_argument("--area", choices=sorted(AREAS), help="one area only")
    parser.add_argument("--show", action="store_true", help="print the tracebacks")
    parser.add_argument("--only", type=int, help="run the case of this seed in this process; needs --area")
    args = parser.parse_args(argv)
    if args.only is not None:
        with tempfile.TemporaryDirectory() as folder:
            run_case(args.area, Path(folder), args.only)
        return 0
    names = [args.area] if args.area else list(AREAS)
    counts = {name: Counter[str]() for name in names}
    for number in range(args.cases):
        name = names[number % len(names)]
        result = in_child(name, args.seed + number, args.show)
        counts[name][result] += 1
        if result in BAD:
            print(f"{name} {args.seed + number}: {result}", file=sys.stderr, flush=True)
    for name, count in counts.items():
        print(f"{name:10} {sum(count.values()):5}  " + ", ".join(f"{kind} {n}" for kind, n in sorted(count.items())))
    return int(any(count[kind] for count in counts.values() for kind in BAD))


if __name__ == "__main__":
    sys.exit(main())
