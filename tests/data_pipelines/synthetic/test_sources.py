"""Synthetic patients: the same bytes everywhere, truth that fits the pictures, one row from (seed, start + i)."""

import hashlib
import os
import pickle
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from numpy._core._multiarray_umath import __cpu_dispatch__

from data_pipelines.records import DataError, Record
from data_pipelines.synthetic.patients import eye_at, patient
from data_pipelines.synthetic.sources import (
    BIOMARKERS,
    CONDITIONS,
    FINDINGS,
    LAYERS,
    MASK_CLASSES,
    PROMPTS,
    Eyes,
    Patients,
    Visits,
)

FOUR = ("CFP", "UWF", "FFA", "OCT")


def digest(record: Record) -> str:
    images = b"".join(np.asarray(view.image).tobytes() for view in record.views)
    return hashlib.sha256(images).hexdigest()[:16]


@pytest.mark.parametrize(
    ("modality", "size", "sha"),
    [
        ("CFP", 96, "8d3d81335a11b454"),
        ("CFP", 224, "ef0d8a9b53d9f3c5"),
        ("UWF", 96, "38ea194e06643f93"),
        ("FFA", 96, "f5f009ad8d0d27c8"),
        ("OCT", 96, "44068bd42f198be1"),
    ],
)
def test_bytes_are_pinned(modality: str, size: int, sha: str) -> None:
    assert digest(Patients(1, seed=7, start=3, modalities=(modality,), size=size)[0]) == sha


def test_bytes_do_not_depend_on_the_processor() -> None:
    code = (
        "import hashlib; from data_pipelines.synthetic.sources import Patients\n"
        f"views = Patients(1, seed=7, start=3, modalities={FOUR}, size=64)[0].views\n"
        "print(hashlib.sha256(b''.join(v.image.tobytes() for v in views)).hexdigest()[:16])"
    )
    # numpy without its vector units, libjpeg-turbo without its own: what an old machine computes
    plain = {"NPY_DISABLE_CPU_FEATURES": " ".join(__cpu_dispatch__), "JSIMD_FORCENONE": "1"}
    out = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | plain, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == digest(Patients(1, seed=7, start=3, modalities=FOUR, size=64)[0])


def test_a_row_depends_on_seed_and_start_plus_index_only() -> None:
    far, near = (
        Patients(10, seed=2, modalities=FOUR, size=32)[5],
        Patients(1, seed=2, start=5, modalities=FOUR, size=32)[0],
    )
    assert digest(far) == digest(near)
    assert (far.report, far.findings, far.patient) == (near.report, near.findings, near.patient)
    assert digest(far) != digest(Patients(10, seed=3, modalities=FOUR, size=32)[5])
    # one modality among others is drawn as it is alone
    alone = Patients(10, seed=2, modalities=("FFA",), size=32)[5]
    np.testing.assert_array_equal(alone.views[0].image, far.views[4].image)


def test_sources_pickle_small_and_check_rows() -> None:
    source = Patients(10_000_000, visits=3, size=16)
    again = pickle.loads(pickle.dumps(source))
    assert again == source and len(again) == 30_000_000 and len(pickle.dumps(source)) < 1000
    assert again[-1].day > 0
    with pytest.raises(IndexError):
        Eyes(3)[3]


def test_views_and_targets_of_a_patient() -> None:
    record = Patients(4, seed=1, modalities=FOUR, size=48, masks=True)[2]
    assert [v.modality for v in record.views] == [m for m in FOUR for _ in range(2)]
    assert [v.eye for v in record.views] == ["left", "right"] * 4
    assert all(v.image.shape == (48, 48, 3) and v.image.dtype == np.uint8 for v in record.views)
    targets = record.targets
    assert targets["points"].shape == (8, 2, 2) and targets["mask"].shape == (8, 48, 48)
    assert targets["value"].shape == (len(BIOMARKERS),) and targets["findings"].shape == (len(FINDINGS),)
    assert targets["mask"][:6].max() < len(MASK_CLASSES) and targets["mask"][6:].max() < len(LAYERS)
    assert set(record.findings) == {FINDINGS[k] for k in np.flatnonzero(targets["findings"])}
    both = np.maximum(targets["findings_left"], targets["findings_right"])
    np.testing.assert_array_equal(both, targets["findings"])


