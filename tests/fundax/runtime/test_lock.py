"""One owner of a run directory."""

import os
import subprocess
import sys
import textwrap

import pytest

from fundax.runtime.lock import owned
from fundax.types import UserError

OWNER = textwrap.dedent("""
    import sys, time
    from fundax.runtime.lock import owned
    with owned(sys.argv[1]):
        print("owned", flush=True)
        time.sleep(60)
""")


@pytest.fixture
def owner(tmp_path):
    environment = os.environ | {"SLURM_JOB_ID": "12", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", OWNER, tmp_path], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None and process.stdout.readline() == b"owned\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_is_refused_with_the_name_of_the_first(tmp_path, owner):
    with (
        pytest.raises(UserError, match=rf"another training .*process {owner.pid} on \S+, SLURM_JOB_ID=12"),
        owned(tmp_path),
    ):
        pass


def test_a_killed_owner_leaves_no_lock_behind(tmp_path, owner):
    owner.kill()
    owner.wait()
    with owned(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()
    assert not (tmp_path / ".lock").exists()  # nor does one that ended


def test_within_one_process_too(tmp_path):
    with owned(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()}"), owned(tmp_path):
        pass
