"""The launch scripts, run with stand-ins for the programs of a cluster."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fundax.interop import export_names

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def cluster(tmp_path):
    """Runs a script where srun, scontrol, xpk and python3 write down how they were called."""
    programs = tmp_path / "bin"
    programs.mkdir()
    record = 'import json, sys\nopen("{log}", "a").write(json.dumps(sys.argv[1:]) + "\\n")\n'
    for name in ("scontrol", "xpk", "python3", "srun"):
        log = tmp_path / f"{name}.log"
        (programs / name).write_text(f"#!{sys.executable}\n" + record.format(log=log))
        (programs / name).chmod(0o755)
    (programs / "python").symlink_to(sys.executable)

    def call(*command, **variables):
        environment = {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", **variables}
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)

    def calls(name):
        log = tmp_path / f"{name}.log"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    call.calls = calls
    return call


def a_run(folder, saved, steps=10):
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    for step in saved:
        (folder / "checkpoints" / str(step)).mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"steps": steps}))


@pytest.mark.parametrize("argument", [["--workdir", "runs/a"], ["--workdir=runs/a"]], ids=" ".join)
def test_slurm_queues_a_run_again_until_it_is_finished(cluster, tmp_path, argument):
    job = ("bash", str(SCRIPTS / "slurm.sbatch"), "configs/x.py", *argument, "--prompt", "{modality}: {text}")
    a_run(tmp_path / "runs" / "a", saved=[4])
    assert cluster(*job).returncode == 0
    launched = ["--kill-on-bad-exit=1", "python", "launch.py", "train", *job[2:]]
    assert cluster.calls("srun") == [launched] and cluster.calls("scontrol") == [["requeue", "7"]]
    done = cluster(*job)  # nothing was saved since
    assert "step 4 of 10; no progress, not queued again" in done.stdout and len(cluster.calls("scontrol")) == 1
    a_run(tmp_path / "runs" / "a", saved=[4, 8])
    cluster(*job)
    assert len(cluster.calls("scontrol")) == 2
    a_run(tmp_path / "runs" / "a", saved=[8, 10])
    done = cluster(*job)
    assert "step 10 of 10; finished" in done.stdout and done.returncode == 0 and len(cluster.calls("scontrol")) == 2


def test_slurm_does_not_queue_again_what_never_began(cluster):
    cluster("bash", str(SCRIPTS / "slurm.sbatch"), "configs/x.py", "--workdir", "nowhere")
    cluster("bash", str(SCRIPTS / "slurm.sbatch"), "configs/x.py")
    assert len(cluster.calls("srun")) == 2 and cluster.calls("scontrol") == []


def test_xpk_keeps_quotes(cluster):
    words = [
        "configs/x.py",
        "--prompt",
        "{modality}: {text}",
        "--data",
        "a.csv,text=it's $HOME",
        "--classes",
        "青光眼",
        "",
    ]
    variables = {"CLUSTER": "c", "IMAGE": "i", "TPU": "v5litepod-256"}
    done = cluster("bash", str(SCRIPTS / "xpk.sh"), "name", *words, **variables)
    assert done.returncode == 0, done.stderr
    (call,) = cluster.calls("xpk")
    assert call[:4] == ["workload", "create", "--cluster", "c"] and "v5litepod-256" in call
    assert subprocess.run(["sh", "-n", "-c", call[-1]], check=False).returncode == 0
    cluster("sh", "-c", call[-1])
    assert cluster.calls("python3") == [["launch.py", "train", *words]]


@pytest.mark.parametrize("smoke", ["", "1"])
def test_gpu_measures_every_part_and_names_those_that_failed(cluster, tmp_path, smoke):
    python = tmp_path / "bin" / "python"
    python.unlink()
    record = f'import json, sys\nopen("{tmp_path}/python.log", "a").write(json.dumps(sys.argv[1:]) + "\\n")\n'
    python.write_text(f'#!{sys.executable}\n{record}sys.exit("benchmarks/loss_memory.py" in sys.argv)\n')
    python.chmod(0o755)
    done = cluster("bash", str(SCRIPTS.parent / "benchmarks" / "gpu.sh"), str(tmp_path / "out"), SMOKE=smoke)
    assert done.returncode == 1 and done.stdout.endswith("not measured: loss_time\n")
    calls = [" ".join(call) for call in cluster.calls("python") if call[0] != "-c"]
    steps = [call for call in calls if "train_step.py" in call]
    assert len(steps) == (1 if smoke else 4) and sum("--no-torch" in call for call in steps) == len(steps) // 2
    assert [call for call in calls if "-m pytest" in call] and calls[-1].startswith("benchmarks/record.py")


def test_every_model_that_is_asked_is_asked_in_ways_that_exist(tmp_path, monkeypatch, capsys):
    """scripts/ask_every_model.py without its subprocesses: the runs are there, and each command is one of launch.py's."""
    script = runpy.run_path(str(SCRIPTS / "ask_every_model.py"))
    asked, commands = script["ASKED"], []
    for name, (_, original) in asked.items():
        assert (SCRIPTS.parent / "configs" / f"{name}.py").is_file()
        assert not original or original in export_names()
        (tmp_path / name / "checkpoints").mkdir(parents=True)

    def launch(*words):
        commands.append(words)
        return "ok" if words[0] != "explain" else "error: no map"

    monkeypatch.setitem(script["ask"].__globals__, "launch", launch)
    monkeypatch.setattr(sys, "argv", ["ask", "eye.jpg", "--runs", str(tmp_path)])
    script["main"]()
    originals = sum(bool(original) for _, original in asked.values())
    assert f"{2 * len(asked)} of {3 * len(asked)} answer; {originals} exports" in capsys.readouterr().out
    assert {words[0] for words in commands} == {"predict", "embed", "explain", "export"}
    assert all("eye.jpg" in words for words in commands if words[0] != "export")