def test_disc_is_nasal_and_where_the_point_says() -> None:
    source = Patients(12, seed=4, size=96, masks=True, conditions=("normal", "glaucoma"))
    for row in range(12):
        record = source[row]
        for k, view in enumerate(record.views):
            fovea, disc = record.targets["points"][k]
            assert (disc[0] > fovea[0]) == (view.eye == "right")  # a right eye's disc is on the right
            assert abs(fovea[1] - disc[1]) < 0.15 * 96
            rows, columns = np.nonzero(record.targets["masks"][k]["disc"])
            np.testing.assert_allclose((columns.mean(), rows.mean()), disc, atol=1.0)
            green = view.image[..., 1].astype(float)
            inside = green[record.targets["masks"][k]["disc"]].mean()
            ring = green[np.ix_(*(np.arange(max(0, int(v) - 2), int(v) + 3) for v in fovea[::-1]))].mean()
            assert inside > ring + 20  # the disc is bright, the fovea dark


def test_every_condition_is_drawn_evenly_and_labels_follow() -> None:
    drawn = [patient(0, k, CONDITIONS).condition for k in range(2800)]
    counts = [drawn.count(c) for c in CONDITIONS]
    assert min(counts) >= 145 and max(counts) <= 255  # 200 each, within four standard deviations
    few = ("normal", "macular hole")
    source = Patients(30, seed=5, size=16, conditions=few)
    assert source.classes == few and source.prompts("zh") == ("正常眼底", "黄斑裂孔")
    for k in range(30):
        targets = source[k].targets
        eyes = {int(targets["label_left"]), int(targets["label_right"])}
        assert int(targets["label"]) == max(eyes)  # the principal condition is the one of the worse eye
        assert (int(targets["grade"]) == 0) == (int(targets["label"]) == 0)


def test_prompts_name_every_condition() -> None:
    assert len(CONDITIONS) >= 10 and {len(v) for v in PROMPTS.values()} == {len(CONDITIONS)}
    assert all(len(set(v)) == len(v) for v in PROMPTS.values())


def test_one_eye_is_the_diseased_one() -> None:
    source = Patients(8, seed=6, size=16, one_eye=True, conditions=("retinal detachment",))
    for k in range(8):
        record = source[k]
        (view,) = record.views
        assert int(record.targets[f"label_{view.eye}"]) == 0
        assert int(record.targets["label_left" if view.eye == "right" else "label_right"]) == -1


def test_visits_progress_and_keep_the_eye() -> None:
    source = Patients(6, seed=3, visits=4, size=16, conditions=("moderate diabetic retinopathy",), masks=True)
    for p in range(6):
        visits = [source[4 * p + k] for k in range(4)]
        days = [v.day for v in visits]
        assert days[0] == 0 and all(180 <= b - a < 540 for a, b in pairwise(days))
        assert len({v.patient for v in visits}) == 1
        grades = [int(v.targets["grade"]) for v in visits]
        assert grades == sorted(grades)
        ages = [float(v.targets["value"][0]) for v in visits]
        assert abs(ages[3] - ages[0] - days[3] / 365.25) < 1e-3
    progressed = [int(source[4 * p].targets["progress"]) for p in range(6)]
    assert 0 < sum(progressed) < 6


