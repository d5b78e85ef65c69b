"""Functions of scripts/fuzz.py that damage files: bytes, tables, JSON, archives, pickles, images and paths."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import random
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

CANARY = Path(tempfile.gettempdir()) / "fundax_fuzz_ran"  # the file that hostile files would create
WORDS = (
    *(
        '"',
        ",",
        ";",
        "\t",
        "\n",
        "\r",
        "\0",
        "{",
        "}",
        "nan",
        "-1",
        "1e999",
        "\ufeff",
        "\U0001f441",
        "\\",
        "",
        " ",
        "=1+1",
    ),
    *(
        "[/x]",
        "[red]a",
        ":eye:",
        "\x1b[2J",
        "../../x",
        "a/b",
        "<script>",
        "${HOME}",
        "x" * 3000,
        "\u202e",
        "-0",
        "1_0",
        "٣",
    ),
)
VALUES: tuple[Any, ...] = (
    *(
        None,
        0,
        -1,
        1,
        7,
        10**9,
        2**63,
        1e308,
        -1e-300,
        float("inf"),
        float("nan"),
        "",
        "x",
        "../x",
        "/dev/zero",
        "[/x]",
    ),
    *(
        "\ud800",
        [],
        {},
        [1, "a"],
        True,
        "A" * 1000,
        [[1, 2], [3]],
        {"@": "objectives.Classify"},
        {"@function": "encoders.ViT"},
    ),
    *({"@": "os.system"}, {"@float": "x"}, {"@dtype": "object"}, {"@tuple": 5}, {"a": {"b": {"c": {}}}}),
)


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip a bit, or make up to four changes of bytes, often at the beginning and the end, where formats store sizes.

    Places are drawn as a part of the length, so that the same seed makes the same changes where a compressed file has
    another length.
    """
    out = bytearray(data)

    def place(length: int) -> int:
        return int(rng.random() * length)

    if out and rng.random() < 0.3:
        out[place(len(out))] ^= 1 << rng.randrange(8)
        return bytes(out)
    for _ in range(rng.randint(1, 4)):
        at = rng.choice((place(len(out) + 1), place(min(64, len(out)) + 1), max(0, len(out) - place(64))))
        length, kind = rng.choice((1, 2, 8, 64, 1024)), rng.randrange(6)
        if kind == 0 and out:
            for k in range(at, min(at + length, len(out))):
                out[k] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at:]
        elif kind == 2:
            out[at : at + length] = bytes(min(length, len(out) - at))
        elif kind == 3:
            out[at:at] = out[at : at + length]
        elif kind == 4:
            out[at:at] = rng.randbytes(rng.choice((1, 4, 32)))
        else:
            number = rng.choice((0, 1, 2**15, 2**31 - 1, 2**32 - 1, 2**63 - 1))
            out[at : at + 8] = number.to_bytes(8, rng.choice(("little", "big")))[: rng.choice((2, 4, 8))]
    return bytes(out)


def damage_table(data: bytes, rng: random.Random) -> bytes:
    """Change cells, quotation marks, separators, lines and the encoding of a table."""
    text = data.decode()
    for _ in range(rng.randint(1, 3)):
        at, word, kind = rng.randrange(len(text) + 1), rng.choice(WORDS), rng.randrange(5)
        if kind == 0:
            text = text[:at] + word + text[at:]
        elif kind == 1:
            lines = text.splitlines(keepends=True)
            rng.shuffle(lines) if rng.random() < 0.3 else lines.pop(rng.randrange(len(lines))) if lines else None
            text = "".join(lines)
        elif kind == 2:
            text = text[:at] + text[at + rng.randint(1, 8) :]
        else:
            cells = text.replace("\n", ",").split(",")
            text = text.replace(rng.choice(cells) or ",", word, rng.choice((1, 3, -1)))
    encoding = rng.choice(("utf-8",) * 5 + ("utf-8-sig", "utf-16", "utf-16-le", "gb18030", "latin-1", "raw"))
    encoded = text.encode("utf-8" if encoding == "raw" else encoding, "replace")
    return damage_bytes(encoded, rng) if encoding == "raw" else encoded


def damage_json(data: bytes, rng: random.Random) -> bytes:
    """Change values, keys and types anywhere in a JSON file, nest it deeply, or sometimes change its bytes."""
    if rng.random() < 0.15:
        return damage_bytes(data, rng)
    if rng.random() < 0.03:
        depth = rng.choice((100, 5000, 200_000))
        return data[:-2] + b', "x": ' + b"[" * depth + b"]" * depth + b"}"
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):  # damaged before
        return damage_bytes(data, rng)
    for _ in range(rng.randint(1, 3)):
        places = [(value, key) for key in _keys(value)] + _places(value)
        if not places:
            break
        parent, key = rng.choice(places)
        if isinstance(parent, dict) and rng.random() < 0.2:
            parent.pop(key, None)
        elif isinstance(parent, dict) and rng.random() < 0.1:
            parent[rng.choice(("@", "x", "../x", "[/x]"))] = copy.deepcopy(rng.choice(VALUES))
        else:
            parent[key] = copy.deepcopy(rng.choice(VALUES))
    return json.dumps(value).encode()


def damage_lines(data: bytes, rng: random.Random) -> bytes:
    """Damage one or several lines of a JSON-lines file."""
    lines = data.splitlines(keepends=True)
    for _ in range(rng.randint(1, 2)):
        at = rng.randrange(len(lines))
        lines[at] = damage_json(lines[at], rng) + b"\n"
    return b"".join(lines)


