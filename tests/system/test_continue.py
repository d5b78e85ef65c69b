"""A command in the folder of a run: it continues the run, or is refused in one line and changes nothing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import launch
from fundax.runtime.checkpoint import load_params, saved_steps
from fundax.runtime.lock import owned

REPO = Path(__file__).parents[2]
COLOURS = {"AMD": (200, 60, 60), "DR": (60, 200, 60), "normal": (60, 60, 200), "glaucoma": (200, 200, 60)}


def table(folder, name, classes, rows=36):
    """A CSV of discs whose colour is their class, and its images."""
    folder.mkdir(exist_ok=True)
    lines = ["image,label,patient"]
    y, x = np.ogrid[:24, :24]
    for k in range(rows):
        disc = np.where(((y - 12) ** 2 + (x - 12) ** 2 < 100)[..., None], COLOURS[classes[k % len(classes)]], k % 7)
        Image.fromarray(disc.astype(np.uint8)).save(folder / f"{name}{k}.png")
        lines.append(f"{name}{k}.png,{classes[k % len(classes)]},{name}{k}")
    (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return str(folder / f"{name}.csv")


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    return {
        "own": table(folder, "own", ("AMD", "DR", "normal")),
        "moved": table(folder, "moved", ("AMD", "DR", "normal")),
        "ext": table(folder, "ext", ("DR", "glaucoma", "normal")),
        "sub": table(folder, "sub", ("DR", "normal")),
    }


BASE = ("--smoke", "--mesh", "1,1", "--steps", "4", "--save-every", "2", "--eval-every", "2")
COMMANDS = {
    "quickstart": BASE,
    "ret_clip": (*BASE, "--patients", "16"),
    "finetune": (*BASE, "--data", "{own}"),
}
CONTINUES = [
    ("quickstart", (), ""),
    ("quickstart", ("--best", "zero_shot/macro_auc"), ""),  # the same evaluation by its name
    ("quickstart", ("--workers", "1", "--keep", "3"), "changed: --keep 2 -> 3; --workers 0 -> 1"),
    ("finetune", (), ""),
    ("ret_clip", ("--steps", "5"), "changed: --steps 4 -> 5"),
]
REFUSED = {  # test_resume_matrix.py has every argument
    "quickstart": {
        "--batch 4": "--batch 8 -> 4",
        "--best zero_shot/accuracy": "best zero_shot*/macro_auc -> zero_shot/accuracy",
        "--mesh 3,5": "mesh (3, 5) does not fit",
    },
    "ret_clip": {"--context 16": "--context 32 -> 16"},
    "finetune": {
        "--data {ext}": "classes AMD, DR, normal -> DR, glaucoma, normal; data own (36 rows",
        "--data {moved}": "data own (36 rows",
        "--classes normal DR AMD": "classes AMD, DR, normal -> normal, DR, AMD",
        "--fractions 0.6 0.4": "split ",
        "--ordered --classes AMD DR normal": "--ordered False -> True",
    },
}


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def run(name, workdir, tables, *more):
    words = [word.format(**tables) for word in (*COMMANDS[name], *more)]
    return launch.main(["train", str(REPO / "configs" / f"{name}.py"), "--workdir", str(workdir), *words])


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tables):
    made = {}

    def get(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("runs") / name
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(launch, "_prepare", lambda: None)
                assert run(name, made[name], tables) == 0
        return made[name]

    return get


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    monkeypatch.setattr(launch, "_prepare", lambda: None)
    monkeypatch.setattr(launch, "_report", lambda workdir: None)


def test_other_settings_are_refused_with_both_values_and_the_run_stays_as_it_is(trained, tables, capsys):
    for name, cases in REFUSED.items():
        folder = trained(name)
        before = files(folder)
        for argv, line in cases.items():
            capsys.readouterr()
            code, printed = run(name, folder, tables, *argv.split()), capsys.readouterr().err.strip().splitlines()[-1]
            assert code == 2 and printed.startswith("error: ") and line in printed, (name, argv, printed)
            assert files(folder) == before, (name, argv)


@pytest.mark.parametrize(("name", "more", "line"), CONTINUES)
def test_a_run_that_was_cut_short_continues_and_says_what_changed(name, more, line, trained, tables, tmp_path, capsys):
    whole, folder = trained(name), tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "checkpoints" / "4")
    capsys.readouterr()
    assert run(name, folder, tables, *more) == 0
    printed = " ".join(capsys.readouterr().err.split())
    assert "resuming after step 2" in printed and line in printed and ("changed" in printed) == bool(line)
    history = json.loads((folder / "config.json").read_text())["history"]
    assert [entry["step"] for entry in history] == [0, 2] and ("changed" in history[1]) == bool(line)
    if "--steps" not in more:
        assert jax_equal(*(load_params(one, "latest")[0] for one in (folder, whole)))


def jax_equal(a, b):
    import jax

    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_a_second_training_of_a_folder_is_refused(tmp_path, capsys):
    with owned(tmp_path):
        assert launch.main(["train", str(REPO / "configs" / "quickstart.py"), "--workdir", str(tmp_path), *BASE]) == 2
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock"]
    assert "another training or evaluation is writing to this folder (process" in capsys.readouterr().err


def test_a_complete_run_says_so_and_changes_nothing(trained, tables, capsys):
    folder = trained("finetune")
    before = files(folder)
    for more in ((), ("--steps", "3"), ("--workers", "2")):
        assert run("finetune", folder, tables, *more) == 0
        assert "is complete, at step 4 of" in " ".join(capsys.readouterr().err.split())
    assert files(folder) == before


def test_a_run_without_a_record_of_its_data_is_compared_by_what_it_has(trained, tables, tmp_path, caplog, capsys):
    caplog.set_level("INFO", "fundax")
    folder = tmp_path / "old"
    shutil.copytree(trained("finetune"), folder)
    config = json.loads((folder / "config.json").read_text())
    for name in ("data", "history"):
        del config[name]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "split.json").unlink()
    assert run("finetune", folder, tables, "--steps", "5") == 0
    assert "stored no record of its data" in caplog.text and saved_steps(folder)[-1] == 5
    assert run("finetune", folder, tables, "--steps", "6", "--data", tables["ext"]) == 2
    assert "classes AMD, DR, normal -> DR, glaucoma, normal" in capsys.readouterr().err


def about(folder, name):
    with np.load(folder / "evals" / f"{name}.npz") as stored:
        return json.loads(str(stored["about"])), {key: stored[key] for key in stored}


def evaluate(folder, *argv):
    return launch.main(["eval", str(folder), *argv])


def test_other_data_are_scored_whole_with_the_classes_of_the_run(trained, tables, tmp_path, capsys):
    from sklearn.metrics import roc_auc_score

    folder = tmp_path / "run"
    shutil.copytree(trained("finetune"), folder)
    own, rows = (folder / "evals" / "val.npz").read_bytes(), (folder / "metrics.jsonl").read_text().splitlines()
    assert evaluate(folder, "--data", tables["ext"]) == 0
    assert evaluate(folder, "--data", tables["sub"], "--name", "two_classes") == 0
    assert sorted(p.stem for p in (folder / "evals").glob("*.npz")) == ["ext", "two_classes", "val"]
    assert (folder / "evals" / "val.npz").read_bytes() == own
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert lines[: len(rows)] == rows and len(lines) == len(rows) + 2
    for name, expected in (("ext", {"DR": 12, "normal": 12}), ("two_classes", {"DR": 18, "normal": 18})):
        printed, arrays = about(folder, name)
        assert printed["part"] == "all" and printed["data"] == [{"ext": "ext", "two_classes": "sub"}[name]]
        assert arrays["classes"].tolist() == ["AMD", "DR", "normal"]
        for label, count in expected.items():
            k = arrays["classes"].tolist().index(label)
            assert (arrays["labels"] == k).sum() == count
            auc = roc_auc_score(arrays["labels"] == k, arrays["probabilities"][:, k])
            assert arrays["auc"][k] == pytest.approx(auc)
    assert about(folder, "ext")[0]["digest"] != about(folder, "val")[0]["digest"]
    capsys.readouterr()
    assert evaluate(folder, "--data", tables["moved"], "--name", "ext") == 2
    assert "evals/ext.npz" in (printed := capsys.readouterr().err) and "holds results of ext" in printed
    assert evaluate(folder, "--data", tables["ext"], "--name", "val") == 2
    assert "--name val: expected a word" in capsys.readouterr().err
    assert evaluate(folder, "--fractions", "0.5", "0.5") == 2
    assert "other images than the run's own: give --name" in capsys.readouterr().err
    assert evaluate(folder, "--classes", "normal", "DR", "AMD") == 2
    assert "has the classes AMD, DR, normal; these data have normal, DR, AMD" in capsys.readouterr().err


def test_the_runs_own_parts_are_those_it_stored(trained, tables, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(trained("finetune"), folder)
    before = about(folder, "val")[1]
    monkeypatch.chdir(tmp_path)
    assert evaluate(folder) == evaluate(folder, "--part", "test") == evaluate(folder, "--checkpoint", "2") == 0
    again, test, earlier = (about(folder, name) for name in ("val", "test", "val_step2"))
    np.testing.assert_array_equal(again[1]["index"], before["index"])
    assert str(Path(tables["own"]).parent) not in (folder / "split.json").read_text()  # it can be published
    parts = json.loads((folder / "split.json").read_text())["parts"]
    assert not set(parts["test"]["own"]) & set(parts["val"]["own"])
    assert [len(parts["test"]["own"]), len(parts["val"]["own"])] == [len(test[1]["index"]), len(before["index"])]
    assert (again[0]["step"], earlier[0]["step"], test[0]["part"]) == (4, 2, "test")
    assert again[0]["digest"] == test[0]["digest"]


def test_error_about_a_missing_file_names_the_run(trained, tables, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained("finetune"), folder)
    config = (folder / "config.json").read_text().replace(tables["own"], str(tmp_path / "gone.csv"))
    (folder / "config.json").write_text(config)
    assert evaluate(folder) == 2
    printed = capsys.readouterr().err
    assert (
        f"{tmp_path}/gone.csv is what the run was trained with" in printed and "--data gives its place now" in printed
    )


def test_an_address_of_unknown_storage_is_one_line(capsys):
    for argv in (
        ("train", str(REPO / "configs/quickstart.py"), "--workdir", "nowhere://bucket/run"),
        ("eval", "nowhere://bucket/run"),
        ("predict", "nowhere://bucket/run", "--image", "a.png"),
    ):
        assert launch.main(argv) == 2
        assert "error: nowhere://bucket/run: ValueError: Protocol not known" in capsys.readouterr().err
    assert not Path("nowhere:").exists()
