"""The verbs of the command line that scripts/fuzz.py runs on damaged files."""

from __future__ import annotations

import contextlib
import io
import random
import re
import tarfile
from pathlib import Path
from typing import Any

import fuzz_areas
import numpy as np
from fuzz_areas import OLD, PIXELS, run_files
from PIL import Image

import launch
from data_pipelines.convert import Sizing, convert
from data_pipelines.datasets import idrid
from data_pipelines.open import named


def verb(*argv: Any) -> None:
    """Run a verb of the command line. The exit code must be 0, or 2 after a one-line error."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            code = launch.main([str(word) for word in argv])
    except SystemExit as error:
        code = error.code
    last = (printed.getvalue().strip().splitlines() or [""])[-1]
    if code not in (0, 2) or "Traceback" in printed.getvalue() or (code == 2 and not re.search(r"\berror: \S", last)):
        raise AssertionError(f"launch.py {' '.join(map(str, argv))} ended with {code}: {printed.getvalue()[-2000:]}")
    fuzz_areas.refused += code == 2


def verb_files(folder: Path) -> list[Path]:
    """Write a table and folders of images, a trained run, old runs, an exported folder, shards and IDRiD."""
    for k in range(12):
        (folder / "classes" / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(PIXELS, k, 0)).save(folder / "classes" / "ab"[k % 2] / f"{k}.png")
    lines = [f"classes/{'ab'[k % 2]}/{k}.png,{'ab'[k % 2]},p{k},eye {k}" for k in range(12)]
    (folder / "images.csv").write_text("image,label,patient,text\n" + "\n".join(lines) + "\n")
    argv = ["--smoke", "--data", str(folder / "images.csv"), "--workdir", str(folder / "trained")]
    if launch.main(["train", "configs/linear_probe.py", *argv]):
        raise SystemExit("the run to damage could not be trained")
    run_files(folder)
    for name in ("timm", "open_clip"):
        with tarfile.open(OLD / "exports" / f"{name}.tar.xz") as archive:
            archive.extractall(folder, filter="data")
    convert(named(str(folder / "images.csv")).source, folder / "shards", Sizing(16))
    for images, labels in idrid.SPLITS.values():
        place = folder / "B. Disease Grading" / idrid.IMAGES / images
        place.mkdir(parents=True)
        (folder / "B. Disease Grading" / idrid.TABLES).mkdir(exist_ok=True)
        Image.fromarray(PIXELS).save(place / "IDRiD_001.jpg")
        header = "Image name,Retinopathy grade,Risk of macular edema ,,\nIDRiD_001,3,2,,\n"
        (folder / "B. Disease Grading" / idrid.TABLES / labels).write_text(header)
    kept = (
        "images.csv",
        "classes",
        "trained",
        "classify_vit",
        "report_vit",
        "timm",
        "open_clip",
        "shards",
        "B. Disease Grading",
    )
    paths = [path for name in kept for path in [folder / name, *(folder / name).rglob("*")] if path.is_file()]
    return [path for path in paths if path.suffix not in (".py", ".md", ".png") or path.parent.name in "ab"]


def open_verb(path: Path, rng: random.Random) -> None:
    """Run a verb that reads the damaged file."""
    root = next(parent for parent in path.parents if (parent / "B. Disease Grading").exists())
    verb(*rng.choice(_verbs(root, path, rng)))


def _verbs(root: Path, path: Path, rng: random.Random) -> list[tuple[Any, ...]]:
    """The commands that read a file of the folder `root`."""
    top, out, table, run = path.relative_to(root).parts[0], root / "out", root / "images.csv", root / "trained"
    image = path if path.suffix == ".png" else root / "classes" / "a" / "0.png"
    sheet, shards = ("--out", root / "sheet.png"), f"array_record:{root / 'shards'}"
    if top in ("images.csv", "classes"):
        source = rng.choice((table, root / "classes", f"{table},label=,text=text", f"{table},classes=a:[/x]+b:b"))
        return [
            ("data", "show", "--source", source, *sheet),
            ("data", "convert", "--source", source, "--out", out, "--size", 16),
            ("predict", root / "classify_vit", "--image", image, "--out", out),
            ("explain", root / "classify_vit", image, "--out", out),
            ("eval", run, "--data", source, "--name", "other"),
            ("train", "configs/linear_probe.py", "--smoke", "--data", source, "--workdir", out),
        ]
    if top in ("trained", "classify_vit", "report_vit"):
        own = [("eval", run), ("train", run / "config.py", "--smoke", "--data", table, "--workdir", run)] * (
            top == "trained"
        )
        return [
            *own,
            ("predict", root / top, "--image", image),
            ("report", root / top, "--out", out, "--resamples", 5),
            ("explain", root / top, image, "--out", out),
            ("export", root / top, out, "--to", rng.choice(("timm", "visionfm", "huggingface", "ffa_captioner"))),
        ]
    if top == "shards":
        convert_again = ("data", "convert", "--source", shards, "--out", out, "--size", 8)
        return [("data", "show", "--source", shards, *sheet), convert_again]
    if top in ("timm", "open_clip"):
        return [("import", root / top, "--workdir", out), ("predict", root / top, "--image", image)]
    return [("data", "build", "idrid", "--from", root, "--data-dir", out)]
