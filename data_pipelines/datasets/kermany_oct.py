"""Kermany OCT2017: spectral-domain OCT B-scans in four classes."""

from __future__ import annotations

import re
from pathlib import Path

from data_pipelines.datasets.layouts import EyeDataset, Layout, Row, inside, label_table, listing
from data_pipelines.records import DataError

CODES = ("CNV", "DME", "DRUSEN", "NORMAL")
CLASSES = ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal retina")


CAPTIONS = (
    "Choroidal neovascularization with a neovascular membrane and subretinal fluid.",
    "Diabetic macular edema with retinal thickening and intraretinal fluid.",
    "Multiple drusen, as in early age-related macular degeneration.",
    "Normal retina with a preserved foveal contour and no retinal fluid or edema.",
)


NAME = re.compile(r"(CNV|DME|DRUSEN|NORMAL)-(\d+)-(\d+)")


def published(folder: Path) -> list[Row] | None:
    """The rows of the publisher's folders train, val (only in early versions) and test; None for another layout."""
    root = inside(folder, "train", "test")
    if root is None:
        return None
    splits = [root / split for split in ("train", "val", "test") if (root / split).is_dir()]
    return [row for split in splits for label, code in enumerate(CODES) for row in _rows(split, label, code)]


def _rows(split: Path, label: int, code: str) -> list[Row]:
    if not (split / code).is_dir():
        raise DataError(f"kermany_oct: expected {', '.join(CODES)} in {split}, found {listing(split)}")
    rows = []
    for image in sorted(p for p in (split / code).iterdir() if not p.name.startswith(".")):
        named = NAME.fullmatch(image.stem)
        if named is None or named[1] != code:
            raise DataError(f"kermany_oct: {image} is not named like {code}-1234567-1.jpeg")
        rows.append(Row(image, split.name, label, named[2]))
    return rows


KERMANY_OCT = EyeDataset(
    name="kermany_oct",
    modality="OCT",
    classes=CLASSES,
    codes=CODES,
    captions=CAPTIONS,
    layouts=(
        Layout("train/, test/ (and val/) with CNV, DME, DRUSEN and NORMAL in each", published),
        label_table(CLASSES, CODES, "class", {}),
    ),
    about=__doc__ or "",
    licence="CC BY 4.0",
    citation="Kermany DS, et al. Cell 2018;172(5):1122-1131. doi:10.1016/j.cell.2018.02.010",
    homepage="https://data.mendeley.com/datasets/rscbjbr9sj",
)
