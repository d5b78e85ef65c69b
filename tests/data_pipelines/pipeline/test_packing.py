"""Batches of whole visits: what goes into which slot, what waits, and that a stream resumes anywhere."""

from dataclasses import replace

import numpy as np
import pytest

from data_pipelines.pipeline import mix, one_epoch
from data_pipelines.pipeline.packing import WAITING, Pack, Plan, pack
from data_pipelines.records import DataError, Record, View, patient_number
from data_pipelines.transforms.visits import (
    FlipVisit,
    PadVisit,
    Size,
    TokenizeVisit,
    VisitViews,
    shares_kept,
)

NAMES = ("CFP", "OCT")


class Words:
    """The number of letters and the number of words, as ids."""

    def __call__(self, texts):
        return np.array([[len(text), len(text.split()) + 1] for text in texts])


class Visits:
    """Visits of one to four views, whose pixels are their number; rows 2k and 2k + 1 are of one patient."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        views = [(m, eye) for m in NAMES for eye in ("left", "right")][: 1 + index % 4]
        views = tuple(View(np.full((4, 4, 3), 10 * index + k, np.uint8), *v) for k, v in enumerate(views))
        views = (*views[:-1], replace(views[-1], report=f"view {index} of the right kind"))
        return Record(f"p{index // 2}", views, f"visit {index}", targets={"label": index % 3},
                      eye_reports={"left": f"left eye {index}"})  # fmt: skip


CHAIN = (VisitViews(NAMES, labels=True), TokenizeVisit(Words()))
STREAM = mix([(Visits(), CHAIN, 1.0)], batch=8, room=Pack(images=2, texts=3, parts=4))


def first(data, count, *shard):
    stream = data(*shard)
    return [next(stream) for _ in range(count)], stream


def test_a_batch_by_hand():
    visits = [CHAIN[1](CHAIN[0](Visits()[k], np.random.default_rng(0)), None) for k in (1, 0)]
    examples = [visit | {"index": np.int64(k), "valid": np.bool_(True)} for k, visit in enumerate(visits)]
    batch = pack([examples[0], None, examples[1], None], Pack(images=1, texts=2), parts=2, first=4)
    assert batch["row"].tolist() == [4, 4, 6, -1]
    assert batch["images"][:, 0, 0, 0].tolist() == [10, 11, 0, 0]
    assert batch["view_modality"].tolist() == [0, 0, 0, 0] and batch["view_eye"].tolist() == [0, 1, 0, 0]
    assert batch["text_at"].tolist() == [8, -1, 12, -1]  # two rows have four places; the parts begin at rows 4 and 6
    assert batch["eye_text_at"].tolist() == [[9, -1], [-1, -1], [13, -1], [-1, -1]]
    assert batch["view_text_at"].tolist() == [-1, 10, 14, -1]
    assert batch["texts"][0].tolist() == [len("visit 1"), 3]
    assert batch["label"].tolist() == [1, 0, 0, 0] and batch["valid"].tolist() == [True, False, True, False]
    assert batch["patient"].tolist() == [patient_number("p0"), -1, patient_number("p0"), -1]


def test_every_visit_comes_once_and_patients_stay_apart():
    batches, _ = first(STREAM, 12)
    seen = np.concatenate([batch["index"][batch["valid"]] for batch in batches])
    epoch = seen[:24]
    assert len(set(epoch.tolist())) >= 22 and len(seen) > 40  # what waits comes a little later
    for batch in batches:
        patients = batch["patient"][batch["valid"]]
        assert len(set(patients.tolist())) == len(patients)
        for row, index in enumerate(batch["index"]):
            if batch["valid"][row]:
                mine = batch["images"][batch["row"] == row][:, 0, 0, 0].tolist()
                assert mine == [10 * index % 256 + k for k in range(1 + index % 4)]
    met = mix([(Visits(), CHAIN, 1.0)], batch=8, room=Pack(images=4, texts=4, apart=False))
    assert any(len(set(b["patient"].tolist())) < 8 for b in first(met, 6)[0])


def test_a_stream_resumes_anywhere_and_is_the_same_for_any_number_of_processes():
    whole, _ = first(STREAM, 6)
    _, stream = first(STREAM, 3)
    state = stream.get_state()
    assert state["step"] == 3 and len(state["waiting"]) <= WAITING
    again = STREAM(0, 1)
    again.set_state(state)
    halves = [first(STREAM, 6, k, 2)[0] for k in range(2)]
    for step, batch in enumerate(whole):
        later = next(again) if step >= 3 else batch
        for key, values in batch.items():
            np.testing.assert_array_equal(later[key], values)
            np.testing.assert_array_equal(np.concatenate([half[step][key] for half in halves]), values)
    with pytest.raises(DataError, match="2 parts of a batch of 8 visits cannot be divided among 8"):
        STREAM(0, 8)


def test_a_plan_is_full_and_what_waits_is_bounded():
    sizes = np.random.default_rng(0).integers(1, 7, 4000)
    plan = Plan(lambda at: Size(int(sizes[at]), 1, at % 50), 32, Pack(images=3), {"step": 0})
    taken = [plan.rows(step) for step in range(40)]
    images = [sizes[rows[rows >= 0]].sum() for rows in taken]
    assert np.mean(images) > 0.95 * 96 and max(images) <= 96
    position, waiting = plan.state(40)["position"], plan.state(40)["waiting"]
    assert len(waiting) <= WAITING
    rows = np.concatenate(taken)
    assert sorted([*rows[rows >= 0], *waiting]) == list(range(position))
    same = Plan(
        lambda at: Size(1, 1, 7), 8, Pack(), {"step": 0}
    )  # everything is of one patient: one visit in each batch
    assert [int((same.rows(step) >= 0).sum()) for step in range(3)] == [1, 1, 1]
    with pytest.raises(DataError, match="a visit has 9 images and 1 texts, and 2 rows of a batch have 8 and 2 slots"):
        Plan(lambda at: Size(9, 1, at), 2, Pack(parts=1), {"step": 0}).rows(0)


def test_one_pass_has_every_visit_in_order():
    data = one_epoch(Visits(), CHAIN, batch=7, room=Pack(images=4, texts=7))
    batches = list(data(0, 1))
    assert np.concatenate([b["index"][b["valid"]] for b in batches]).tolist() == list(range(24))
    assert batches[-1]["valid"].tolist() == [True] * 3 + [False] * 4


def test_texts_of_levels_and_what_is_inherited():
    record = Visits()[3]
    none = ("", "", "", "view 3 of the right kind")
    assert VisitViews(NAMES).texts(record, record.views) == ("visit 3", ("left eye 3", ""), none)
    inherited = VisitViews(NAMES, inherit=True, prompt="{modality}: {text}").texts(record, record.views)
    assert inherited[1] == ("left eye 3", "visit 3")
    assert inherited[2][1] == "color fundus photograph: visit 3" and inherited[2][3].endswith(
        "view 3 of the right kind"
    )
    assert VisitViews(NAMES, levels=("eye",)).texts(record, record.views) == ("", ("left eye 3", ""), ("",) * 4)


def test_which_views_are_taken():
    record, rng = Visits()[3], np.random.default_rng(0)
    assert len(VisitViews(NAMES, choose="one").chosen(record, rng)) == 1
    for _ in range(5):
        first, second = VisitViews(NAMES, choose="pair").chosen(record, rng)
        assert first.eye == second.eye and first.modality != second.modality
    assert {v.modality for v in VisitViews(("OCT",)).chosen(record, rng)} == {"OCT"}
    assert len(VisitViews(NAMES, most=2).chosen(record, rng)) == 2
    with pytest.raises(DataError, match="has no view of FFA"):
        VisitViews(("FFA",)).chosen(record, rng)


def test_modalities_have_the_shares_asked_for():
    kept = shares_kept((600, 300), (0.5, 0.5))
    assert kept == (0.5, 1.0)
    rng = np.random.default_rng(0)
    views = tuple(View(np.zeros((1, 1, 3), np.uint8), m) for m in ("CFP", "CFP", "OCT"))
    taken = [v.modality for _ in range(2000) for v in VisitViews(NAMES, keep=kept).chosen(Record("p", views), rng)]
    assert taken.count("CFP") / len(taken) == pytest.approx(0.5, abs=0.03)
    with pytest.raises(DataError, match="occur"):
        shares_kept((0, 3), (0.5, 0.5))


def test_a_mirrored_visit_keeps_its_statements_true():
    example = VisitViews(NAMES)(Visits()[3], np.random.default_rng(0))
    example["views"][0, 0] = np.arange(12).reshape(4, 3)
    turned = FlipVisit(1.0)(example, np.random.default_rng(0))
    np.testing.assert_array_equal(turned["views"][0, 0], example["views"][0, 0, ::-1])
    assert turned["view_eye"].tolist() == [1, 0, 1, 0] and turned["eye_text"] == ("", "right eye 3")
    assert turned["view_text"][3] == "view 3 of the left kind"
    padded = PadVisit(6)(turned, None)
    assert padded["views"].shape == (6, 4, 4, 3) and padded["view_present"].tolist() == [True] * 4 + [False] * 2
