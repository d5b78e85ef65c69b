"""Contact sheets: the size that was asked for, captions of what is known, clear faults."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.contact_sheet import _fit, _legible, _words, contact_sheet
from data_pipelines.records import DataError, Record, View
from data_pipelines.sources.wrap import wrap
from data_pipelines.synthetic.sources import Eyes, Visits


def test_sheet_has_a_cell_for_every_image(tmp_path: Path) -> None:
    out = contact_sheet(Eyes(4, size=32), tmp_path / "deep" / "sheet.png", count=4, columns=3, cell=100)
    with Image.open(out) as sheet:
        assert sheet.size == (3 * 108, 2 * 162)  # four images, three columns, captions of 62 pixels
        pixels = np.asarray(sheet.convert("RGB"))
    assert (pixels[:100, 4:104] < 255).any() and (pixels[100:162] < 128).any()
    assert (pixels[162:, 220:] == 255).all()  # the empty cells


def test_a_visit_is_a_line_of_its_views(tmp_path: Path) -> None:
    source = Visits(2, seed=1, size=32, missing=0.4)
    slots = {(view.modality, view.eye) for k in range(2) for view in source[k].views}
    with Image.open(contact_sheet(source, tmp_path / "sheet.png", count=2, cell=100)) as sheet:
        assert sheet.size == (len(slots) * 108, 2 * 196)
        pixels = np.asarray(sheet.convert("RGB"))
    order = sorted(slots, key=lambda slot: (("CFP", "FFA", "OCT").index(slot[0]), slot[1] == "right"))
    for line in range(2):
        there = {(view.modality, view.eye) for view in source[line].views}
        for column, slot in enumerate(order):
            shown = pixels[line * 196 + 34 : line * 196 + 134, column * 108 + 4 : column * 108 + 104]
            assert (shown < 255).any() == (slot in there)


@pytest.mark.parametrize("suffix", ["png", "JPG", "tif", "webp", "svg", "pdf"])
def test_the_suffix_is_the_format(tmp_path: Path, suffix: str) -> None:
    data = contact_sheet(Eyes(1, size=32), tmp_path / f"sheet.{suffix}", cell=60).read_bytes()
    begins = {"png": b"\x89PNG", "JPG": b"\xff\xd8", "tif": b"II*", "webp": b"RIFF", "svg": b"<?xml", "pdf": b"%PDF"}
    assert data.startswith(begins[suffix])


def test_words_say_class_eye_and_report() -> None:
    source = Eyes(4, size=16)
    record = source[1]
    text = _words(record, 0, 1, source.classes)
    name = source.classes[int(record.targets["label"])]
    assert text == f"#1 · CFP · {record.views[0].eye} · {name}\n{record.report}"
    plain = Record("p", (View(np.zeros((4, 4, 3), np.uint8)),), targets={"label": 3}, day=9)
    assert _words(plain, 0, 0, ()) == "#0 · CFP · day 9 · label 3"


def test_lines_break_between_words_and_chinese_characters() -> None:
    assert _fit("one two three four", 8, 3) == "one two\nthree\nfour"
    assert _fit("视网膜脱离", 4, 3) == "视网\n膜脱\n离"
    assert _fit("a b c d e f", 2, 2).endswith("…")


def test_missing_font_is_reported_and_not_drawn_as_boxes() -> None:
    assert _legible("#0 · CFP\n右眼", ["DejaVu Sans"]) == "#0 · CFP\n(Chinese text; this machine has no font for it)"
    assert _legible("#0\n右眼", ["DejaVu Sans", "SimHei"]) == "#0\n右眼"


def test_faults_name_the_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rows"):
        contact_sheet(Eyes(0), tmp_path / "a.png")
    with pytest.raises(DataError, match="columns=0"):
        contact_sheet(Eyes(1), tmp_path / "a.png", columns=0)
    with pytest.raises(DataError, match=r"sheet.xyz: expected a file name that ends in .png, .jpg"):
        contact_sheet(Eyes(1), tmp_path / "sheet.xyz")
    with pytest.raises(DataError, match="start=9, the source has the rows 0 to 0"):
        contact_sheet(Eyes(1, size=16), tmp_path / "a.png", start=9)
    bad = [Record("p", (View(b"abc"),))]
    with pytest.raises(DataError, match="row 0: an image of 3 bytes: not an image"):
        contact_sheet(bad, tmp_path / "a.png")


def test_images_are_shrunk_before_they_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr("matplotlib.axes.Axes.imshow", lambda axes, pixels, **options: drawn.append(pixels.shape))
    contact_sheet(wrap([(np.zeros((600, 900, 3), np.uint8), "a")]), tmp_path / "x.png", cell=60)
    assert drawn == [(40, 60, 3)]


def test_a_sheet_has_bounds_and_its_words_are_text(tmp_path: Path) -> None:
    small = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(DataError, match="more than 32768 pixels high or wide; ask for fewer"):
        contact_sheet(wrap([(small, "a")] * 5000), tmp_path / "x.png", count=5000)
    words = ["$x^{", "w" * 100_000, "a\x00\x1b[2J", "\n".join("abcdefgh" * 9)]
    path = contact_sheet(wrap([(small, one) for one in words]), tmp_path / "x.png", cell=64)
    with Image.open(path) as picture:
        assert picture.height < 400 and picture.width < 400
