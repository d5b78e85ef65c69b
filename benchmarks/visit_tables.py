"""Time and memory to index a long table of a million images as visits, and a wide table of a million visits.

    python benchmarks/visit_tables.py [--rows 1000000]

Tables are written to a temporary folder; images are not read. Prints seconds and the largest resident memory in MB.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from data_pipelines.words import named

VIEWS = [(modality, eye) for modality in ("CFP", "OCT", "FFA") for eye in ("left", "right")]


def write_long(path: Path, rows: int) -> None:
    """Six images of each visit, two visits of each patient."""
    with path.open("w", encoding="utf-8") as file:
        file.write("image,patient,eye,date,modality,text,label,report,age,sex,device\n")
        for row in range(rows):
            visit, (modality, eye) = row // 6, VIEWS[row % 6]
            patient, day = visit // 2, f"202{visit % 2}-{visit % 12 + 1:02d}-{visit % 28 + 1:02d}"
            about = f"{patient % 90},{'FM'[patient % 2]},camera {patient % 3}"
            text = f"{modality} of the {eye} eye in visit {visit}"
            name = f"images/{visit:07d}_{modality}_{eye}.png"
            file.write(
                f"{name},P{patient},{eye},{day},{modality},{text},{patient % 5},a report of visit {visit},{about}\n"
            )


def write_wide(path: Path, rows: int) -> None:
    """Visits with six views, of which some are missing."""
    with path.open("w", encoding="utf-8") as file:
        columns = ",".join(f"{modality.lower()}_{eye}" for modality, eye in VIEWS)
        file.write(f"patient,date,{columns},report,label,age\n")
        for visit in range(rows):
            paths = [f"i/{visit:07d}_{m}_{e}.png" if (visit + k) % 3 else "" for k, (m, e) in enumerate(VIEWS)]
            day = f"202{visit % 2}-{visit % 12 + 1:02d}-{visit % 28 + 1:02d}"
            file.write(f"P{visit // 2},{day},{','.join(paths)},a report of visit {visit},{visit % 5},{visit % 90}\n")


def index(path: str) -> tuple[int, float, float, float]:
    """(visits, seconds, seconds of this process, MB) to open the visits of a table."""
    begin, busy = time.perf_counter(), time.process_time()
    visits = len(named(f"{path},visits=true").source)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return visits, time.perf_counter() - begin, time.process_time() - busy, memory


def main() -> None:
    """Index both tables, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        for kind, write in (("long", write_long), ("wide", write_wide)):
            path = os.path.join(folder, f"{kind}.csv")
            write(Path(path), rows)
            with get_context("spawn").Pool(1) as pool:
                visits, seconds, busy, memory = pool.apply(index, (path,))
            print(
                f"{kind}: {rows} rows, {visits} visits, {seconds:.1f} s ({busy:.1f} s of the processor), {memory:.0f} MB"
            )


if __name__ == "__main__":
    main()
