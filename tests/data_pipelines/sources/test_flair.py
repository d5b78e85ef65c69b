"""FLAIR's and MM-Retinal's tables as the original code writes them; captions, categories, elite batches."""

import pickle
import time

import numpy as np
import pytest
from PIL import Image

from data_pipelines.language.knowledge import bundled
from data_pipelines.pipeline import mix, train
from data_pipelines.records import DataError, Record, View
from data_pipelines.sources.flair import UNSEEN, clean_caption, flair_frame, mm_retinal
from data_pipelines.synthetic.sources import Eyes
from data_pipelines.tasks.keepfit import WithAppearance, WithElite
from data_pipelines.transforms.flair import Canvas, CategoryCaption, Diagnosed, EliteReport, category_id, status
from data_pipelines.transforms.steps import Select, apply
from data_pipelines.transforms.views import SingleView

FRAME = """,image,atributes,categories
0,01_A/1.png,[],"['mild diabetic retinopathy', 'hard exudates']"
1,01_A/2.png,"['noisy']",['normal']
2,11_STARE/3.png,[],['glaucoma']
3,01_A/4.png,[],['pathologic myopia']
"""


@pytest.fixture
def folder(tmp_path):
    for name in ("01_A/1", "01_A/2", "11_STARE/3", "01_A/4"):
        file = tmp_path / f"{name}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 12, 3), 100, np.uint8)).save(file)
    (tmp_path / "frame.csv").write_text(FRAME)
    (tmp_path / "mm.csv").write_text(
        'Image_ID,cn_caption,en_caption\n01_A/1,黄斑水肿,"Macular edema. Same person as Figure 3-1."\n01_A/2,正常,Normal.\n'
    )
    return tmp_path


def test_bans_by_substring_and_by_name(folder):
    lengths = [
        len(flair_frame(folder / "frame.csv", folder, **options))
        for options in ({}, {"ban": UNSEEN}, {"ban": UNSEEN, "ban_by": "exact"})
    ]
    assert lengths == [4, 3, 4]  # "pathologic myopia" holds "myopia" and is not equal to it
    with pytest.raises(DataError, match="ban_by"):
        flair_frame(folder / "frame.csv", folder, ban_by="regex")


def test_a_row_becomes_a_record(folder):
    frame = flair_frame(folder / "frame.csv", folder)
    record = pickle.loads(pickle.dumps(frame))[0]
    assert record.findings == ("mild diabetic retinopathy", "hard exudates")
    assert record.views[0].image == folder / "01_A/1.png" and record.where.endswith("frame.csv row 1 (line 2)")
    assert frame[1].targets["attributes"] == ("noisy",)


def test_captions_say_a_category_in_one_of_its_ways(folder):
    frame, step = flair_frame(folder / "frame.csv", folder), CategoryCaption()
    drawn = [step(frame[0], np.random.default_rng(seed)) for seed in range(60)]
    texts = {example["text"] for example in drawn}
    ways = [way for name in frame[0].findings for way in bundled().ways(name)]
    assert texts == {f"A fundus photograph of {way}" for way in ways}
    assert {int(example["category"]) for example in drawn} == {int(category_id(name)) for name in frame[0].findings}
    noisy = CategoryCaption(use_knowledge=False)(frame[1], np.random.default_rng(0))
    assert (noisy["text"], int(noisy["status"])) == ("A noisy fundus photograph of normal", 0)
    as_it_is = {step(frame[2], np.random.default_rng(seed))["text"] for seed in range(20)}
    assert as_it_is == {"A fundus photograph of glaucoma"}


def test_a_category_may_be_known_by_a_synonym():
    record = Record("x/1", (View(np.zeros((4, 4, 3), np.uint8)),), findings=("diabetic macular oedema",))
    texts = {CategoryCaption(by_synonym=True)(record, np.random.default_rng(seed))["text"] for seed in range(40)}
    assert texts == {f"A fundus photograph of {way}" for way in bundled().ways("diabetic macular edema")}
    assert CategoryCaption()(record, np.random.default_rng(0))["text"].endswith("diabetic macular oedema")


