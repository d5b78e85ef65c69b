"""Pictures of eyes: geometry, laterality, lesions where the truth says, in each modality."""

from dataclasses import replace

import numpy as np
import pytest

from data_pipelines.language.conditions import CONDITIONS, LAYERS, LESIONS, MASK_CLASSES
from data_pipelines.records import DataError
from data_pipelines.synthetic.noise import stream
from data_pipelines.synthetic.patients import eye_at, patient
from data_pipelines.synthetic.render import DRAWERS, render

SIZE = 96


def someone(condition: str, seed: int = 11, **change: object):  # -> Eye
    """A right eye with a condition; the patient is the first of the seed whose right eye is the worse."""
    people = (patient(seed, k, (condition,)) for k in range(50))
    p = next(p for p in people if p.principal == "right")
    return replace(eye_at(p, "right", 0), **change)


def picture(eye, modality: str = "CFP", draw: int = 0):  # -> Picture
    return render(eye, modality, SIZE, stream(1, draw), masks=True)


@pytest.mark.parametrize("modality", list(DRAWERS))
def test_shape_and_determinism(modality: str) -> None:
    eye = someone("proliferative diabetic retinopathy")
    one, two = picture(eye, modality), picture(eye, modality)
    assert one.image.shape == (SIZE, SIZE, 3) and one.image.dtype == np.uint8
    np.testing.assert_array_equal(one.image, two.image)
    assert (one.image != picture(eye, modality, draw=1).image).any()


@pytest.mark.parametrize("modality", list(DRAWERS))
def test_a_left_eye_is_the_mirror_of_a_right_one(modality: str) -> None:
    eye = someone("glaucoma")
    right, left = picture(eye, modality), picture(replace(eye, side="left"), modality)
    np.testing.assert_array_equal(left.image, right.image[:, ::-1])
    np.testing.assert_array_equal(left.masks["index"], right.masks["index"][:, ::-1])
    np.testing.assert_allclose(left.points[:, 0], SIZE - 1 - right.points[:, 0], equal_nan=True)


def test_masks_do_not_change_the_picture() -> None:
    eye = someone("normal")
    plain = render(eye, "CFP", SIZE, stream(1, 0))
    np.testing.assert_array_equal(plain.image, picture(eye).image)
    assert plain.masks == {}


def test_surround_is_black_and_the_field_is_not() -> None:
    image = picture(someone("normal")).image
    corners = np.stack([image[0, 0], image[0, -1], image[-1, 0], image[-1, -1]])
    assert corners.max() < 20 and image[40:56, 40:56].mean() > 60


# what every lesion looks like in a colour photograph: the channel that tells, and whether it is brighter there
SEEN = {
    "moderate diabetic retinopathy": ("haemorrhage", 1, False),
    "diabetic macular oedema": ("hard exudate", 1, True),
    "dry age-related macular degeneration": ("drusen", 1, True),
    "neovascular age-related macular degeneration": ("subretinal haemorrhage", 0, False),
    "retinal vein occlusion": ("flame haemorrhage", 1, False),
    "retinal detachment": ("detached retina", 2, True),
    "pathologic myopia": ("peripapillary atrophy", 1, True),
    "macular hole": ("macular hole", 1, False),
}


@pytest.mark.parametrize("condition", list(SEEN))
def test_lesions_are_seen_where_their_masks_lie(condition: str) -> None:
    name, channel, brighter = SEEN[condition]
    eye = someone(condition)
    bare = replace(eye, lesions={k: m for k, m in eye.lesions.items() if k != name})
    sick, healthy = picture(eye), picture(bare)
    change = sick.image[..., channel].astype(int) - healthy.image[..., channel]
    inside = change[sick.masks[name]].mean() if brighter else -change[sick.masks[name]].mean()
    assert sick.masks[name].sum() > 8 and inside > 12
    far = ~sick.masks[name]
    assert np.abs(change[far]).mean() < 0.5 * inside
    if name != "subretinal haemorrhage":  # the membrane lies over the blood
        assert (sick.masks["index"] == MASK_CLASSES.index(name)).any()


