"""The augmentations: their numbers, their streams of chance, and left staying left."""

import math
import pickle
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from data_pipelines.images import decode
from data_pipelines.images.masks import load_mask
from data_pipelines.records import DataError, Record, View
from data_pipelines.transforms import steps as transforms
from data_pipelines.transforms.field_of_view import field_of_view
from data_pipelines.transforms.steps import (
    ColorJitter,
    FieldOfViewCrop,
    Flip,
    IndependentFlip,
    RandomAffine,
    RandomErasing,
    RandomResizedCrop,
    Select,
    Squash,
    Tokenize,
    apply,
)
from data_pipelines.transforms.views import PairedEyes, SingleView

NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
RECORD = Record("p", (View(NOISE, "CFP", "left"), View(NOISE[::-1], "CFP", "right")), report="left eye, OS, normal")


def rng(seed=0):
    return np.random.default_rng(seed)


def test_apply_is_a_function_of_seed_and_position():
    steps = (SingleView(), *transforms.extra_aug(24), Flip())
    first = apply(steps, RECORD, seed=3, position=5)
    again = apply(pickle.loads(pickle.dumps(steps)), RECORD, seed=3, position=5)
    np.testing.assert_array_equal(first["image"], again["image"])
    assert first["image"].shape == (24, 24, 3) and first["image"].dtype == np.uint8
    for other in (apply(steps, RECORD, 3, 6), apply(steps, RECORD, 4, 5)):
        assert (other["image"] != first["image"]).mean() > 0.5
    assert transforms.stream(0, 0, "Flip", 0).random() == transforms.stream(0, 0, "Flip", 0).random()


class Draw:
    """Notes what it draws."""

    def __init__(self, name):
        self.name = name

    def __call__(self, example, rng):
        return example | {self.name: rng.random()}


class OtherDraw(Draw):
    pass


def test_another_step_leaves_the_draws_of_the_others():
    alone = apply((Draw("a"),), {}, 0, 7)
    among = apply((OtherDraw("x"), Draw("a"), Draw("b"), Squash(4)), {}, 0, 7)
    assert among["a"] == alone["a"]
    assert len({among["a"], among["b"], among["x"]}) == 3


def test_preprocess_follows_the_mapping():
    image = np.asarray(Image.fromarray(NOISE).resize((20, 20), Image.Resampling.BILINEAR))
    got = transforms.preprocess(NOISE, {"image_size": 20, "resize": "squash", "interpolation": "bilinear", "mean": 0})
    np.testing.assert_array_equal(got, image)
    assert transforms.eval_step({"image_size": 20}) == Squash(20, "bicubic", "squash")
    with pytest.raises(DataError, match="resize must be one of squash, shortest, longest, canvas, not 'pad'"):
        transforms.preprocess(NOISE, {"image_size": 20, "resize": "pad"})
    with pytest.raises(DataError, match="interpolation must be one of nearest, bilinear, bicubic, lanczos, not 'area'"):
        transforms.preprocess(NOISE, {"image_size": 20, "interpolation": "area"})
    with pytest.raises(DataError, match="preprocessing has no image_size, only mean"):
        transforms.eval_step({"mean": 0})
    with pytest.raises(DataError, match="image: the steps take uint8 images, not float32"):
        Squash(8)({"image": NOISE.astype(np.float32)}, rng())


def test_rotation_angles_are_uniform_and_each_eye_has_its_own():
    angles, chance = [], rng()
    spot = {"image": np.zeros((41, 41, 3), np.uint8), "points": np.array([[40.0, 20.0]], np.float32)}
    for _ in range(1000):
        out = RandomAffine(30)(spot, chance)
        x, y = out["points"][0] - 20
        angles.append(math.degrees(math.atan2(y, x)))
    assert -30 <= min(angles) < -27 and 27 < max(angles) <= 30
    assert abs(np.mean(angles)) < 2.2 and abs(np.std(angles) - 60 / math.sqrt(12)) < 1  # four standard errors
    eyes = RandomAffine(30)({"left": NOISE, "right": NOISE}, rng())
    assert (eyes["left"] != eyes["right"]).any()


def test_crop_boxes_have_torchvisions_distribution():
    step, areas, ratios = RandomResizedCrop(8), [], []
    for seed in range(2000):
        box = step.box(1000, 1100, rng(seed))
        assert 0 <= box.top <= 1000 - box.height and 0 <= box.left <= 1100 - box.width
        areas.append(box.height * box.width / 1.1e6)
        ratios.append(box.width / box.height)
    assert min(areas) > 0.9 - 1e-3 and max(areas) <= 1 + 1e-3
    # of the ratios 3/4..4/3 that are drawn, those that fit into the image remain
    assert 1 < np.exp(np.mean(np.log(ratios))) < 1.2 and min(ratios) > 0.9 and max(ratios) < 4 / 3


