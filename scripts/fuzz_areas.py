"""The areas of scripts/fuzz.py: valid files, functions that damage them, and functions that read them."""

from __future__ import annotations

import json
import pickle
import random
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_damage import (
    damage_bytes,
    damage_image,
    damage_json,
    damage_lines,
    damage_safetensors,
    damage_table,
    damage_zip,
    hostile_pickle,
    replace_path,
)  # fmt: skip
from PIL import Image

from data_pipelines import contact_sheet, words
from data_pipelines.convert import Sizing, convert
from data_pipelines.images import decode, masks
from data_pipelines.language import knowledge, tokenizers
from data_pipelines.open import named
from data_pipelines.records import DataError
from data_pipelines.sources.flair import flair_frame, mm_retinal
from data_pipelines.sources.ret_clip import PairedLMDB, open_pairs
from data_pipelines.sources.shards import array_records
from data_pipelines.sources.splits import read_split, split_record, write_split
from data_pipelines.sources.wrap import wrap
from fundax.interop import read as models
from fundax.interop import weights
from fundax.metrics import operating_points
from fundax.results import read as results
from fundax.runtime import serialize
from fundax.runtime.shapes import Config, Preprocessing
from fundax.runtime.workdir import read_config, read_json, write_arrays
from fundax.types import UserError

OLD = Path(__file__).resolve().parent.parent / "tests" / "system" / "old_runs"
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)
Damage = Callable[[bytes, random.Random], bytes]
BY_SUFFIX: dict[str, Damage] = {
    ".json": damage_json, ".jsonl": damage_lines, ".npz": damage_zip, ".pt": damage_zip, ".pth": damage_zip, ".xlsx": damage_zip,
    ".bin": damage_zip, ".safetensors": damage_safetensors, ".csv": damage_table, ".tsv": damage_table, ".txt": damage_table,
    **dict.fromkeys(decode.EXTENSIONS, damage_image),
}  # fmt: skip
refused = 0  # in a child: number of functions that ended with a one-line error


@dataclass(frozen=True)
class Area:
    """`make` writes valid files into a folder and returns the files to damage; `open` reads a damaged file.

    share: weight of the area when cases are drawn.
    whole: whether the area runs whole commands, whose limits come from runs on undamaged files.
    """

    make: Callable[[Path], list[Path]]
    open: Callable[[Path, random.Random], Any]
    share: int
    whole: bool = False


def damage(path: Path, paths: Sequence[Path], rng: random.Random) -> None:
    """Damage a file according to its format; sometimes replace it by something else."""
    if rng.random() < 0.06:
        replace_path(path, list(paths), rng)
        return
    data = path.read_bytes()
    change = BY_SUFFIX.get(path.suffix.lower(), damage_bytes)
    for _ in range(10):  # some changes change nothing
        changed = hostile_pickle(rng) if path.suffix == ".pickle" else change(data, rng)
        if changed != data:
            break
    path.write_bytes(changed)


def attempt(function: Callable[..., Any], *arguments: Any) -> None:
    """Call a function that may raise a one-line DataError or UserError; other errors are not caught."""
    global refused
    try:
        function(*arguments)
    except (DataError, UserError) as error:
        if "\n" in str(error) or not str(error).strip():
            raise AssertionError(f"not one line: {str(error)!r}") from error
        refused += 1


def rows(source: Any) -> None:
    """Read the first rows of a source."""
    for row in range(min(len(source), 5)):
        _ = source[row]


