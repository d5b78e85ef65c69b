"""Reports: what is there is named, what is absent is not claimed, words vary, both languages."""

import re

import numpy as np
import pytest

from data_pipelines.language.conditions import CONDITIONS, FINDINGS
from data_pipelines.language.wording import ABSENT, IMPRESSIONS, SIGNS
from data_pipelines.synthetic.noise import stream
from data_pipelines.synthetic.patients import eye_at, patient
from data_pipelines.synthetic.reports import caption, findings_of, report
from data_pipelines.synthetic.sources import Eyes, Patients

PEOPLE = [patient(1, k, CONDITIONS) for k in range(60)]
EYES = [eye_at(p, p.principal, 0) for p in PEOPLE]


def test_every_condition_and_finding_has_words_in_both_languages() -> None:
    for language in ("en", "zh"):
        assert set(IMPRESSIONS[language]) == set(CONDITIONS)
        assert set(SIGNS[language]) == set(FINDINGS)
        assert set(ABSENT[language]) <= set(FINDINGS)


def test_findings_of_a_glaucomatous_eye() -> None:
    eye = next(e for e in EYES if e.condition == "glaucoma")
    assert eye.cup >= 0.65
    assert {"enlarged cup", "nerve fibre defect", "peripapillary atrophy"} <= set(findings_of(eye))
    assert all(k in FINDINGS for e in EYES for k in findings_of(e))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_captions_name_the_condition(language: str) -> None:
    for k, eye in enumerate(EYES):
        text = caption(eye, "CFP", language, stream(5, k))
        assert any(name.lower() in text.lower() for name in IMPRESSIONS[language][eye.condition]), text
        # another condition's name is there only to be denied
        denied = set(ABSENT[language].values())
        rest = text.lower()
        for name in sorted(IMPRESSIONS[language][eye.condition], key=len, reverse=True):
            rest = rest.replace(name.lower(), "")
        others = {c for c in CONDITIONS if c != eye.condition and IMPRESSIONS[language][c][0] in rest}
        assert not {c for c in others if IMPRESSIONS[language][c][0] not in denied}, text


def test_what_is_there_is_never_denied() -> None:
    for k, eye in enumerate(EYES):
        found = {ABSENT["en"][f] for f in findings_of(eye) if f in ABSENT["en"]}
        for draw in range(6):
            text = caption(eye, "CFP", "en", stream(6, k, draw))
            for denied in re.findall(r"(?:no|without|free of|no sign of) ([a-z -]+?) or ([a-z -]+?)[.;,]", text):
                assert not found & set(denied), text


def test_wording_varies() -> None:
    eye = next(e for e in EYES if e.condition == "retinal vein occlusion")
    assert len({caption(eye, "CFP", "en", stream(7, k)) for k in range(40)}) > 30
    assert len({caption(eye, "FFA", "zh", stream(7, k)) for k in range(40)}) > 15


def test_reports_speak_of_each_eye() -> None:
    left, right = eye_at(PEOPLE[0], "left", 0), eye_at(PEOPLE[0], "right", 0)
    texts = [report({"left": left, "right": right}, ("CFP",), "en", stream(8, k)) for k in range(30)]
    for text in texts:
        sided = re.search(r"(Left eye|OS|left eye)", text) and re.search(r"(Right eye|OD|right eye)", text)
        assert sided or re.match(r"(Both eyes|OU|Bilaterally)", text), text
    only = report({"left": left}, ("CFP",), "zh", stream(8, 1))
    assert "左眼" in only and "右眼" not in only


def test_a_scan_is_not_described_by_what_it_cannot_show() -> None:
    eye = next(e for e in EYES if e.condition == "mild diabetic retinopathy")
    for k in range(10):
        assert "icroaneurysms" not in caption(eye, "OCT", "en", stream(9, k)).split(", no ")[0]


def test_languages_of_the_sources() -> None:
    def chinese(text: str) -> bool:
        return any("\u4e00" <= c <= "\u9fff" for c in text)

    assert not any(chinese(Eyes(8, size=16)[k].report) for k in range(8))
    assert all(chinese(Patients(8, size=16, language="zh")[k].report) for k in range(8))
    assert 0 < np.mean([chinese(Eyes(20, size=16, language="both")[k].report) for k in range(20)]) < 1
