"""Test that runs, data and exports are the same on remote storage as in local folders, with an emulator on this machine.

    python scripts/remote_storage.py [--store gs|s3|file] [--steps 40] [--kills 3]

Trains the same small CLIP in a local folder and, killed (SIGKILL) at random moments and restarted, in a bucket; hashes of
parameters and the losses of all steps must be equal. Then it converts synthetic eyes to shards in the bucket, trains from
them, exports the run to the bucket and starts another run from the export. Exits with status 1 if anything differs.

gs needs gcsfs and gcp-storage-emulator, s3 needs s3fs and moto[server]; file is a folder under an address.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO)] if str(REPO) not in sys.path else []
BUCKET = "fundax-test"


def free_port() -> int:
    """A free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(store: str, folder: Path) -> tuple[subprocess.Popen[bytes] | None, str, dict[str, str]]:
    """Start the emulator of a store; return it, the address of its bucket, and the environment variables to use it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    if store == "file":
        return None, f"file://{folder}/{BUCKET}", {}
    programs = Path(sys.executable).parent
    if store == "gs":
        words = ["gcp-storage-emulator", "start", "--port", str(port), "--in-memory", "--default-bucket", BUCKET]
        found = {"STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url, "FSSPEC_GCS_TOKEN": "anon"}
        found["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # it would ask the emulator for more than it has
    else:
        words = ["python", "-m", "moto.server", "-p", str(port)]
        found = {"FSSPEC_S3_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    words[0] = str(programs / words[0])
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.environ.update(found)
    _wait(port)
    if store == "s3":
        from data_pipelines.files.storage import opened

        opened(f"s3://{BUCKET}")[0].mkdir(BUCKET)
    return server, f"{store}://{BUCKET}", found


def _wait(port: int) -> None:
    for _ in range(300):
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.1)
    raise SystemExit("the emulator did not start")


def run(*words: str, kill_after: float = 0.0) -> int:
    """Run launch.py. With `kill_after`, it is killed after that many seconds if it is still running."""
    command = [sys.executable, str(REPO / "launch.py"), *words]
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, errors = job.communicate(timeout=kill_after or None)
    except subprocess.TimeoutExpired:
        job.kill()
        job.communicate()
        return -9
    if job.returncode:
        raise SystemExit(f"launch.py {' '.join(words)}\n{errors[-3000:]}")
    return 0


def train(workdir: str, steps: int, *more: str) -> list[str]:
    """The command of a small quickstart run."""
    given = f"--smoke --steps {steps} --patients 64 --save-every 2 --eval-every 10"
    return ["train", str(REPO / "configs" / "quickstart.py"), "--workdir", workdir, *given.split(), *more]


def same(local: str, remote: str) -> bool:
    """Whether two runs have the same parameters and losses; prints their hashes."""
    from fundax.runtime.remote import fetched
    from scripts.kill_and_resume import digest
    from scripts.several_processes import losses

    here, there = Path(local), fetched(remote)
    hashes = digest(here), digest(there)
    curves = losses(here), losses(there)
    print(f"  {hashes[0][:16]} {len(curves[0])} losses  local\n  {hashes[1][:16]} {len(curves[1])} losses  {remote}")
    return hashes[0] == hashes[1] and curves[0] == curves[1]


def compare(bucket: str, folder: Path, steps: int, kills: int) -> bool:
    """Run all comparisons and print a line for each."""
    local, remote = str(folder / "run"), f"{bucket}/run"
    started = time.monotonic()
    run(*train(local, steps))
    whole, killed = time.monotonic() - started, 0
    for _ in range(kills):
        killed += run(*train(remote, steps), kill_after=random.uniform(0.6, 1.2) * whole) == -9
    run(*train(remote, steps))
    print(f"killed {killed} times and resumed")
    good = same(local, remote)
    run("data", "convert", "--source", "synthetic,n=64,size=64", "--out", str(folder / "shards"), "--size", "48")
    run("data", "convert", "--source", "synthetic,n=64,size=64", "--out", f"{bucket}/shards", "--size", "48")
    run(*train(str(folder / "b"), 4, "--data", f"array_record:{folder / 'shards'}"))
    run(*train(f"{bucket}/b", 4, "--data", f"array_record:{bucket}/shards"))
    print("data from shards")
    good &= same(str(folder / "b"), f"{bucket}/b")
    run("export", local, str(folder / "exported"), "--to", "huggingface")
    run("export", remote, f"{bucket}/exported", "--to", "huggingface")
    run(*train(str(folder / "c"), 4, "--init", str(folder / "exported")))
    run(*train(f"{bucket}/c", 4, "--init", f"{bucket}/exported"))
    print("export, and a run that starts from it")
    good &= same(str(folder / "c"), f"{bucket}/c")
    run("eval", f"{bucket}/c")
    return good


def main(argv: Sequence[str] | None = None) -> int:
    """Compare with one store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=("gs", "s3", "file"), default="gs")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--kills", type=int, default=3)
    own = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["XDG_CACHE_HOME"] = f"{scratch}/cache"
        server, bucket, _ = start(own.store, Path(scratch))
        try:
            good = compare(bucket, Path(scratch), own.steps, own.kills)
        finally:
            if server:
                server.kill()
                server.wait()
    print("equal" if good else "DIFFERENT")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
