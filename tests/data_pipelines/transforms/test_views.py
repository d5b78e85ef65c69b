"""Records to examples: views, texts and targets, and the messages if one is missing."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.records import MODALITIES, PHRASES, DataError, Record, View, eye_name, modality_name
from data_pipelines.transforms.views import Grouped, PairedEyes, SingleView, swap_sides

RNG = np.random.default_rng(0)
LEFT = View(np.full((6, 8, 3), 10, np.uint8), "CFP", "left")
RIGHT = View(np.full((6, 8, 3), 20, np.uint8), "CFP", "right")
OCT = View(np.full((4, 4, 3), 30, np.uint8), "OCT", "left")


def visit(*views, **more):
    return Record("p1", views, **{"where": "a.csv row 7 (line 9)", "report": "drusen", **more})


def test_single_view():
    example = SingleView()(visit(LEFT, OCT, targets={"label": 3}), RNG)
    assert set(example) == {"image", "modality", "eye", "patient", "text", "label"}
    assert example["image"][0, 0, 0] == 10 and example["text"] == "drusen"
    assert (example["label"], example["eye"], example["modality"]) == (3, 0, 0)
    assert {example[key].dtype for key in ("label", "eye", "modality")} == {np.dtype(np.int32)}


def test_view_of_a_modality_and_by_chance():
    assert SingleView(modality="OCT")(visit(LEFT, OCT), RNG)["image"][0, 0, 0] == 30
    rng = np.random.default_rng(1)
    seen = [int(SingleView(choose="random")(visit(LEFT, RIGHT), rng)["image"][0, 0, 0]) for _ in range(40)]
    assert 10 < seen.count(10) < 30
    with pytest.raises(DataError, match=r"a.csv row 7 \(line 9\): has no view of modality FFA"):
        SingleView(modality="FFA")(visit(LEFT), RNG)
    with pytest.raises(DataError, match="patient p1: has no view"):
        SingleView()(visit(where=""), RNG)


def test_words():
    record = visit(OCT, findings=("CNV", "fluid"))
    assert SingleView(text="findings")(record, RNG)["text"] == "CNV, fluid"
    prompt = "{modality} of the {eye}: {text}"
    assert SingleView(prompt=prompt)(record, RNG)["text"] == "optical coherence tomography scan of the left eye: drusen"
    chinese = SingleView(text="findings", prompt="{eye_zh}{modality_zh}：{text}")(record, RNG)["text"]
    assert chinese == "左眼光学相干断层扫描：CNV, fluid"
    assert "text" not in SingleView(text=None)(record, RNG)
    assert "text" not in SingleView(prompt=prompt)(visit(OCT, report=""), RNG)
    assert SingleView(text=None, prompt="a {modality}")(record, RNG)["text"] == "a optical coherence tomography scan"
    assert set(PHRASES) == set(MODALITIES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "{txt}"}, "only fields are {text}, {modality}"),
        ({"prompt": "{"}, "only fields are {text}, {modality}"),
        ({"text": "title"}, "text must be report, findings or None, not 'title'"),
        ({"choose": "last"}, "choose must be first or random, not 'last'"),
    ],
)
def test_wrong_settings_are_refused_when_the_step_is_made(arguments, message):
    with pytest.raises(DataError, match=message):
        SingleView(**arguments)


def test_targets_are_arrays_and_missing_ones_are_named():
    record = visit(LEFT, targets={"label": [1, 0, 1.0], "value": 5.5, "points": [[1, 2]], "age": 40})
    example = SingleView(targets=("label", "value", "points", "age"))(record, RNG)
    np.testing.assert_array_equal(example["label"], np.array([1, 0, 1], np.float32))
    assert example["label"].dtype == example["value"].dtype == example["points"].dtype == np.float32
    assert example["age"] == 40 and example["age"].dtype == np.int32
    assert "label" not in SingleView()(visit(LEFT), RNG)
    with pytest.raises(DataError, match=r"a.csv row 7 \(line 9\): has no mask, sex, only label, value"):
        SingleView(targets=("mask", "sex", "label"))(record, RNG)
    with pytest.raises(DataError, match="has no label, only no targets"):
        SingleView(targets=("label",))(visit(LEFT), RNG)


def test_mask_and_points_follow_a_scaled_decoding(tmp_path):
    out = io.BytesIO()
    Image.fromarray(np.zeros((80, 160, 3), np.uint8)).save(out, "JPEG")
    mask = np.zeros((80, 160), np.uint8)
    mask[40:, :] = 2
    Image.fromarray(mask).save(tmp_path / "m.png")
    targets = {"mask": tmp_path / "m.png", "points": np.array([[0, 0], [159, 79]])}
    record = visit(View(out.getvalue()), targets=targets)
    example = SingleView(size_hint=20, targets=("mask", "points"))(record, RNG)
    assert example["image"].shape == (20, 40, 3) and example["mask"].shape == (20, 40)
    np.testing.assert_array_equal(example["mask"][:, 0], [0] * 10 + [2] * 10)
    np.testing.assert_allclose(example["points"], [[-0.375, -0.375], [39.375, 19.375]])


def test_mask_of_another_size_or_that_is_missing():
    record = visit(LEFT, targets={"mask": np.zeros((6, 9), np.int32)})
    with pytest.raises(DataError, match=r"row 7 \(line 9\): mask is 9 x 6 pixels, its image 8 x 6"):
        SingleView(targets=("mask",))(record, RNG)
    with pytest.raises(DataError, match=r"row 7 \(line 9\): gone.png: no such image file"):
        SingleView(targets=("mask",))(visit(LEFT, targets={"mask": Path("gone.png")}), RNG)


def test_unreadable_images_name_row_and_file():
    with pytest.raises(
        DataError, match=r"^a.csv row 7 \(line 9\): x/gone.jpg: no such image file; the folder x does not exist$"
    ):
        SingleView()(visit(View(Path("x/gone.jpg"))), RNG)
    with pytest.raises(DataError, match=r"^a.csv row 7 \(line 9\): an image of 3 bytes: not an image, it has only"):
        PairedEyes()(visit(View(b"\xff\xd8\xff", eye="left")), RNG)


def test_paired_eyes_and_the_missing_one():
    both = PairedEyes()(visit(RIGHT, OCT, LEFT, targets={"label": 1}), RNG)
    assert both["left"][0, 0, 0] == 30 and both["right"][0, 0, 0] == 20 and both["label"] == 1
    assert PairedEyes(modality="CFP")(visit(OCT, RIGHT, LEFT), RNG)["left"][0, 0, 0] == 10
    one = PairedEyes(prompt="{modality}: {text}")(visit(RIGHT), RNG)
    assert one["left"].shape == one["right"].shape and not one["left"].any()
    assert (bool(one["left_present"]), bool(one["right_present"])) == (False, True)
    assert one["text"] == "color fundus photograph: drusen"
    with pytest.raises(DataError, match=r"row 7 \(line 9\): has no view of a known eye; expected left or right"):
        PairedEyes()(visit(View(np.zeros((2, 2, 3), np.uint8))), RNG)
    with pytest.raises(DataError, match="mask and points belong to one view"):
        PairedEyes(targets=("mask",))


@pytest.mark.parametrize(
    ("text", "swapped"),
    [
        ("Left eye: drusen right of the disc. LEFT", "Right eye: drusen left of the disc. RIGHT"),
        ("OD normal, OS drusen, OU. The os frontale", "OS normal, OD drusen, OU. The os frontale"),
        ("O.D. and O.S.", "O.S. and O.D."),
        ("左眼黄斑水肿，右眼正常，约3天左右", "右眼黄斑水肿，左眼正常，约3天左右"),
        ("bright, copyright, leftover", "bright, copyright, leftover"),
        ("nasal and temporal, superior", "nasal and temporal, superior"),
    ],
)
def test_sides_in_text(text, swapped):
    assert swap_sides(text) == swapped
    assert swap_sides(swapped) == text


def test_names_of_modalities_and_eyes():
    assert [modality_name(n) for n in ("cfp", "Fundus", "slit-lamp", "FA", "b scan")] == [
        *("CFP", "CFP", "SLIT_LAMP", "FFA", "B_ULTRASOUND")
    ]
    assert [eye_name(n) for n in ("L", "od", "", "左眼", "Right", "left eye")] == [
        *("left", "right", "", "left", "right", "left")
    ]
    with pytest.raises(DataError, match="modality 'XRAY' is not one of CFP, FFA"):
        modality_name("XRAY")
    with pytest.raises(DataError, match="eye 'both' is not left or right"):
        eye_name("both")
    with pytest.raises(DataError, match=r"row 7 \(line 9\): modality 'XRAY' is not one of"):
        SingleView()(visit(View(np.zeros((2, 2, 3), np.uint8), "XRAY")), RNG)


def test_group_is_the_same_for_a_patient():
    step = Grouped(SingleView(text=None))
    image = np.zeros((4, 4, 3), np.uint8)
    groups = [step(Record(name, (View(image),)), np.random.default_rng(0))["group"] for name in ("a", "b", "a")]
    assert groups[0] == groups[2] != groups[1] and groups[0].dtype == np.int32