def test_cataract_veils_the_vessels() -> None:
    eye = someone("cataract")
    clear = picture(replace(eye, haze=0.0))
    hazy = picture(eye)

    def contrast(p) -> float:
        vessel = p.masks["vein"]
        return float(np.abs(np.diff(p.image[..., 1].astype(float), axis=1))[vessel[:, 1:]].mean())

    assert contrast(hazy) < 0.6 * contrast(clear)


def test_cup_grows_with_glaucoma() -> None:
    def ratio(eye) -> float:
        masks = render(eye, "CFP", 224, stream(2), masks=True).masks
        return float(np.ptp(np.nonzero(masks["cup"])[0]) / np.ptp(np.nonzero(masks["disc"])[0]))

    eye = someone("glaucoma")
    assert ratio(eye) == pytest.approx(eye.cup, abs=0.08)
    assert ratio(someone("normal")) < 0.6 < ratio(eye)


def test_angiogram_is_grey_with_bright_vessels_and_leaks() -> None:
    eye = someone("proliferative diabetic retinopathy")
    p = picture(eye, "FFA")
    assert np.ptp(p.image.astype(int), axis=2).max() <= 2
    grey = p.image[..., 0].astype(float)
    quiet = picture(someone("normal"), "FFA")
    tone = quiet.image[..., 0].astype(float)
    assert tone[quiet.masks["vein"]].mean() > 1.6 * np.median(tone[30:60, 30:60])
    assert grey[p.masks["neovascularisation"]].mean() > 130
    blood = p.masks["preretinal haemorrhage"] & ~p.masks["neovascularisation"]
    assert np.median(grey[blood]) < 45  # dark, but for the leaks over it


def test_wide_field_has_a_smaller_disc() -> None:
    eye = someone("normal")
    assert picture(eye, "UWF").masks["disc"].sum() < 0.3 * picture(eye, "CFP").masks["disc"].sum()


def scan(condition: str):  # -> (layers, image)
    p = picture(someone(condition), "OCT")
    return p.masks["layers"], p.image[..., 0].astype(float), p.masks["fluid"]


def test_scan_has_a_foveal_pit_and_layers_in_order() -> None:
    layers, image, fluid = scan("normal")
    retina = (layers >= 1) & (layers <= 5)
    thick = retina.sum(axis=0)
    assert thick[44:52].min() < 0.8 * thick[[25, 26, 70, 71]].mean()
    assert not fluid.any()
    column = layers[:, 20]
    order = column[np.flatnonzero(np.diff(column.astype(int), prepend=-1))]
    assert list(order) == sorted(order) and order[0] == 0 and order[-1] >= LAYERS.index("choroid")
    assert image[layers == 5].mean() > 2 * image[layers == 3].mean() > 4 * image[layers == 0].mean()


def test_scan_shows_fluid_hole_and_thinning() -> None:
    assert scan("diabetic macular oedema")[2].sum() > 30
    assert scan("retinal detachment")[2].sum() > 30
    hole, _, _ = scan("macular hole")
    assert ((hole[:, 48] >= 1) & (hole[:, 48] <= 4)).sum() <= 2  # nothing left at the fovea but pigment epithelium
    fibres = [(scan(c)[0] == LAYERS.index("nerve fibres")).sum() for c in ("normal", "glaucoma")]
    assert fibres[1] < 0.65 * fibres[0]


def test_every_condition_leaves_its_mark_in_the_index() -> None:
    for condition in CONDITIONS:
        index = picture(someone(condition)).masks["index"]
        lesions = {MASK_CLASSES[k] for k in np.unique(index)} & set(LESIONS)
        assert bool(lesions) == (condition not in ("normal", "cataract")), condition


def test_faults() -> None:
    with pytest.raises(DataError, match="modality 'MRI': expected one of CFP"):
        render(someone("normal"), "MRI", 96, stream(0))
    with pytest.raises(DataError, match="size 4: expected at least 16"):
        render(someone("normal"), "CFP", 4, stream(0))
