"""A slice of scripts/remote_storage.py: a run in a bucket, killed and resumed, equals the local one."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "remote_storage.py"


@pytest.mark.parametrize("store, packages", [("gs", ("gcsfs", "gcp_storage_emulator")), ("s3", ("s3fs", "moto"))])
def test_a_killed_run_in_a_bucket_equals_the_local_one(store, packages):
    if not all(importlib.util.find_spec(name) for name in packages):
        pytest.skip(f"needs {' and '.join(packages)}")
    words = (sys.executable, str(SCRIPT), "--store", store, "--steps", "12", "--kills", "1")
    done = subprocess.run(words, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "equal", done.stdout + done.stderr[-3000:]
    assert "killed at steps" in done.stdout
