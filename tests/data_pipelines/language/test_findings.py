"""Findings out of reports: negations, wordings within wordings, both languages, and every synthetic report."""

import csv
import gc
import time
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.language.conditions import CONDITIONS, FINDINGS
from data_pipelines.language.findings import TellFindings, vocabulary
from data_pipelines.records import DataError
from data_pipelines.synthetic.sources import Eyes

MARKED = Path(__file__)


@pytest.mark.parametrize(
    ("text", "there", "denied"),
    [
        ("Flame haemorrhages and hard exudates, no macular oedema.", {"flame haemorrhage", "hard exudate"}, {"macular oedema"}),
        ("No haemorrhage.", set(), {"haemorrhage"}),
        ("no haemorrhages, hard exudates or new vessels", set(), {"haemorrhage", "hard exudate", "neovascularisation"}),
        ("no haemorrhage, hard exudates at the fovea", {"hard exudate"}, {"haemorrhage"}),
        ("No hemorrhage but macular edema", {"macular oedema"}, {"haemorrhage"}),
        ("Normal fundus apart from drusen, macular hole not seen", {"drusen"}, {"macular hole"}),
        ("Preretinal hemorrhage is absent; COTTON WOOL SPOTS", {"cotton-wool spot"}, {"preretinal haemorrhage"}),
        ("an enlarged cup-to-disc ratio of 0.7, C/D 0.4 in the other", {"enlarged cup"}, set()),
        ("未见出血及玻璃膜疣，黄斑水肿", {"macular oedema"}, {"haemorrhage", "drusen"}),
        ("choroidal folds, epiretinal membrane", {"choroidal folds", "epiretinal membrane"}, set()),
        ("cottonwoolspots, drusenoid, prehaemorrhage", set(), set()),
    ],
)  # fmt: skip
def test_what_is_there_and_what_is_denied(text, there, denied):
    mentions = vocabulary().mentions(text)
    assert {name for name, status in mentions if status == "present"} == there == vocabulary()(text)
    assert {name for name, status in mentions if status == "absent"} == denied


def test_a_longer_wording_takes_precedence_even_if_it_is_not_asked_for():
    only = vocabulary().only(("haemorrhage", "mild diabetic retinopathy"))
    assert only("preretinal haemorrhage, non-proliferative diabetic retinopathy") == frozenset()
    assert only("blot haemorrhages in mild non-proliferative diabetic retinopathy") == only.reported
    # one disease of the knowledge base and of the synthetic reports is one finding
    assert vocabulary()("hard exudates; lipid exudates") == {"hard exudate"}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_synthetic_report_says_what_its_eye_has(language):
    eyes = Eyes(150, modalities=("CFP", "FFA", "OCT"), size=16, language=language)
    signs, conditions = vocabulary().only(FINDINGS), vocabulary().only(CONDITIONS)
    count = 0
    for row in range(len(eyes)):
        record = eyes[row]
        found, name = signs(record.report), eyes.classes[int(record.targets["label"])]
        assert found <= set(record.findings), record.report
        assert name == "normal" or name in conditions(record.report), record.report
        count += len(found)
    assert count > 180


def test_a_step_tells_which_findings_a_text_names():
    tell, rng = TellFindings(("drusen", "hard exudate", "macular hole")), np.random.default_rng(0)
    example = tell({"text": "Drusen and hard exudates, no macular hole."}, rng)
    assert example["findings"].tolist() == [1, 1, 0] and example["findings"].dtype == np.float32
    with pytest.raises(DataError, match="no text"):
        tell({"text": np.zeros(3, np.int32)}, rng)


@pytest.mark.parametrize(("language", "least"), [("en", 60), ("zh", 60)])
def test_hand_marked_sentences_are_read_as_marked(language, least):
    lines = MARKED.with_name(f"marked_{language}.tsv").read_text(encoding="utf-8").splitlines()[1:]
    rows = [(set(filter(None, present.split("; "))), text) for present, text in (line.split("\t") for line in lines)]
    assert len(rows) >= least
    find = vocabulary()
    assert {name for present, _ in rows for name in present} <= find.reported
    wrong = [(text, find(text) ^ present) for present, text in rows if find(text) != present]
    assert not wrong


@pytest.mark.parametrize("column", ["text_en", "text_zh"])
def test_real_reports_of_cataract_have_no_retinopathy(shared_data, column):
    path = shared_data / "csdi" / "labels.csv"
    if not path.exists():
        pytest.skip(f"the real reports of CSDI are not here: {path}")
    with path.open(encoding="utf-8", newline="") as file:
        found = [vocabulary()(row[column]) for row in csv.DictReader(file)]
    allowed = {
        "cataract",
        "media opacity",
        "disc swelling",
    }  # the last: "blurred disc margins", seen through the cataract
    assert set().union(*found) <= allowed
    assert sum("cataract" in one for one in found) >= 40


@pytest.mark.parametrize(
    "text",
    [
        "轻度",
        "重度",
        "中度模糊",
        "轻度近视，重度干眼",
        "mild",
        "severe",
        "high",
        "clinically significant",
        "增殖期",
        "干性",
    ],
)
def test_a_part_of_a_wording_is_no_finding(text):
    assert vocabulary()(text) == frozenset()


@pytest.mark.parametrize(
    ("text", "finding", "status"),
    [
        ("糖尿病视网膜病变（重度）", "severe diabetic retinopathy", "present"),
        ("糖尿病视网膜病变（增殖期）", "proliferative diabetic retinopathy", "present"),
        ("diabetic retinopathy: moderate.", "moderate diabetic retinopathy", "present"),
        ("diabetic retinopathy, severe pain", "diabetic retinopathy", "present"),
        ("non proliferative diabetic retinopathy", "diabetic retinopathy", "present"),
        ("possible drusen", "drusen", "uncertain"),
        ("drusen?", "drusen", "uncertain"),
        ("glaucoma cannot be ruled out", "glaucoma", "uncertain"),
        ("drusen: none", "drusen", "absent"),
        ("出血：无", "haemorrhage", "absent"),
        ("视网膜脱离已复位", "retinal detachment", "absent"),
        ("青光眼待排", "glaucoma", "uncertain"),
        ("不除外青光眼", "glaucoma", "uncertain"),
        ("青光眼家族史", "glaucoma", "absent"),
    ],
)
def test_severity_belongs_to_its_disease_and_doubt_is_no_presence(text, finding, status):
    assert vocabulary().mentions(text) == [(finding, status)]


def _spent(find, text):
    start = time.process_time()
    find(text)
    return time.process_time() - start


@pytest.mark.parametrize(
    "part", ["no haemorrhage or drusen, hard exudates; ", "未见出血及渗出，黄斑水肿可疑。", "无", "?", "no "]
)
def test_time_is_linear_in_the_length(part):
    find = vocabulary()
    find("warm up")
    gc.collect()
    gc.disable()  # otherwise garbage of other tests may be collected in either
    try:
        spent = [min(_spent(find, (part * length)[:length]) for _ in range(3)) for length in (10_000, 80_000)]
    finally:
        gc.enable()
    assert spent[1] < 16 * spent[0] + 0.1  # eight times the text; a quadratic scan would take 64 times as long
