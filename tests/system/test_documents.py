"""The documents: every command of README.md and the guide runs in a short form, and every file and name they mention exists.

Training commands run with --smoke. They build the recipe and read one batch; only the quickstart and its linear probe are
trained (`trained`), and later commands use copies of these runs. Commands that need a cluster or a package registry are
checked: their files, their config and its arguments exist.
"""

import ast
import functools
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fundax
import launch

REPO = Path(__file__).parents[2]
GUIDE = ["README.md", *sorted(str(path.relative_to(REPO)) for path in (REPO / "docs/guide").glob("*.md"))]
DOCUMENTS = [*GUIDE, "docs/index.md", *sorted(str(p.relative_to(REPO)) for p in (REPO / "docs").glob("m*/*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
IMAGES = ("photo.jpg", "eye.jpg", "other.png", "a.jpg", "b.jpg")
CHECKPOINTS = ("WEIGHTS", "CLIP_FOLDER")  # stand for a folder in Hugging Face's format
# Option -> its value in the short form; None leaves it out.
SHORT = {
    "train": {"--workers": "0", "--size": None, "--preset": None, "--image-size": None, "--folds": "2"},
    "fit": {"--image-size": None},
    "eval": {},
    "compile": {"--size": None, "--batch": None, "--topology": None, "--mesh": None},
    "data": {"--workers": "0"},
    "report": {},
}
MORE = {"train": ["--smoke"], "fit": ["--smoke"], "compile": ["--smoke", "--count"], "report": ["--resamples", "20"]}
LAUNCH = (
    "workdir",
    "log_to",
    "folds",
    "profile",
    "dry_run",
    "batch_per_device",
    "help",
    "topology",
    "shardings",
    "count",
    "search",
)  # arguments of train and compile themselves
CLUSTER = ("mpirun", "torchrun", "gcloud", "sbatch", "scripts/xpk.sh")


def documents_of(name):
    spec = importlib.util.spec_from_file_location(name, REPO / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(document, *languages):
    return [text for kind, text in FENCE.findall((REPO / document).read_text(encoding="utf-8")) if kind in languages]


def commands(document):
    """The commands of a document, one list of words each: continued lines joined, comments removed, && split."""
    lines = "".join(blocks(document, "bash", "console")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    for line in filter(None, words):
        while "&&" in line:
            yield line[: line.index("&&")]
            line = line[line.index("&&") + 1 :]
        yield line


@pytest.fixture(autouse=True)
def unchanged_process(monkeypatch):
    """launch.py sets variables and log handlers of its process, which other tests share."""
    monkeypatch.setattr(launch, "_prepare", lambda: None)
    monkeypatch.setattr(launch, "_report", lambda workdir: None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Smoke runs of the quickstart and of its linear probe, and the quickstart as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "_prepare", lambda: None)
        patch.setattr(launch, "_report", lambda workdir: None)
        patch.chdir(REPO)
        for config, init in (("quickstart", []), ("linear_probe", ["--init", str(folder / "quickstart")])):
            run = str(folder / config)
            assert launch.main(["train", f"configs/{config}.py", "--workdir", run, "--smoke", *init]) == 0
        quickstart, exported = str(folder / "quickstart"), str(folder / "exported")
        assert launch.main(["export", quickstart, "--to", "huggingface", exported]) == 0
    return folder


@pytest.fixture
def workspace(tmp_path, monkeypatch, trained):
    """A folder with the files that the documents take as given; training is replaced by `check_recipe`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FUNDAX_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("configs", "scripts", "benchmarks"):
        (tmp_path / name).symlink_to(REPO / name)
    write_inputs(tmp_path)
    for name in CHECKPOINTS:
        shutil.copytree(trained / "exported", tmp_path / name)
    monkeypatch.setattr("fundax.train.fit", lambda recipe, run, **_: check_recipe(recipe, run, trained))
    monkeypatch.setattr(
        "fundax.cli.folds.cross_validate", lambda load, run, *_: check_recipe(load("--fold", "1/2"), run, trained)
    )
    monkeypatch.setattr(
        "fundax.cli.folds.fit_better",
        lambda loads, run, _: [
            check_recipe(load("--fold", "1/2"), Path(run, name), trained) for name, load in loads.items()
        ],
    )
    monkeypatch.setattr("fundax.serving.web.run", lambda served, host, port: None)
    for upload in ("create_repo", "upload_folder"):
        monkeypatch.setattr(f"huggingface_hub.HfApi.{upload}", lambda self, *name, **options: None)
    np.savez(tmp_path / "features.npz", features=features_of(trained), image=np.array(["gone.jpg"]))
    monkeypatch.setattr("fundax.interop.pretrained._in_package", lambda name: trained / "quickstart")
    return tmp_path


def check_recipe(recipe, run, trained):
    """In place of training: a batch has the keys of the objective; the run is a copy of a trained one."""
    wanted = set(recipe.objective.batch_spec(recipe.batch))
    if recipe.steps and "feature" not in wanted:  # computing features would compile an encoder
        assert wanted <= set(next(iter(recipe.train(0, 1))))
    own = "linear_probe" if "linear_probe" in str(recipe.source["config"]) else "quickstart"
    copy_run(trained / own, Path(run))


@functools.cache
def features_of(trained):
    """The feature of a photograph that is not there any more, as launch.py embed wrote it."""
    return np.ones((1, fundax.load(trained / "quickstart").objective.embed), np.float32)


def fill_bucket(trained):
    """What the documents take as given at gs://bucket, in a folder that has an address as well."""
    copy_run(trained / "quickstart", Path("bucket/run"))
    for name in ("labels.csv", *(f"{k}.jpg" for k in range(24))):
        shutil.copy(name, Path("bucket", name))


def copy_run(source, target):
    if not target.exists():
        shutil.copytree(source, target)


def write_inputs(folder):
    """Photographs, tables about them, and a data set in folders by class."""
    rng = np.random.default_rng(0)
    names = [f"{k}.jpg" for k in range(24)]
    for path in [*(Path("photos", name) for name in names), *map(Path, [*names, *IMAGES])]:
        (folder / path).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (48, 48, 3), np.uint8)).save(folder / path)
    for k, name in enumerate(names):
        kind = folder / "idrid" / ("train", "train", "val", "test")[k // 2 % 4] / ("mild", "severe")[k % 2]
        kind.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, kind / name)
    words = ("mild", "severe")
    rows = [f"{n},an eye with drusen,{words[k % 2]},p{k},{40 + k},{6 + k / 9:.1f}" for k, n in enumerate(names)]
    for table in ("train.csv", "labels.csv", "other.csv"):
        (folder / table).write_text("\n".join(["image,text,label,patient,age,hba1c", *rows]), encoding="utf-8")
    visits = [f"{n},q{k // 2},left,{300 * (k % 2)},{k % 4}" for k, n in enumerate(names)]
    (folder / "visits.csv").write_text("\n".join(["image,patient,eye,day,label", *visits]), encoding="utf-8")
    public = folder / "DIR"
    shutil.copytree(folder / "photos", public / "photos")
    built = [f"photos/{n},{k % 4},{k % 3},train" for k, n in enumerate(names)]
    (public / "labels.csv").write_text("\n".join(["image,label,risk_of_macular_edema,split", *built]), encoding="utf-8")


def run_command(words, trained):
    """Run or check one command. Raises AssertionError for a command that no rule covers."""
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if words[:2] in (["python", "launch.py"], ["python3", "launch.py"]):
        run_launch(words[2:], trained)
    elif words[:2] == ["pip", "install"]:
        check_extras(words[2:])
    elif words[0] in CLUSTER:
        check_cluster(words, trained)
    elif words[0] == "python" and words[1].startswith(("benchmarks/", "scripts/")):
        check_script(Path(words[1]), words[2:])
    else:
        assert words in (["pytest"],), f"no rule for the command {' '.join(words)}"


def run_launch(words, trained):
    verb, rest = words[0], words[1:]
    if any("gs://" in word for word in rest):
        fill_bucket(trained)
        rest = [word.replace("gs://bucket", f"file://{Path.cwd()}/bucket") for word in rest]
    for word, before in zip(rest, [verb, *rest], strict=False):
        for run in re.findall(r"runs/\w+", word):
            if before != "--workdir":
                copy_run(trained / ("linear_probe" if "probe" in run else "quickstart"), Path(run))
    if "--dry-run" in rest:  # which trains in earnest, at full size
        rest = [
            *(word for word, before in zip(rest, ["", *rest], strict=False) if "--size" not in (word, before)),
            "--smoke",
        ]
    argv = shortened(rest, SHORT.get(verb, {})) + ([] if "--help" in rest else MORE.get(verb, []))
    try:
        code = launch.main([verb, *argv])
    except SystemExit as ended:
        code = ended.code or 0
    assert code == 0, f"{' '.join(words)} in its short form, {' '.join([verb, *argv])}, ended with code {code}"


def shortened(words, changes):
    """The words with the values of some options changed, or left out with the option."""
    short, skipped = [], False
    for word, option in zip(words, ["", *words], strict=False):
        if skipped:
            skipped = False
            continue
        skipped = word in changes and changes[word] is None
        if not skipped:
            short.append(changes.get(option, word))
    return short


def check_extras(words):
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extras in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        assert set(extras.split(",")) <= set(project["optional-dependencies"]), words


def check_cluster(words, trained):
    """The script exists, and the config accepts its arguments."""
    if words[0] == "gcloud" and "launch.py" not in words[-1]:
        check_extras(words)  # it creates machines, copies files and installs
        return
    words = shlex.split(" ".join(words)) if words[0] != "gcloud" else shlex.split(words[-1])
    for word in words:
        assert not word.startswith("scripts/") or (REPO / word).is_file(), word
    start = next(k for k, word in enumerate(words) if word.startswith("configs/"))
    run_launch(["train", *words[start:]], trained)


def check_script(path, words):
    source = (REPO / path).read_text(encoding="utf-8")
    for word in words:
        name = word.removeprefix("--").removeprefix("no-").replace("-", "_")
        assert not word.startswith("--") or f'"{word}"' in source or f"{name}:" in source, f"{path} has no {word}"


@pytest.mark.parametrize("document", GUIDE)
def test_commands_run_in_their_short_form(document, workspace, trained, capsys):
    found = list(commands(document))
    assert found or not blocks(document, "bash", "console")
    for words in found:
        run_command(words, trained)


@pytest.mark.parametrize("document", GUIDE)
def test_python_runs(document, workspace, trained):
    for name in ("quickstart", "mine"):
        copy_run(trained / "quickstart", Path("runs", name))
    for text in blocks(document, "python"):
        code = compile(text, document, "exec")
        if "import fundax" in text:
            exec(code, {})


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_files_arguments_and_objects_exist(document):
    hooks, text = documents_of("docs_hooks"), (REPO / document).read_text(encoding="utf-8")
    assert not list(hooks.missing(text))
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (REPO / document).parent.joinpath(target).exists() or target.endswith("reference/index.md"), target
    ours = re.sub(r"`hf download[^`]+`", "", text)  # a program of the hub
    assert not {flag for flag in re.findall(r"(?<![\w-])--[a-z][\w-]+", ours) if flag not in arguments()}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_configs_have_the_arguments_of_training_commands(document):
    """Also of the methods and measurements, whose commands do not run here."""
    from fundax.config import arguments_of

    text = (REPO / document).read_text(encoding="utf-8")
    code = "\n".join([*(body for _, body in FENCE.findall(text)), *re.findall(r"`(python launch.py [^`]+)`", text)])
    for line in code.replace("\\\n", " ").splitlines():
        if found := re.search(r"launch.py (?:train|compile) (configs/\w+.py)(.*)", line):
            known = {*arguments_of(REPO / found[1]), *LAUNCH}
            flags = {flag.replace("-", "_").removeprefix("no_") for flag in re.findall(r" --([\w-]+)", found[2])}
            assert flags <= known, f"{found[1]} has no {', '.join(sorted(flags - known))}: {line}"


@functools.cache
def arguments():
    """Every argument that launch.py, a config, a benchmark or a script has, and those of other programs in the documents."""
    others = {
        "--worker",
        "--command",
        "--nnodes",
        "--nproc-per-node",
        "--rdzv-backend",
        "--rdzv-endpoint",
        "--no-python",
        *("--zone", "--accelerator-type", "--version", "--recurse"),
    }
    found = others | {"--signal", "--help", "--nproc"}
    files = [REPO / "launch.py", *(p for d in ("configs", "benchmarks", "scripts", "fundax", "data_pipelines")
                                   for p in (REPO / d).rglob("*.py"))]  # fmt: skip
    for path in files:
        text = path.read_text(encoding="utf-8")
        found |= {f"--{name}" for name in re.findall(r'arg\(name="(\w+)"', text)}
        found |= set(re.findall(r"--[a-z][\w-]+", "".join(re.findall(r"add_argument\(([^)]*)", text))))
        for node in ast.walk(ast.parse(text)):
            names = []
            if isinstance(node, ast.FunctionDef) and (node.name in ("recipe", "main") or path.name == "verbs.py"):
                names = [a.arg for a in (*node.args.kwonlyargs, *node.args.args)]
            elif isinstance(node, ast.ClassDef):
                names = [
                    n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
                ]
            found |= {f"--{no}{name.rstrip('_')}".replace("_", "-") for name in names for no in ("", "no-")}
    return found


@pytest.mark.parametrize("name", sorted(set(re.findall(r"fundax\.(\w+)", fundax.__doc__))))
def test_names_in_the_table_of_contents_exist(name):
    assert name in dir(fundax)
    assert getattr(fundax, name).__doc__


def test_import_fundax_imports_no_jax():
    code = "import sys, fundax; assert not {'jax', 'flax', 'numpy'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_export_formats_are_documented():
    from fundax.interop import export_names

    text = (REPO / "docs/guide/export.md").read_text(encoding="utf-8")
    assert all(f"`--to {name}`" in text for name in export_names())


def test_lines_of_documents_are_short():
    for document in DOCUMENTS:
        lines = (REPO / document).read_text(encoding="utf-8").splitlines()
        assert not [line for line in lines if len(line) > 120 and not line.startswith("|")], document


def test_benchmark_tables_are_complete():
    hooks = documents_of("docs_hooks")
    names = [path.stem for path in (REPO / "benchmarks/results").glob("*.json")]
    text = "".join((REPO / document).read_text(encoding="utf-8") for document in DOCUMENTS)
    assert names and all(f"benchmarks/results/{name}.json" in text and hooks.result_tables(name) for name in names)