def test_crop_falls_back_to_the_middle():
    step = RandomResizedCrop(8, scale=(0.9, 1.0))
    assert step.box(100, 1000, rng()) == transforms.Crop(0, 433, 100, 133)
    assert step.box(1000, 100, rng()) == transforms.Crop(433, 0, 133, 100)
    assert RandomResizedCrop(8)({"image": NOISE}, rng())["image"].shape == (8, 8, 3)


def test_jitter_takes_factors_in_range_and_both_orders():
    flat = np.full((4, 4, 3), 100, np.uint8)
    bright = [int(ColorJitter(0.2, 0)({"image": flat}, rng(s))["image"][0, 0, 0]) for s in range(200)]
    assert min(bright) in (80, 81) and max(bright) in (119, 120)
    assert ColorJitter(0, 0)({"image": flat}, rng())["image"] is flat
    orders = Counter()
    for seed in range(40):
        chance, image = rng(seed), NOISE
        order = tuple(chance.permutation(np.asarray(["brightness", "contrast"])))
        for name in order:
            image = transforms.adjust(image, name, float(chance.uniform(0.8, 1.2)))
        np.testing.assert_array_equal(ColorJitter(0.2, 0.2)({"image": NOISE}, rng(seed))["image"], image)
        orders[order] += 1
    assert len(orders) == 2 and min(orders.values()) > 8


def test_saturation_is_pillows():
    want = np.asarray(ImageEnhance.Color(Image.fromarray(NOISE)).enhance(0.5))
    np.testing.assert_array_equal(transforms.adjust(NOISE, "color", 0.5), want)


def test_flip_mirrors_one_view_and_says_so_everywhere():
    example = SingleView(targets=())(RECORD, rng()) | {"points": np.array([[0, 5]], np.float32)}
    out = Flip(1.0)(example, rng())
    np.testing.assert_array_equal(out["image"], NOISE[:, ::-1])
    assert out["eye"] == 1 and out["eye"].dtype == np.int32 and out["text"] == "right eye, OD, normal"
    np.testing.assert_array_equal(out["points"], [[63, 5]])
    back = Flip(1.0)(out, rng())
    assert back["eye"] == 0 and back["text"] == RECORD.report and (back["image"] == NOISE).all()
    assert Flip(1.0)(example | {"eye": np.int32(2)}, rng())["eye"] == 2  # unknown stays unknown
    assert Flip(0.0)(example, rng()) is example
    with pytest.raises(DataError, match="put it before Tokenize"):
        Flip(1.0)(example | {"text": np.zeros(4, np.int32)}, rng())


def test_flip_of_two_eyes_exchanges_them():
    one = Record("p", RECORD.views[:1], report="left")
    example = PairedEyes()(one, rng())
    out = Flip(1.0)(example, rng())
    np.testing.assert_array_equal(out["right"], NOISE[:, ::-1])
    assert not out["left"].any() and out["text"] == "right"
    assert (bool(out["left_present"]), bool(out["right_present"])) == (False, True)


def test_flips_happen_as_often_as_asked():
    flipped = sum(Flip(0.3)({"eye": np.int32(0)}, rng(s))["eye"] == 1 for s in range(500))
    assert 110 < flipped < 190


def test_independent_flips_leave_the_sides_untrue():
    example = PairedEyes()(RECORD, rng())
    seen = Counter()
    for seed in range(60):
        out = IndependentFlip()(example, rng(seed))
        assert out["text"] == RECORD.report
        seen[(out["left"] == NOISE[:, ::-1]).all(), (out["right"] == NOISE[::-1, ::-1]).all()] += 1
    assert len(seen) == 4


def test_erasing_sets_one_box_to_the_mean():
    assert RandomErasing(0.0)({"image": NOISE}, rng())["image"] is NOISE
    white, areas = np.full((60, 60, 3), 255, np.uint8), []
    for seed in range(200):
        out = RandomErasing(1.0, fill=(1, 2, 3))({"image": white}, rng(seed))["image"]
        rows, columns = np.nonzero(out[..., 1] == 2)
        assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        areas.append(len(rows) / 3600)
    assert min(areas) > 0.015 and max(areas) < 0.345 and abs(np.mean(areas) - (0.02 + 1 / 3) / 2) < 0.02
    assert white.min() == 255
    drawn = [(RandomErasing()({"image": white}, rng(s))["image"] < 255).any() for s in range(400)]
    assert 20 < sum(drawn) < 62