def image_files(folder: Path) -> list[Path]:
    """Write a small image of every format and depth."""
    picture, paths = Image.fromarray(PIXELS), []
    for suffix in ("jpg", "png", "tif", "bmp", "gif", "webp", "ppm", "pgm"):
        paths.append(folder / f"a.{suffix}")
        (picture.convert("L") if suffix == "pgm" else picture).save(paths[-1])
    for mode in ("L", "1", "P", "CMYK", "RGBA", "I;16", "F", "LA"):
        paths.append(folder / f"{mode.replace(';', '')}.{'tif' if mode in ('CMYK', 'F') else 'png'}")
        converted = picture.convert("L").convert(mode) if mode in ("I;16", "F") else picture.convert(mode)
        converted.save(paths[-1])
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, options in (
        ("p.jpg", {"progressive": True, "exif": exif}),
        ("z.tif", {"compression": "tiff_adobe_deflate"}),
    ):
        paths.append(folder / name)
        picture.save(paths[-1], **options)
    picture.save(folder / "several.gif", save_all=True, append_images=[picture])
    return [*paths, folder / "several.gif"]


def open_image(path: Path, rng: random.Random) -> None:
    """Read as an image or a mask, in full or scaled, or on a contact sheet."""
    readers = (decode.load, lambda one: decode.load(one, 8), masks.load_mask)
    if rng.random() < 0.1:
        attempt(contact_sheet.contact_sheet, wrap([(path, "[/x] $x^{")]), path.parent / "sheet.png")
    else:
        attempt(rng.choice(readers), path)


TABLE = '''image,text,label,patient,eye,modality,day,age,split,A,B
a.jpg,"normal, but mild drusen",normal,p1,left,CFP,2024-07-31,60,train,0,1
a.jpg,drusen of the left eye,AMD,p2,right,OCT,2024-08-01,71,val,1,0
a.jpg,"no ""drusen""",AMD,p3,left,CFP,2024-08-02,,test,,1
'''
TABLES = {
    "images.csv": TABLE,
    "images.tsv": TABLE.replace(", ", " ").replace(",", "\t"),
    "pairs.csv": "patient,left,right,text\np1,a.jpg,a.jpg,drusen\np2,a.jpg,,clear\n",
    "frame.csv": "image,atributes,categories\na.jpg,[],\"['normal']\"\na.jpg,\"['x']\",\"['a', 'b']\"\n",
    "captions.csv": "Image_ID,cn_caption,en_caption,fundus_status\na.jpg,见图3-1,see figure 3 of drusen,abnormal\n",
    "labels.txt": "a.jpg;3\na.jpg;0\n",
    "findings.txt": "a.jpg;1,0,1\na.jpg;0,0,1\n",
    "days.txt": "a.jpg,1,30\na.jpg,0,60\n",
}


def table_files(folder: Path) -> list[Path]:
    """Write tables of images, pairs of eyes and captions, VisionFM's lists, RET-CLIP's files and LMDB, Excel and Parquet."""
    import lmdb
    import openpyxl
    from pyarrow import csv, parquet

    Image.fromarray(PIXELS).save(folder / "a.jpg")
    for name, text in TABLES.items():
        (folder / name).write_text(text, encoding="utf-8")
    book = openpyxl.Workbook()
    for line in TABLE.splitlines():
        book.active.append(line.replace(", ", " ").split(","))  # pyright: ignore[reportOptionalMemberAccess]
    book.save(folder / "images.xlsx")
    _without_date(folder / "images.xlsx")
    parquet.write_table(csv.read_csv(folder / "images.csv"), folder / "images.parquet")
    (folder / "x_imgs.tsv").write_text("p1\taGVsbG8=\t\np2\taGVsbG8=\taGVsbG8=\n")
    (folder / "x_texts.jsonl").write_text('{"text_id": 1, "text": "drusen", "image_ids": ["p1", "p2"]}\n')
    entries = {"imgs": {"p1": ("aGVsbG8=", "")}, "pairs": {"num_samples": b"1", "0": ("p1", 1, "drusen")}}
    for name, held in entries.items():
        (folder / "lmdb").mkdir(exist_ok=True)
        with (
            lmdb.open(str(folder / "lmdb" / name), map_size=1 << 20) as environment,
            environment.begin(write=True) as put,
        ):
            for key, value in held.items():
                put.put(key.encode(), value if isinstance(value, bytes) else pickle.dumps(value))
    write_split(folder / "split.json", split_record({"train": {"images": ["p1"]}, "val": {"images": ["p2", "p3"]}}))
    points = {"a": operating_points.at_sensitivity(np.arange(9) % 2, np.arange(9), 0.5)}
    operating_points.write(points, folder / "points.json")
    (folder / "hostile.pickle").write_bytes(b"")
    return [path for path in folder.rglob("*") if path.is_file() and path.name not in ("a.jpg", "lock.mdb")]