def test_captions_of_other_modalities_and_of_nothing():
    image = np.zeros((4, 4, 3), np.uint8)
    angiogram = Record("x/1", (View(image, "FFA"),), findings=("disc leakage",))
    text = CategoryCaption(use_knowledge=False)(angiogram, np.random.default_rng(0))["text"]
    assert text == "A fluorescein angiogram of disc leakage"
    nothing = CategoryCaption()(Record("x/1", (View(image),)), np.random.default_rng(0))
    assert (nothing["text"], int(nothing["status"])) == ("A fundus photograph of ", -1)
    assert status(("normal", "drusens")) == 1


def test_category_numbers_are_the_same_everywhere():
    assert int(category_id("glaucoma")) == int(category_id("glaucoma")) >= 0
    assert len({int(category_id(name)) for name in bundled().findings}) == len(bundled().findings)


def test_mm_retinal_in_its_three_forms(folder):
    english = mm_retinal(folder / "mm.csv", folder, suffix=".png")
    assert [english[i].report for i in range(2)] == ["Macular edema.", "Normal."]
    assert english[0].views[0].image == folder / "01_A/1.png"
    assert mm_retinal(folder / "mm.csv", folder, language="zh")[0].report == "黄斑水肿"
    (folder / "cfp.csv").write_text(",image,caption\n0,a.png,Some drusen\n1,b.png,see Figure 2.\n")
    assert [row[1] for row in mm_retinal(folder / "cfp.csv", folder).rows] == ["Some drusen"]
    angiography = mm_retinal(folder / "frame.csv", folder, modality="FFA")
    assert (angiography[2].report, angiography[2].views[0].modality) == ("glaucoma", "FFA")
    with pytest.raises(DataError, match="expected a column cn_caption; it has"):
        len(mm_retinal(folder / "cfp.csv", folder, language="zh"))


@pytest.mark.parametrize(
    ("caption", "kept"),
    [
        ("Disc is pale. Same patient as Figure 3-2-1. Vessels thin.", "Disc is pale. Vessels thin."),
        ("Disc  is\npale", "Disc is pale"),
        ("Macular edema; see Fig. 2.1. Hard exudates.", "Macular edema. Hard exudates."),
        ("Hard exudates (see figure 3) and oedema.", "Hard exudates and oedema."),
        ("I see figure-of-eight pattern.", "I see figure-of-eight pattern."),
        ("Config 3, stage 3 ROP", "Config 3, stage 3 ROP"),
        ("Drusen, as shown in Figs. 2, 3 and 4, are large.", "Drusen, are large."),
        ("Drusen (Fig. 3, left).", "Drusen (left)."),
        ("Fig. 3: hard exudates.", "hard exudates."),
        ("Cup 0.6; see Fig. 2.1, 2.2. Pale.", "Cup 0.6. Pale."),
        ("Same eye as Fig. 3.", ""),
        ("see figure below", ""),
        ("黄斑水肿，见图3-1。硬性渗出。", "黄斑水肿。 硬性渗出。"),
        ("与图3-1为同一患者。视盘水肿（图3-1，图3-2）", "视盘水肿"),
        ("同一患者", ""),
    ],
)
def test_references_to_figures_are_cut_and_their_sentences_kept(caption, kept):
    assert clean_caption(caption) == kept


def test_captions_are_cleaned_in_linear_time():
    start = time.process_time()
    for text in ("a" * 100_000, "see " * 25_000, "fig 1, " * 15_000, "(" * 50_000, "same patient as " * 6_000):
        clean_caption(text)
    assert time.process_time() - start < 3  # minutes when a search began at every letter


def test_rows_without_a_caption_are_counted(tmp_path, caplog):
    rows = "Image_ID,en_caption\n1,Macular edema; see Fig. 2.1.\n2,\n3,Same eye as Fig. 3.\n4,None\n"
    (tmp_path / "mm.csv").write_text(rows)
    assert [row[1] for row in mm_retinal(tmp_path / "mm.csv", tmp_path).rows] == ["Macular edema."]
    assert "left out 3 of 4 rows (2 without a caption, 1 that only refer to a figure)" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,categories\na.png,[oops]\n", r"row 1 \(line 2\): '\[oops\]' is not a list"),
        ("image,categories\na.png,\"__import__('os').getcwd()\"\n", "is not a list of texts"),
        ("image,categories\na.png\n", r"row 1 \(line 2\): has 1 fields, the header has 2"),
        ("image\na.png\n", "expected a column categories"),
        ("image,categories\n", "has no rows"),
    ],
)
def test_a_broken_table_is_named(tmp_path, text, message):
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        len(flair_frame(tmp_path / "bad.csv", tmp_path))