def test_ret_clip_augmentation_in_order():
    names = [type(step).__name__ for step in transforms.ret_clip_aug(24)]
    assert names == ["RandomResizedCrop", "Flip", "ColorJitter", "RandomErasing"]
    parity = transforms.ret_clip_aug(24, parity=True)
    assert isinstance(parity[1], IndependentFlip)
    out = apply((PairedEyes(), *parity), RECORD, 0, 0)
    assert out["left"].shape == out["right"].shape == (24, 24, 3)
    np.testing.assert_array_equal(parity[3].fill, np.round(255 * np.array([0.48145466, 0.4578275, 0.40821073])))


def test_tokenize_and_keep():
    tokenizer = lambda texts: np.array([[len(t), 0] for t in texts])  # noqa: E731
    out = Tokenize(tokenizer)({"text": "abc"}, rng())
    np.testing.assert_array_equal(out["text"], np.array([3, 0], np.int32))
    assert out["text"].dtype == np.int32
    with pytest.raises(DataError, match="Tokenize: the text is already tokenized"):
        Tokenize(tokenizer)(out, rng())
    with pytest.raises(DataError, match="Tokenize: the example has no text"):
        Tokenize(tokenizer)({}, rng())
    assert set(Select(("text",))(out | {"image": NOISE}, rng())) == {"text"}
    with pytest.raises(DataError, match="Select: the example has no label, mask, only image, text"):
        Select(("label", "mask"))({"text": 0, "image": 0}, rng())


def disc(height=300, width=400, radius=120, x=210, y=140):
    v, u = np.mgrid[:height, :width]
    image = np.random.default_rng(2).integers(0, 12, (height, width, 3)).astype(np.uint8)  # a dark, noisy sensor
    image[(u - x) ** 2 + (v - y) ** 2 <= radius**2] = (150, 80, 40)
    image[5:12, 5:60] = 255  # a printed date
    return image


def test_field_of_view_is_found_despite_print_and_noise():
    box = field_of_view(disc())
    edges = (box.top, box.left, box.top + box.height, box.left + box.width)
    np.testing.assert_allclose(edges, (20, 90, 261, 331), atol=2)
    cropped = FieldOfViewCrop()({"image": disc()}, rng())["image"]
    assert cropped.shape[0] == cropped.shape[1] and abs(cropped.shape[0] - 241) <= 4
    wide = FieldOfViewCrop(margin=0.1)({"image": disc()}, rng())["image"]
    assert abs(wide.shape[0] - 1.2 * 241) <= 5
    cut = disc(height=240, radius=150, y=120)  # the disc is cut at top and bottom: padded to stay round
    assert FieldOfViewCrop()({"image": cut}, rng())["image"].shape[0] > 295
    assert FieldOfViewCrop(square=False)({"image": cut}, rng())["image"].shape[0] == 240


def test_field_of_view_of_what_has_none():
    dark = np.full((64, 64, 3), 5, np.uint8)
    assert FieldOfViewCrop()({"image": dark}, rng())["image"] is dark
    diagonal = np.zeros((64, 64, 3), np.uint8)
    for offset in range(-4, 5):
        diagonal[np.arange(8, 56), np.arange(8, 56) + offset] = 200  # fills little of its box
    assert FieldOfViewCrop()({"image": diagonal}, rng())["image"] is diagonal
    full = np.full((64, 64, 3), 90, np.uint8)
    assert (FieldOfViewCrop()({"image": full}, rng())["image"] == full).all()
    oct_scan = {"image": disc(), "modality": np.int32(2)}
    assert FieldOfViewCrop()(oct_scan, rng()) is oct_scan


@pytest.mark.parametrize("folder", ["hrf", "chase_db1"])
def test_field_of_view_of_real_photographs(shared_data, folder):
    for path in sorted((shared_data / folder / "images").glob("*.jpg"))[:6]:
        lit = load_mask(shared_data / folder / "fov" / f"{path.stem}.png") > 0
        rows, columns = np.flatnonzero(lit.any(1)), np.flatnonzero(lit.any(0))
        box = field_of_view(decode.load(path))
        edges = (box.top, box.left, box.top + box.height, box.left + box.width)
        np.testing.assert_allclose(edges, (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1), atol=9)