def _without_date(path: Path) -> None:
    """Write an Excel file again without the time at which it was made, so that the same seed makes the same case."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(
                zipfile.ZipInfo(name), re.sub(rb"\d{4}-\d\d-\d\dT[\d:]+Z", b"2024-07-31T00:00:00Z", content)
            )


def open_table(path: Path, rng: random.Random) -> None:
    """Read the first rows with all readers for the format of the file."""
    name, folder = path.name, path.parent
    if path.suffix in (".json", ".pickle", ".mdb"):
        if name == "hostile.pickle":
            data = path.read_bytes() if path.is_file() else b""
            attempt(lambda: rows(_written_lmdb(folder, data)))
        elif name == "data.mdb":
            attempt(lambda: rows(PairedLMDB(folder.parent)))
        else:
            attempt(read_split if name == "split.json" else operating_points.read, path)
    elif name.startswith("x_"):
        attempt(lambda: rows(open_pairs(folder / "x_imgs.tsv")))
    elif name in ("pairs.csv", "frame.csv", "captions.csv"):
        attempt(lambda: rows(open_pairs(str(path), "")))
        attempt(lambda: rows(flair_frame(path, folder)))
        attempt(lambda: rows(mm_retinal(path, folder)))
    else:
        options = (
            "label=A+B,empty=keep",
            "text=eye with {text}",
            "classes=normal+AMD",
            "patient=name,empty=drop",
            "value=A",
        )
        option = rng.choice(options)
        for word in (str(path), f"{path},{option}"):
            attempt(lambda word=word: rows(named(word).source))
        attempt(lambda: words.digest(named(str(path))))


def _written_lmdb(folder: Path, value: bytes) -> PairedLMDB:
    import lmdb

    for name, key in (("imgs", "p1"), ("pairs", "0")):
        with (
            lmdb.open(str(folder / "lmdb" / name), map_size=1 << 20) as environment,
            environment.begin(write=True) as put,
        ):
            put.put(key.encode(), value)
    return PairedLMDB(folder / "lmdb")


def weight_files(folder: Path) -> list[Path]:
    """Write the same arrays in every container, and exported folders of other programs."""
    state = {"a.weight": np.ones((3, 2), np.float32), "a.bias": np.zeros(3, np.float32)}
    weights.write_safetensors(state, folder / "model.safetensors")
    np.savez_compressed(folder / "model.npz", **state)  # pyright: ignore[reportArgumentType]
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(state, "model.safetensors")})
    )
    for archive in sorted((OLD / "exports").glob("*.tar.xz")):
        with tarfile.open(archive) as opened:
            opened.extractall(folder, filter="data")
    try:
        import torch
    except ImportError:
        return [path for path in folder.rglob("*") if path.is_file()]
    tensors = {k: torch.from_numpy(v) for k, v in state.items()} | {"ids": torch.arange(3).expand(4, -1)}
    torch.save({"model": tensors, "epoch": np.int64(3)}, folder / "zip.pt")
    torch.save(tensors, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    (folder / "plain.bin").write_bytes(pickle.dumps({"a": 1}))
    return [path for path in folder.rglob("*") if path.is_file()]


def open_weights(path: Path, rng: random.Random) -> None:
    """Read the tensors, or the model of an exported folder with its tokenizer."""
    if path.suffix in weights.SUFFIXES or path.name.endswith(".index.json"):
        attempt(weights.read_state, path)
    folder = path.parent
    if folder.name in {one.name.removesuffix(".tar.xz") for one in (OLD / "exports").glob("*.tar.xz")}:
        attempt(models.load, folder)


def run_files(folder: Path) -> list[Path]:
    """Write small runs with their checkpoints, and a result of an evaluation."""
    for name in ("classify_vit", "report_vit", "clip_softmax", "regress_vit"):
        with tarfile.open(OLD / "workdirs" / f"{name}.tar.xz") as archive:
            archive.extractall(folder, filter="data")
        truth, score = np.tile(np.arange(3), 6), np.random.default_rng(0).random((18, 3)).astype(np.float32)
        arrays: dict[str, Any] = {
            "kind": "classification",
            "labels": truth,
            "probabilities": score / score.sum(1, keepdims=True),
        }
        arrays |= {
            "classes": ["a", "b", "c"],
            "about": json.dumps({"data": ["x"], "digest": "y", "part": "val", "step": 1}),
        }
        write_arrays(folder / name, "val", {key: np.array(value) for key, value in arrays.items()})
        metrics = [json.dumps({"step": step, "time": 0.1, "val/macro_auc": 0.5}) for step in (1, 2)]
        (folder / name / "metrics.jsonl").write_text("\n".join(metrics) + "\n")
    return [path for path in folder.rglob("*") if path.is_file()]


def open_run(path: Path, rng: random.Random) -> None:
    """Call all functions that read a run. The checkpoint is read if one of its files was damaged, and sometimes otherwise."""
    run = next(parent for parent in path.parents if parent.parent.name.startswith("tmp"))
    attempt(read_config, run)
    attempt(lambda: serialize.from_json(read_json(run / "config.json", Config).get("objective")))
    attempt(read_json, run / "preprocessing.json", Preprocessing)
    attempt(results.read_run, run)
    if (run / "tokenizer").is_dir():
        attempt(tokenizers.load, run / "tokenizer")
    if "checkpoints" in path.parts or rng.random() < 0.5:
        attempt(models.read_run, run)


def shard_files(folder: Path) -> list[Path]:
    """Write a shard of two records."""
    record = {"image": PIXELS, "text": "drusen", "label": 1, "mask": (PIXELS[..., 0] > 128).astype(np.uint8)}
    out = convert(wrap([record, record], classes=("a", "b")), folder / "shards", Sizing(16))
    return sorted(out.iterdir())


def open_shards(path: Path, rng: random.Random) -> None:
    """Read the records, the patients and the split."""
    attempt(lambda: rows(array_records(path.parent)))
    attempt(lambda: array_records(path.parent).hashes("patient", 0))


def word_files(folder: Path) -> list[Path]:
    """Write the knowledge base, a part of it, and tokenizers."""
    small = json.loads(knowledge.FILE.read_text(encoding="utf-8"))
    small["categories"] = dict(list(small["categories"].items())[:3])
    (folder / "small.json").write_text(json.dumps(small), encoding="utf-8")
    shutil.copy(knowledge.FILE, folder / "knowledge.json")
    tokenizers.bundled().save(folder / "tokenizer")
    (folder / "bert").mkdir()
    (folder / "bert" / "vocab.txt").write_text(
        "\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b")) + "\n"
    )
    tokenizers.wordpiece(folder / "bert").save(folder / "bert")
    return [path for path in folder.rglob("*") if path.is_file()]


def open_words(path: Path, rng: random.Random) -> None:
    """Read a knowledge base, or read a tokenizer and tokenize a text."""
    if path.name in ("knowledge.json", "small.json"):
        attempt(lambda: knowledge.load(path).sentences(("en", "zh")))
    else:
        attempt(lambda: tokenizers.load(path.parent)(["drusen \ud800 玻璃膜疣"]))
