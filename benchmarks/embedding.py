"""Compare the speed of `launch.py embed` with transformers' CLIP in PyTorch, on the same weights, images and machine.

    python benchmarks/embedding.py --run runs/quickstart --images FOLDER [--batch 32]

Exports the run to transformers, encodes the images of the folder with both, one after the other, and prints images per
second, the peak memory of each process, and the largest difference of unit features. Needs torch and transformers.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from record import Table, record

REPO = Path(__file__).resolve().parent.parent
THEIRS = """
import sys, time, numpy as np, torch
from pathlib import Path
from PIL import Image
from transformers import AutoModel, AutoProcessor

folder, images, batch, out = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
paths = sorted(path for path in Path(images).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
start, found = time.perf_counter(), []
with torch.inference_mode():
    for at in range(0, len(paths), batch):
        pictures = [Image.open(path).convert("RGB") for path in paths[at : at + batch]]
        out_ = model.get_image_features(**processor(images=pictures, return_tensors="pt"))
        found.append(getattr(out_, "pooler_output", out_).numpy())
features = np.concatenate(found)
np.savez(out, features=features / np.linalg.norm(features, axis=1, keepdims=True), seconds=time.perf_counter() - start)
"""


def measured(*command: str) -> tuple[float, float]:
    """Seconds and peak memory in GiB of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, cwd=REPO)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return time.perf_counter() - start, max(before, peak) / 2**20


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, help="run of a CLIP")
    parser.add_argument("--images", required=True, help="folder of JPEG or PNG files")
    parser.add_argument("--batch", type=int, default=32, help="number of images in a forward pass")
    parser.add_argument("--no-keep", action="store_true", help="do not write benchmarks/results")
    own = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        ours, theirs, folder = f"{work}/ours.npz", f"{work}/theirs.npz", f"{work}/clip"
        measured("launch.py", "export", own.run, folder, "--to", "huggingface")
        batch = str(own.batch)
        first = measured("launch.py", "embed", own.run, own.images, "--out", ours, "--batch", batch)
        second = measured("-c", THEIRS, folder, own.images, batch, theirs)
        mine, other = np.load(ours)["features"], np.load(theirs)["features"]
    gap = float(np.abs(mine - other).max())
    rows = [
        (name, f"{len(mine) / seconds:.1f}", f"{peak:.2f}")
        for name, (seconds, peak) in (("launch.py embed", first), ("transformers, PyTorch", second))
    ]
    title = f"{len(mine)} images, from the start of the process to its end; largest difference {gap:.1g}"
    record("embedding", [Table(title, ("program", "images/s", "peak GiB so far"), rows)], keep=not own.no_keep)


if __name__ == "__main__":
    main()
