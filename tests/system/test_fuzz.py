"""A slice of scripts/fuzz.py: damaged files of every kind load or end with one clear line."""

import os
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
AREAS = ("images", "tables", "weights", "runs", "shards", "knowledge")  # verbs of the command line take minutes


def test_damaged_files_are_one_clear_line():
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(REPO), os.environ.get("PYTHONPATH", ""))),
        "JAX_PLATFORMS": "cpu",
    }
    argv = [sys.executable, "scripts/fuzz.py", "--cases", "150", "--seed", "20000", "--show", "--area", *AREAS]
    done = subprocess.run(argv, cwd=REPO, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout
    table = {line.split()[0]: line for line in done.stdout.splitlines() if "cases" not in line}
    assert set(table) == set(AREAS) and "150 cases, 0 bad" in done.stdout
    assert all("accepted" in line and "clear" in line for line in table.values()), done.stdout
