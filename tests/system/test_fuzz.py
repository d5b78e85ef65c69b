"""A slice of scripts/fuzz.py: damaged files of every kind load or end with one clear line."""

import os
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


def test_damaged_files_are_one_clear_line():
    environment = os.environ | {"PYTHONPATH": str(REPO), "JAX_PLATFORMS": "cpu"}
    argv = [sys.executable, "scripts/fuzz.py", "--cases", "150", "--seed", "20000", "--show"]
    done = subprocess.run(argv, cwd=REPO, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout
    table = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert set(table) == {"images", "tables", "weights", "runs", "shards", "knowledge"}
    assert all((" 25 " in line and "clear" in line) or "accepted" in line for line in table.values()), done.stdout
