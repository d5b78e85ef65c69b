"""Labelled parts, follow-ups and the thirteen answers: who is in which part, which questions visits make, what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from data_pipelines.open import Data, named
from data_pipelines.records import DataError, Record, View
from data_pipelines.sources.splits import Concatenated
from data_pipelines.synthetic.sources import Eyes, Patients
from data_pipelines.tasks.forecasting import Followups, Listed, Visits, questions, single, worse
from data_pipelines.tasks.labelled import FRACTIONS, FlipRows, Reader, Thumbnail, by_class, labels_of, parts, repeated
from data_pipelines.tasks.visionfm_labels import NAMES, Thirteen
from data_pipelines.tasks.visionfm_labels import parts as thirteen
from data_pipelines.transforms.steps import Squash

RNG = np.random.default_rng(0)


@pytest.fixture
def table(tmp_path):
    """Ten patients of two images each, three classes."""
    rows = ["image,label,patient,day,age,A,B"]
    for k in range(20):
        Image.fromarray(np.full((8, 6, 3), k, np.uint8)).save(tmp_path / f"{k}.png")
        rows.append(f"{k}.png,{'abc'[k // 2 % 3]},p{k // 2},{100 * (k % 2)},{40 + k},{k % 2},{'' if k == 3 else 1}")
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "t.csv"


EYES = Eyes(3, size=32)


def labelled(word, split="", seed=0, target="label", **fields):
    return parts(Data(data=(str(word),), split=str(split), fractions=FRACTIONS, **fields), EYES, seed, target)


def patients(source):
    return [source[k].patient for k in range(len(source))]


def test_parts_share_no_patient_and_a_written_split_is_read(table, tmp_path):
    first = labelled(table, tmp_path / "s.json")
    test = labelled(table, tmp_path / "s.json", seed=5, part="test")
    names = [set(patients(part)) for part in (first.train, first.scored, test.scored)]
    assert not names[0] & names[1] and not (names[0] | names[1]) & names[2] and sum(map(len, names)) == 10
    assert patients(test.train) == patients(first.train) and (first.name, test.name) == ("val", "test")
    assert patients(labelled(table, part="all").scored) == [f"p{k // 2}" for k in range(20)]
    assert first.kind() == (False, ("a", "b", "c"))
    assert sum(len(part) for part in by_class(first.train, 3)) == len(first.train)
    with pytest.raises(DataError, match="has no value; name its column"):
        labelled(table, target="value")


def test_several_labels_and_values_of_a_word(table):
    found = labelled(f"{table},label=A+B,empty=keep,value=age")
    assert found.kind() == (True, ("A", "B"))
    labels = labels_of(found.train)
    assert labels.shape == (len(found.train), 2) and labels_of(found.train, "value").shape == (len(found.train), 1)
    with pytest.raises(DataError, match=r"row 4 \(line 5\): label is empty \(''\) in B"):
        named(f"{table},label=A+B").source[0]
    assert named(f"{table},classes=c+b+a").source[0].targets["label"] == 2


def test_a_class_missing_in_a_part_keeps_its_number(table, tmp_path):
    for part in ("train", "val", "test"):
        for name in ("no", "yes"):
            if (part, name) != ("val", "yes"):
                (tmp_path / "f" / part / name).mkdir(parents=True)
                Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "f" / part / name / "x.png")
    found = labelled(tmp_path / "f")
    assert found.classes == ("no", "yes") and labels_of(found.scored).tolist() == [0]
    assert len(labelled(tmp_path / "f", part="test").scored) == 2


def test_copies_are_positions_and_thumbnails_are_small():
    found = parts(Data(fractions=FRACTIONS), EYES)
    assert len(repeated(found.train, 3)) == 9 and len(found.scored) == 2
    batch = next(iter(Reader(found, {"image_size": 16}).once(found.train, copies=2, batch=6)()))
    assert batch["image"].shape == (6, 16, 16, 3) and batch["picture"].shape == (6, 96, 96, 3)
    image = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
    assert (FlipRows(1.0)({"image": image}, RNG)["image"] == image[::-1]).all()
    assert Thumbnail()({"image": image}, RNG)["picture"].shape == (96, 96, 3)


def visit(patient: str, eye: str, day: int, grade: int, shade: int = 0) -> Record:
    view = View(np.full((8, 8, 3), shade, np.uint8), "CFP", eye)
    return Record(patient, (view,), targets={"label": np.int32(grade)}, day=day)


def test_pairs_of_visits_are_questions():
    visits = [
        visit("p", "left", 300, 2, 3), visit("p", "left", 0, 1, 1), visit("p", "left", 100, 1, 2),
        visit("p", "right", 0, 0), visit("q", "left", 0, 0), visit("q", "left", 0, 4),
    ]  # fmt: skip
    found = Followups(visits, visits=2)
    asked = [
        (r.targets["label"], list(r.targets["days"]), list(r.targets["present"]))
        for r in map(found.__getitem__, range(3))
    ]
    assert len(found) == 3  # one right eye, and q's two visits of a day, are no pairs
    assert asked == [(0, [100, 100], [True, False]), (1, [300, 300], [True, False]), (1, [200, 300], [True, True])]
    out = Visits(single(None), (Squash(4),))(found[2], RNG)
    assert out["image"].shape == (2, 4, 4, 3) and out["image"][:, 0, 0, 0].tolist() == [2, 1]
    assert out["horizon"] == 200 and out["label"] == 1
    with pytest.raises(DataError, match="nothing can be forecast"):
        len(Followups(visits[3:5]))
    with pytest.raises(DataError, match="has no label; a forecast needs"):
        len(Followups([Record("p", visits[0].views)]))


def test_what_is_worse_and_the_authors_list():
    now, later = visit("p", "left", 0, 3), visit("p", "left", 9, 1)
    assert worse(later, now) and not worse(now, later)
    graded = [Record("p", now.views, targets={"label": np.int32(k), "grade": np.int32(1)}) for k in (3, 4)]
    assert worse(*graded) and not worse(graded[0], graded[0])
    row = Record("p", now.views, targets={"label": np.int32(1), "value": np.array([365.0])}, where="t.csv row 1")
    assert Listed([row])[0].targets["days"].tolist() == [365]
    with pytest.raises(DataError, match=r"t\.csv row 1: label 2"):
        Listed([Record("p", now.views, targets={"label": 2, "value": [3.0]}, where="t.csv row 1")])[0]


def test_thirteen_answers():
    eyes = Eyes(40, size=16)
    found = Thirteen(eyes)
    for k in range(12):
        own, target = eyes.classes[int(eyes[k].targets["label"])], found[k].targets
        graded = own == "normal" or own.endswith("retinopathy")
        assert bool(target["grade"] >= 0) is graded and target["label"][:5].sum() == int(graded)
        assert target["answers"].sum() == (own not in ("normal", "macular hole"))
    own = np.full(13, np.nan)
    own[2] = 1
    kept = Thirteen([Record("p", eyes[0].views, targets={"label": own})])[0].targets
    assert kept["grade"] == 2 and np.isnan(kept["answers"]).all() and len(NAMES) == 13
    with pytest.raises(DataError, match="p: expected 13 labels"):
        Thirteen([Record("p", eyes[0].views, targets={"label": np.int32(0)})])[0]
    both = Concatenated(([1, 2], [3]))
    assert len(both) == 3 and both[2] == 3


def test_attributes_reach_the_batches_of_an_evaluation(tmp_path):
    rows = ["image,label,sex,age,ward"]
    for k in range(12):
        Image.fromarray(np.full((8, 6, 3), k, np.uint8)).save(tmp_path / f"{k}.png")
        rows.append(f"{k}.png,{'ab'[k % 2]},{'female' if k % 3 else 'm'},{40 + k if k else ''},w{k}")
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    found = labelled(f"{tmp_path}/t.csv,keep=ward", part="all")
    read = Reader(found, {"image_size": 8})
    batch = next(iter(read.once(found.scored, batch=12)()))
    assert {"age", "sex", "ward"} <= set(read.keys)
    assert batch["sex"][:3].tolist() == ["m", "female", "female"] and batch["ward"].tolist()[-1] == "w11"
    assert batch["age"].dtype == np.float32 and np.isnan(batch["age"][0]) and batch["age"][1] == 41


def test_states_of_visits_need_an_order(tmp_path):
    rows = ["image,label,patient,day"]
    for k in range(24):
        Image.fromarray(np.full((8, 6, 3), k, np.uint8)).save(tmp_path / f"{k}.png")
        rows.append(f"{k}.png,{('no', 'mild', 'severe')[k % 3]},p{k // 2},{100 * (k % 2)}")
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    data = Data(data=(f"{tmp_path}/t.csv",), fractions=(0.5, 0.5))
    with pytest.raises(
        DataError, match="states of visits: the order of the classes is not given, and alphabetical order is mild"
    ):
        questions(data, Patients(4), 0)
    asked = questions(replace(data, classes=("no", "mild", "severe")), Patients(4), 0)
    assert asked.train.classes == ("stable", "progression") and len(asked.train) + len(asked.scored) == 12


def test_the_thirteen_labels_are_matched_by_the_names_of_their_columns(tmp_path):
    columns = ("cataract", "Healthy", "glaucoma", "DR_1")
    rows = ["image," + ",".join(columns)]
    for k in range(8):
        Image.fromarray(np.full((8, 6, 3), k, np.uint8)).save(tmp_path / f"{k}.png")
        rows.append(f"{k}.png,1,{k % 2},0,{1 - k % 2}")
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    word = f"{tmp_path}/t.csv,label=" + "+".join(columns)
    found = thirteen(Data(data=(word,), part="all"))
    label = found.scored[1].targets["label"]
    known = {name: value for name, value in zip(NAMES, label.tolist(), strict=True) if not np.isnan(value)}
    assert known == {"healthy": 1, "DR-1": 0, "glaucoma": 0, "cataract": 1} and found.scored[1].targets["grade"] == 0
