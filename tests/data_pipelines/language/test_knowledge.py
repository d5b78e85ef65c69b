"""The knowledge base: complete, distinct, long enough, and what is made of it."""

import json
import re

import numpy as np
import pytest

from data_pipelines.language.knowledge import FILE, bundled, load
from data_pipelines.records import MODALITIES, DataError

# the dictionary keys of FLAIR (github.com/jusiro/FLAIR, Apache-2.0), whose data sets' labels are these words
FLAIR_KEYS = """
no diabetic retinopathy; mild diabetic retinopathy; moderate diabetic retinopathy; severe diabetic retinopathy;
proliferative diabetic retinopathy; no referable diabetic macular edema; hard exudates; soft exudates;
microaneurysms; haemorrhages; non clinically significant diabetic macular edema; age related macular degeneration;
media haze; drusens; pathologic myopia; branch retinal vein occlusion; tessellation; epiretinal membrane; laser
scar; no laser scar; macular scar; central serous retinopathy; optic disc cupping; central retinal vein occlusion;
tortuous vessels; asteroid hyalosis; optic disc pallor; optic disc edema; shunt; anterior ischemic optic neuropathy;
parafoveal telangiectasia; retinal traction; retinitis; chorioretinitis; exudates; retinal pigment epithelium
changes; macular hole; retinitis pigmentosa; cotton wool spots; colobomas; optic disc pit maculopathy; preretinal
haemorrhage; myelinated nerve fibers; haemorrhagic retinopathy; central retinal artery occlusion; tilted disc;
cystoid macular edema; post traumatic choroidal rupture; choroidal folds; vitreous haemorrhage; macroaneurysm;
vasculitis; branch retinal artery occlusion; plaque; haemorrhagic pigment epithelial detachment; collaterals;
normal; large optic cup; retina detachment; Vogt-Koyanagi syndrome; maculopathy; glaucoma; optic atrophy; severe
hypertensive retinopathy; disc swelling and elevation; dragged disk; congenital disk abnormality; Bietti crystalline
dystrophy; peripheral retinal degeneration and break; neoplasm; yellow-white spots flecks; fibrosis; silicon oil; no
proliferative diabetic retinopathy; no glaucoma; cataract; hypertensive retinopathy; neovascular age related macular
degeneration; geographical age related macular degeneration; acute central serous retinopathy; chronic central
serous retinopathy; no cataract; abnormal optic disc; abnormal vessels; abnormal macula; macular edema; scar; nevus;
increased cup disc; intraretinal microvascular abnormalities; red small dots; neovascularisation; a disease;
superficial haemorrhages; deep haemorrhages; ungradable; noisy; normal macula; macular degeneration; diabetic
retinopathy; no hypertensive retinopathy; mild hypertensive retinopathy; moderate hypertensive retinopathy;
malignant hypertensive retinopathy; myopic maculopathy grade cero; myopic maculopathy grade one; myopic maculopathy
grade two; myopic maculopathy grade three; myopic maculopathy grade four
"""


def test_every_category_of_flair_is_known():
    keys = re.split(r";\s+", " ".join(FLAIR_KEYS.split()))
    assert len(keys) == 109
    assert [key for key in keys if key not in bundled()] == []


def test_angiography_and_oct_have_findings_too():
    count = {m: sum(f.modality == m for f in bundled().findings.values()) for m in ("CFP", "FFA", "OCT")}
    assert count["FFA"] >= 15 and count["OCT"] >= 20
    assert {finding.modality for finding in bundled().findings.values()} <= set(MODALITIES)


def test_descriptions_are_long_enough_and_belong_to_one_category():
    owner = {}
    for finding in bundled().findings.values():
        assert 2 <= len(finding.en) <= 6, finding.name
        assert finding.location, finding.name
        assert all(len(text.split()) >= 3 for text in finding.en), finding.name
        for text in (*finding.en, *finding.zh):
            assert owner.setdefault(text.lower(), finding.name) == finding.name
            assert text == text.strip() and "  " not in text