def test_progress_says_what_comes_within_two_years() -> None:
    source = Patients(
        20, seed=8, size=16, conditions=("mild diabetic retinopathy", "dry age-related macular degeneration")
    )
    for k in range(20):
        p = patient(8, k, source.classes)
        now, later = eye_at(p, p.principal, 0), eye_at(p, p.principal, 730)
        worse = later.condition != now.condition or later.grade > now.grade
        assert int(source[k].targets["progress"]) == worse


def test_biomarkers_are_visible_traits() -> None:
    people = [patient(9, k, CONDITIONS) for k in range(150)]
    eyes = [eye_at(p, p.principal, 0) for p in people]
    calm = [k for k, e in enumerate(eyes) if e.traits["dilation"] == 0]
    ratio = [np.median(eyes[k].arteries[:, 4]) / np.median(eyes[k].veins[:, 4]) for k in calm]
    assert np.corrcoef(ratio, [people[k].systolic for k in calm])[0, 1] < -0.9
    assert np.corrcoef([e.tessellation for e in eyes], [p.axial_length for p in people])[0, 1] > 0.95
    load = [sum(len(m) for k, m in e.lesions.items() if k in ("microaneurysm", "haemorrhage")) for e in eyes]
    diabetic = [k for k, p in enumerate(people) if "diabetic retinopathy" in p.condition]
    assert np.corrcoef([load[k] for k in diabetic], [people[k].hba1c for k in diabetic])[0, 1] > 0.8


def test_eyes_have_one_view_and_a_caption_about_it() -> None:
    source = Eyes(30, seed=2, modalities=("CFP", "OCT"), size=32, masks=True)
    records = [source[k] for k in range(30)]
    assert {r.views[0].modality for r in records} == {"CFP", "OCT"}
    assert all(len(r.views) == 1 and r.report and r.targets["points"].shape == (2, 2) for r in records)
    assert all(r.targets["mask"].shape == (32, 32) for r in records)
    fovea_only = [r.targets["points"] for r in records if r.views[0].modality == "OCT"]
    assert all(np.isfinite(p[0]).all() and np.isnan(p[1]).all() for p in fovea_only)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"modalities": ("MRI",)}, "modalities.*MRI.*CFP"),
        ({"modalities": ()}, "modalities"),
        ({"conditions": ("flu",)}, "conditions.*flu"),
        ({"conditions": ("normal", "normal")}, "different names"),
        ({"language": "fr"}, "language 'fr'.*en, zh, both"),
        ({"size": 8}, "size=8.*16"),
        ({"seed": -1}, "seed=-1"),
        ({"visits": 0}, "visits=0"),
    ],
)
def test_bad_arguments_are_one_clear_line(fault: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Patients(4, **fault)


def test_visits_miss_views_at_random_and_say_what_they_show() -> None:
    visits, whole = (
        Visits(40, seed=1, size=16, missing=0.4),
        Patients(40, seed=1, size=16, modalities=("CFP", "OCT", "FFA")),
    )
    rows = [visits[k] for k in range(40)]
    counts = [len(row.views) for row in rows]
    assert min(counts) >= 1 and 0.5 < sum(counts) / (40 * 6) < 0.7
    assert digest(rows[3]) == digest(visits[3]) == digest(Visits(1, seed=1, start=3, size=16)[0])
    drawn = {(view.modality, view.eye): view.image for view in whole[3].views}
    for view, points in zip(rows[3].views, rows[3].targets["points"], strict=True):
        np.testing.assert_array_equal(view.image, drawn[view.modality, view.eye])
        assert view.report and view.targets["label"] == rows[3].targets[f"label_{view.eye}"]
        np.testing.assert_array_equal(view.targets["points"], points)
    one_sided = next(row for row in rows if len({view.eye for view in row.views}) == 1)
    (side,) = one_sided.eye_reports
    assert one_sided.targets["label"] == one_sided.targets[f"label_{side}"] >= 0
    assert {row.attributes["sex"] for row in rows} == {"female", "male"}
    with pytest.raises(DataError, match="missing=1"):
        Visits(1, missing=1)
