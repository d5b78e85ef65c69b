"""Test that runs, data and exports are the same on remote storage as in local folders, with an emulator on this machine.

    python scripts/remote_storage.py [--store gs|s3|file] [--steps 80] [--kills 3]

Trains the same small CLIP in a local folder and, killed (SIGKILL) around its saves and restarted, in a bucket; hashes of
parameters and all logged losses must be equal. Then it converts synthetic eyes to shards in the bucket, trains from
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
# The emulator of gs, which leaves out the generation of an object that TensorStore expects with it.
GS = """
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

plain = objects.download

def download(request, response, storage, *args, **kwargs):
    plain(request, response, storage, *args, **kwargs)
    try:
        found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
    except NotFound:
        return
    response["x-goog-generation"] = found["generation"]

objects.download = download
from gcp_storage_emulator.__main__ import main
main()
"""


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
    if store == "gs":
        words = ["-c", GS, "start", "--port", str(port), "--quiet", "--in-memory", "--default-bucket", BUCKET]
        found = {"STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url, "FSSPEC_GCS_TOKEN": "anon"}
        found["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # it would ask the emulator for more than it has
    else:
        words = ["-m", "moto.server", "-p", str(port)]
        found = {"FSSPEC_S3_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    server = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
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


def command(*words: str) -> subprocess.Popen[str]:
    """Start launch.py."""
    words = (sys.executable, str(REPO / "launch.py"), *words)
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def run(*words: str) -> None:
    """Run launch.py to its end."""
    job = command(*words)
    _, errors = job.communicate()
    if job.returncode:
        raise SystemExit(f"launch.py {' '.join(words)}\n{errors[-3000:]}")


def kill(workdir: str, step: int, *words: str) -> int:
    """Run launch.py and kill it up to half a second after it has begun to save `step` or a later one; that step."""
    job = command(*words)
    while job.poll() is None:
        if (reached := latest(workdir)) >= step:
            time.sleep(random.uniform(0, 0.5))
            job.kill()
            job.communicate()
            return reached
        time.sleep(0.05)
    raise SystemExit(f"launch.py ended before it was killed\n{job.communicate()[1][-3000:]}")


def latest(workdir: str) -> int:
    """The last step of which a checkpoint is there, or has been begun; 0 if there is none."""
    from data_pipelines.files.storage import opened

    store, path = opened(f"{workdir}/checkpoints")
    store.invalidate_cache()
    try:
        names = (Path(name).name.partition(".")[0] for name in store.ls(path, detail=False))
    except FileNotFoundError:
        return 0
    return max((int(name) for name in names if name.isdecimal()), default=0)


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
    run(*train(local, steps))
    ends = [kill(remote, steps * (k + 1) // (kills + 2), *train(remote, steps)) for k in range(kills)]
    run(*train(remote, steps))
    print(f"killed at steps {', '.join(map(str, ends))}, and resumed")
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
    parser.add_argument("--steps", type=int, default=80)
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