def damage_zip(data: bytes, rng: random.Random) -> bytes:
    """Damage a member of an archive, with a correct checksum so that it is read, or the bytes of the archive."""
    if rng.random() < 0.4 or not zipfile.is_zipfile(io.BytesIO(data)):  # PyTorch's older form is none
        return damage_bytes(data, rng)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        chosen, also = rng.choice(names), rng.choice(("../x.npy", names[0], "notes.txt", ""))
        for name in names:
            content = old.read(name)
            if name == chosen:
                content = (
                    hostile_pickle(rng) if name.endswith(".pkl") and rng.random() < 0.3 else damage_bytes(content, rng)
                )
                content = bytes(rng.choice((0, 2**20, 2**25))) if rng.random() < 0.05 else content
            new.writestr(name, content, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
        if also and also not in names and rng.random() < 0.2:
            new.writestr(also, b"x" * 10)
    return out.getvalue()


def damage_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Damage the JSON header and correct its length, or damage the bytes."""
    if rng.random() < 0.5:
        return damage_bytes(data, rng)
    (length,) = struct.unpack_from("<Q", data)
    header = damage_json(data[8 : 8 + length], rng)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


class RunsCode:
    """An object that pickles as a call, which a reader must not make."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        calls: dict[str, tuple[Any, str]] = {
            "system": (os.system, f"touch {CANARY}"),
            "eval": (eval, f"open({str(CANARY)!r}, 'w')"),
            "mkdir": (os.mkdir, str(CANARY)),
        }
        function, argument = calls[self.name]
        return function, (argument,)


def hostile_pickle(rng: random.Random) -> bytes:
    """Make a pickle that calls a function or needs much memory or time, or damage a plain pickle."""
    kind, shared = rng.randrange(5), ("a", "b")
    if kind == 0:
        return pickle.dumps(("p", 1, RunsCode(rng.choice(("system", "eval", "mkdir")))), rng.randrange(6))
    if kind == 1:
        for _ in range(rng.choice((20, 40, 500))):
            shared = (shared, shared)
        return pickle.dumps(shared)
    if kind == 2:
        return b"\x80\x04K\x01r" + struct.pack("<I", rng.choice((2**20, 2**27, 2**31, 2**32 - 1))) + b"."
    if kind == 3:
        return b"\x80\x04)" + rng.choice((b"\x85", b"]a", b"}")) * rng.choice((100, 100_000)) + b"."
    values: tuple[Any, ...] = (
        ("p1", 7, "drusen"),
        ("a", "b"),
        [1],
        {"x": 2},
        b"x",
        5,
        None,
        ("p", [1]),
        (b"\xff", 1, b"\xff"),
    )
    return damage_bytes(pickle.dumps(rng.choice(values), rng.randrange(6)), rng)


def damage_image(data: bytes, rng: random.Random) -> bytes:
    """Change the sizes in the header of an image with correct checksums, insert segments, or change bytes."""
    if rng.random() < 0.5:
        return damage_bytes(data, rng)
    side = rng.choice((0, 1, 13_000, 20_000, 65_535))
    if data[:4] == b"\x89PNG":
        out = bytearray(data)
        struct.pack_into(">II", out, 16, side, rng.choice((side, 1, 9999)))
        out[24], out[25] = rng.choice((1, 8, 16)), rng.choice((0, 2, 3, 4, 6))
        struct.pack_into(">I", out, 29, zlib.crc32(out[12:29]))
        return bytes(out)
    if data[:2] == b"\xff\xd8" and (at := max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))) > 0:
        out = bytearray(data)
        struct.pack_into(">HH", out, at + 5, min(side, 65_535), rng.choice((min(side, 65_535), 1, 9999)))
        return bytes(out)
    if data[:2] == b"BM":
        out = bytearray(data)
        struct.pack_into("<ii", out, 18, rng.choice((side, -side)), rng.choice((side, -side, 1)))
        return bytes(out)
    if data[:2] in (b"P6", b"P5"):
        return data[:2] + f"\n{side} {rng.choice((side, 1))}\n255\n".encode() + data[15:]
    return rng.choice((POSTSCRIPT, blank_png(rng), data + data, data[: len(data) // 2] + data))


POSTSCRIPT = (
    b"%%!PS-Adobe-3.0 EPSF-3.0\n%%%%BoundingBox: 0 0 10 10\n(touch %s) system showpage\n" % str(CANARY).encode()
)


def blank_png(rng: random.Random) -> bytes:
    """Make a PNG with few bytes but many pixels."""
    side = rng.choice((2000, 4000, 9000))
    row = bytes(1 + side // 8)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(row * side, 9)) + chunk(b"IEND", b"")
    )


def replace_path(path: Path, others: list[Path], rng: random.Random) -> None:
    """Replace a file by nothing, a folder, a pipe, a device, a broken link or another file."""
    kind = rng.randrange(7)
    content = rng.choice(others).read_bytes()
    path.unlink()
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.symlink_to("/dev/zero")
    elif kind == 3:
        path.symlink_to(path.parent / "nowhere")
    elif kind == 4:
        path.write_bytes(b"")
    elif kind == 5:
        path.write_bytes(content)


def _keys(value: Any) -> list[Any]:
    return list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below a value."""
    inside = [value[key] for key in _keys(value)]
    return [(one, key) for one in inside for key in _keys(one)] + [place for one in inside for place in _places(one)]
