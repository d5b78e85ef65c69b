"""Findings out of reports: negations, wordings within wordings, both languages, and every synthetic report."""

import numpy as np
import pytest

from data_pipelines.language.conditions import CONDITIONS, FINDINGS
from data_pipelines.language.findings import TellFindings, vocabulary
from data_pipelines.records import DataError
from data_pipelines.synthetic.sources import Eyes


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
    assert (
        {name for name, yes in mentions if yes}
        == there
        == set(vocabulary()(text)) - set(CONDITIONS) | (there & set(CONDITIONS))
    )
    assert {name for name, yes in mentions if not yes} == denied


def test_a_longer_wording_takes_its_place_though_it_is_not_told():
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