def test_elite_batches_are_one_to_one_and_resume(folder):
    frames = [flair_frame(folder / "frame.csv", folder), flair_frame(folder / "frame.csv", folder, ban=UNSEEN)]
    steps = (CategoryCaption(), Canvas(16), Select(("image", "text", "category", "status")))
    public = mix([(frame, steps, 1) for frame in frames], batch=4)  # FLAIR's balance
    reports = mm_retinal(folder / "mm.csv", folder, suffix=".png")
    elite = train(reports, (SingleView(), Canvas(16), Select(("image", "text"))), batch=4, seed=1)
    data = WithElite(public, elite)
    batches = data(0, 1)
    first, second = next(batches), next(batches)
    assert first["elite/image"].shape == first["image"].shape == (4, 16, 16, 3)
    assert set(first["elite/text"]) <= {"Macular edema.", "Normal."} and "elite/category" not in first
    again = data(0, 1)
    again.set_state({"step": 1})
    np.testing.assert_equal(next(again), second)
    assert again.get_state() == batches.get_state() == {"step": 2}
    again.close()
    batches.close()
    with pytest.raises(DataError, match="got 4 public examples and 2 elite examples"):
        WithElite(public, train(reports, (SingleView(),), batch=2))


def test_the_canvas_fills_up_right_and_below():
    example = {"image": np.full((4, 8, 3), 200, np.uint8), "points": np.array([[7.0, 3.0]], np.float32)}
    out = apply((lambda x, rng: x, Canvas(16)), example, 0, 0)
    assert out["image"].shape == (16, 16, 3)
    assert (out["image"][:8] == 200).all() and not out["image"][8:].any()
    np.testing.assert_allclose(out["points"], [[14.5, 6.5]])


def test_an_expert_says_whether_the_eye_is_healthy(folder):
    rows = "image,caption,fundus_status\n01_A/1.png,Drusen.,abnormal\n01_A/2.png,Clear.,Normal\n01_A/4.png,Eye.,\n"
    (folder / "status.csv").write_text(rows)
    source = mm_retinal(folder / "status.csv", folder)
    examples = [apply((EliteReport(),), source[i], 0, i) for i in range(3)]
    assert [int(one["status"]) for one in examples] == [1, 0, -1] and examples[0]["text"] == "Drusen."
    without = apply((EliteReport(),), mm_retinal(folder / "mm.csv", folder, suffix=".png")[0], 0, 0)
    assert int(without["status"]) == -1
    (folder / "status.csv").write_text("image,caption,fundus_status\n01_A/1.png,Drusen.,ill\n")
    with pytest.raises(DataError, match=r"row 1 \(line 2\): fundus_status is 'ill'"):
        len(mm_retinal(folder / "status.csv", folder))


def test_a_class_becomes_the_category_and_some_are_wrong():
    eyes = Eyes(60, size=16)
    right, noisy = Diagnosed(eyes), Diagnosed(eyes, noise=0.3)
    names = [right[i].findings for i in range(60)]
    assert names == [(eyes.classes[int(eyes[i].targets["label"])],) for i in range(60)]
    wrong = [noisy[i].findings != names[i] for i in range(60)]
    assert 6 < sum(wrong) < 32 and wrong == [noisy[i].findings != names[i] for i in range(60)]
    assert right[3].report == eyes[3].report


def test_appearances_are_looked_up_for_both_halves(folder):
    source = flair_frame(folder / "frame.csv", folder)
    steps = (CategoryCaption(), Canvas(16), Select(("image", "text")))
    data = WithAppearance(
        WithElite(train(source, steps, batch=2), train(source, steps, batch=2, seed=1)),
        lambda images: images.mean((1, 2)).astype(np.float32),
    )
    batches = data(0, 1)
    first, second = next(batches), next(batches)
    np.testing.assert_array_equal(first["elite/appearance"], first["elite/image"].mean((1, 2), dtype=np.float64))
    assert first["appearance"].shape == (2, 3) and data.batch == 2
    again = data(0, 1)
    again.set_state({"step": 1})
    np.testing.assert_equal(next(again), second)
    assert again.get_state() == {"step": 2}
    again.close()
    batches.close()
