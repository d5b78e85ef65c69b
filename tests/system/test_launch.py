"""The command line as a user meets it: one clear line for each mistake, and exit codes."""

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import launch
from fundax.runtime.checkpoint import saved_steps
from fundax.train.rerun import trusted_config
from fundax.types import UserError

REPO = Path(__file__).parents[2]


def run_cli(capsys, *argv):
    code = launch.main(argv)
    return code, capsys.readouterr().err.strip()


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    """launch sets variables and log handlers for its process; this one has other tests to run."""
    monkeypatch.setattr(launch, "_prepare", lambda: None)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (("trian",), "error: unknown verb 'trian'; did you mean train?"),
        (("train", "configs/quickstart.py"), "error: train: --workdir DIR is missing"),
        (("train", "configs/quickstat.py", "--workdir", "x"), "did you mean configs/quickstart.py?"),
        (
            ("train", "configs/quickstart.py", "--workdir", "x", "--bacth", "3"),
            "unknown argument --bacth; did you mean --batch?",
        ),
        (("train", "configs/quickstart.py", "--workdir", "x", "--batch", "many"), "invalid literal for int()"),
        (
            ("train", "configs/quickstart.py", "--workdir", "x", "--log-to", "tensorbord"),
            "invalid choice 'tensorbord' for argument '--log-to'",
        ),
        (("eval", "nowhere"), "error: nowhere is not a run: it has no config.json"),
        (("export", "nowhere", "--to", "onnyx", "out"), "cannot export to 'onnyx'; expected ret_clip, open_clip"),
        (("export", "nowhere", "--to", "open_clip", "out"), "nowhere is not a run"),
        (("export", "nowhere", "--to", "open_clip"), "Missing from launch.py export: STR Folder to write."),
        (("export", "nowhere", "out", "--tto", "open_clip"), "unknown argument --tto; did you mean --to?"),
        (
            ("compile", "configs/quickstart.py", "--mesh", "4x2", "--smoke"),
            "--mesh '4x2': expected numbers such as 4,2",
        ),
        (("data", "build", "idird", "--from", "x"), "no data set 'idird'"),
        (("data", "show", "--source", "missing.csv"), "missing.csv: no such file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, monkeypatch, argv, line):
    monkeypatch.chdir(REPO)
    code, err = run_cli(capsys, *argv)
    assert code == 2 and line in err and err.startswith("error: ") and "\n" not in err


def test_a_run_is_logged_where_asked(monkeypatch):
    fitted = []
    monkeypatch.chdir(REPO)
    monkeypatch.setattr("fundax.train.fit", lambda recipe, workdir, **_: fitted.append(recipe.writers))
    monkeypatch.setattr(launch, "_report", lambda workdir: None)
    command = ("train", "configs/quickstart.py", "--smoke", "--workdir", "x")
    assert launch.main((*command, "--log-to", "tensorboard", "--log-to", "wandb")) == launch.main(command) == 0
    assert fitted == [("tensorboard", "wandb"), ()]


def test_the_config_and_the_run_may_stand_behind_the_arguments(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(REPO)
    code, err = run_cli(capsys, "train", "--workdir", "x", "--data", "gone.csv", "configs/quickstart.py")
    assert code == 2 and "gone.csv: no such file" in err
    (tmp_path / "config.json").write_text("{}")
    code, err = run_cli(capsys, "eval", "--data", "gone.csv", str(tmp_path))
    assert code == 2 and f"{tmp_path} holds no checkpoints" in err


CSV = ["image,text,patient", *(f"{k}.png,an eye,p{k}" for k in range(8))]


@pytest.mark.parametrize(
    ("rows", "options", "line"),
    [
        (CSV, ("--text-column", "report"), "report"),
        ([*CSV[:7], "nothing.png,an eye,p6", CSV[8]], (), "row 7"),
        ([*CSV[:7], "three.png,an eye,p6", CSV[8]], (), "three.png"),
    ],
    ids=["a missing column", "a missing file in row 7", "an image of 3 bytes"],
)
def test_mistakes_in_the_data_name_their_place(capsys, tmp_path, rows, options, line):
    from PIL import Image

    for k in range(8):
        Image.new("RGB", (40, 40), (k * 20, 80, 40)).save(tmp_path / f"{k}.png")
    (tmp_path / "three.png").write_bytes(b"abc")
    (tmp_path / "train.csv").write_text("\n".join(rows))
    table = str(tmp_path / "train.csv")
    argv = (
        "train",
        str(REPO / "configs/mm_fundus_clip.py"),
        "--smoke",
        "--fractions",
        "1",
        "--data",
        table,
        *options,
    )
    code, err = run_cli(capsys, *argv, "--workdir", str(tmp_path / "run"))
    last = err.splitlines()[-1]
    assert code == 2 and last.startswith("error: ") and line in last and "Traceback" not in err


def test_help_needs_no_jax():
    code = (
        "import sys, launch; launch.main(['--help']); assert not {'jax', 'flax', 'grain', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"\n    {verb} " in done.stdout for verb in ("train", "eval", "export", "import", "compile", "data"))


def test_help_of_a_config_lists_its_arguments(capsys, monkeypatch):
    monkeypatch.chdir(REPO)
    with pytest.raises(SystemExit) as stopped:
        launch.main(["train", "configs/quickstart.py", "--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and "Number of optimizer steps" in text
    assert all(f"--{name} " in text for name in ("patients", "lr", "mesh", "workdir", "coordinator"))
    for group in ("options", "data options", "run options", "output options"):
        assert re.search(rf"^\W*{group}\W*$", text, re.MULTILINE), group


def test_a_run_of_an_older_version_says_what_to_do(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"config": "configs/quickstart.py", "argv": ["--batch", "8"]}')
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    (tmp_path / "config.py").write_text("from fundax.open_encoder import new_encoder\n")
    code, err = run_cli(capsys, "eval", str(tmp_path), "--trust")
    assert code == 2 and "--config configs/quickstart.py" in err and "\n" not in err


def test_the_config_in_a_run_of_somebody_else_runs_only_if_it_is_trusted(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"argv": []}')
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    (tmp_path / "config.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    code, err = run_cli(capsys, "eval", str(tmp_path))
    assert code == 2 and f"{tmp_path}/config.py differs from all configs of this version" in err and "--trust" in err
    assert "\n" not in err and not (tmp_path / "ran").exists()
    with pytest.raises(UserError, match="--trust"):
        trusted_config(tmp_path)
    run_cli(capsys, "eval", str(tmp_path), "--trust")
    assert (tmp_path / "ran").exists()
    shutil.copy(REPO / "configs" / "quickstart.py", tmp_path / "config.py")
    assert trusted_config(tmp_path) == tmp_path / "config.py"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "", "/run/config.tmp"), "error: No space left on device: /run/config.tmp"),
        (OSError(errno.EROFS, "", "/run/config.tmp"), "error: Read-only file system: /run/config.tmp"),
        (OSError(errno.EMFILE, "", "a.png"), "error: Too many open files: a.png"),
        (FileNotFoundError(errno.ENOENT, "", "nowhere/out.csv"), "error: No such file or directory: nowhere/out.csv"),
        (ValueError("RESOURCE_EXHAUSTED: write failed [No space left on device]"), "error: No space left on device"),
    ],
)
def test_what_the_file_system_refuses_is_one_line(capsys, monkeypatch, error, line):
    def fails(argv):
        try:
            raise error
        except type(error) as cause:  # as libraries raise it
            raise RuntimeError("a save failed") from cause

    monkeypatch.setitem(launch.VERBS, "train", fails)
    assert run_cli(capsys, "train") == (2, line)


TINY = """
from tiny_objective import recipe as linear

def recipe(*, steps: int = 2):
    return linear(steps=steps, evals={})
"""


def test_a_full_disk_is_one_line_and_what_was_saved_stays(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(launch, "_report", lambda workdir: None)
    (tmp_path / "tiny.py").write_text(TINY)
    train, run = ("train", str(tmp_path / "tiny.py"), "--workdir", str(tmp_path / "run")), tmp_path / "run"
    assert launch.main(train) == 0
    for name in ("config.tmp", "metrics.tmp"):
        (run / name).symlink_to("/dev/full")
        code, err = run_cli(capsys, *train, "--steps", "4")
        assert code == 2 and err.splitlines()[-1] == "error: No space left on device"
        assert saved_steps(run) == [2]
        (run / name).unlink()
    assert launch.main([*train, "--steps", "4"]) == 0 and saved_steps(run) == [2, 4]


def test_few_files_are_one_line(tmp_path):
    (tmp_path / "tiny.py").write_text(TINY)
    few = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20)); sys.argv = sys.argv[1:]; "
    argv = [str(REPO / "launch.py"), "train", str(tmp_path / "tiny.py"), "--workdir", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-c", few + "runpy.run_path(sys.argv[0], run_name='__main__')", *argv],
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(REPO), str(REPO / "tests")))},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Too many open files" in done.stderr.splitlines()[-1], done.stderr[-2000:]