def test_the_commonest_thirty_and_more_are_described_in_chinese():
    chinese = [finding for finding in bundled().findings.values() if finding.zh]
    assert len(chinese) >= 30
    assert all(re.search("[\u4e00-\u9fff]", text) for finding in chinese for text in finding.zh)


def test_a_name_is_found_by_what_else_it_is_called():
    found = {word: bundled().find(word) for word in ("NPDR grade 9", "Papilloedema", "crvo", "HR", "Normal  OCT")}
    assert {word: f and f.name for word, f in found.items()} == {
        "NPDR grade 9": None,
        "Papilloedema": "optic disc edema",
        "crvo": "central retinal vein occlusion",
        "HR": None,  # hypertensive and haemorrhagic retinopathy
        "Normal  OCT": "normal OCT",
    }


def test_captions_and_prompts():
    known = bundled()
    assert known.caption("glaucoma", "noisy") == "A noisy fundus photograph of glaucoma"
    assert known.caption("glaucoma") == "A fundus photograph of glaucoma"
    assert known.prompt("drusens", "FFA").startswith("A fluorescein angiogram of")
    assert known.ensemble("glaucoma")[-1] == "A fundus photograph of glaucoma"
    assert len(known.ensemble("glaucoma")) == 1 + len(known["glaucoma"].en)
    grade = "myopic maculopathy grade two"
    assert known.prompt(grade) not in known.ensemble(grade)
    assert known.ensemble("something rare") == ("A fundus photograph of something rare",)
    with pytest.raises(DataError, match="'MRI'"):
        known.prompt("drusens", "MRI")


def test_draws_are_uniform_over_name_and_descriptions():
    rng = np.random.default_rng(0)
    ways = bundled().ways("glaucoma")
    drawn = [bundled().draw("glaucoma", rng) for _ in range(400)]
    counts = [drawn.count(way) for way in ways]
    assert sum(counts) == 400 and min(counts) > 400 / len(ways) * 0.7
    assert bundled().draw("unheard of", rng) == "unheard of"


def test_sentences_for_pretraining():
    both = bundled().sentences(("en", "zh"))
    assert len(both) == sum(len(f.en) + len(f.zh) for f in bundled().findings.values())
    assert any(text.startswith("glaucoma: ") for text in both)


TEMPLATE = {"train": "a {}", "en": ["a {}"], "zh": ["{}"]}


@pytest.mark.parametrize(
    ("templates", "category", "message"),
    [
        ({}, {"en": "a thing seen"}, "category 'x': en must be a list of texts"),  # not thirteen letters
        ({}, {"en": ["drusen"], "zh": "玻璃膜疣"}, "category 'x': zh must be a list of texts"),
        ({}, {"en": ["drusen"], "synonyms": "spots"}, "category 'x': synonyms must be a list of texts"),
        ({}, {"en": ["drusen"], "synonyms": 3}, "category 'x': synonyms must be a list of texts"),
        ({}, {"en": ["drusen"], "location": ["macula"]}, "category 'x': location must be a text"),
        ({"CFP": TEMPLATE | {"en": "a {}"}}, {"en": ["drusen"]}, "templates of 'CFP': en must be a list of texts"),
        ({"CFP": {"en": ["a {}"]}}, {"en": ["drusen"]}, "templates of 'CFP': expected train"),
    ],
)
def test_a_text_in_place_of_a_list_is_named(tmp_path, templates, category, message):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"templates": templates, "categories": {"x": category}}))
    with pytest.raises(DataError, match=message):
        load(path)


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text("[]")
    with pytest.raises(DataError, match=r"mine\.json: expected a JSON object"):
        load(path)
    path.write_text(json.dumps({"templates": {}, "categories": {"x": {"english": ["a b c"]}}}))
    with pytest.raises(DataError, match="category 'x'"):
        load(path)
    with pytest.raises(DataError, match="'blue'"):
        bundled()["blue"]
    with pytest.raises(DataError, match="'fr'"):
        bundled()["glaucoma"].descriptions("fr")
    assert FILE.is_file()