def test_ctrl_c_is_one_line(capsys, monkeypatch):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setitem(launch.VERBS, "train", interrupted)
    assert run_cli(capsys, "train") == (130, "Interrupted.")


def test_train_then_eval_of_the_folder_alone(tmp_path, capsys, monkeypatch):
    run = str(tmp_path / "run")
    assert launch.main(["train", str(REPO / "configs/quickstart.py"), "--workdir", run, "--smoke"]) == 0
    monkeypatch.chdir(tmp_path)
    assert launch.main(["eval", run, "--checkpoint", "best"]) == 0
    out = capsys.readouterr().out
    assert "macro average" in out and "training_curves.png" in out
    assert launch.main(["eval", run, "--checkpoint", "99"]) == 2
    assert "has no checkpoint '99'" in capsys.readouterr().err


def test_prepare_sets_the_cache_and_leaves_a_given_one(tmp_path):
    code = "import os, launch; launch._prepare(); print(os.environ['JAX_COMPILATION_CACHE_DIR'])"
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"} | {"XDG_CACHE_HOME": str(tmp_path)}
    ours = subprocess.run([sys.executable, "-c", code], cwd=REPO, env=env, capture_output=True, text=True, check=True)
    assert ours.stdout.strip() == str(tmp_path / "fundax" / "jax")
    given = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, env=env | {"JAX_COMPILATION_CACHE_DIR": "/there"}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert given.stdout.strip() == "/there"
