"""IDRiD, part B: diabetic retinopathy and macular oedema grades of 516 fundus photographs."""

from __future__ import annotations

from pathlib import Path

from data_pipelines.datasets.layouts import EyeDataset, Layout, Row, inside, label_table, whole
from data_pipelines.records import DataError, no_such_image
from data_pipelines.sources.tables import read_named

IMAGES, TABLES = "1. Original Images", "2. Groundtruths"
GRADE, OEDEMA = "Retinopathy grade", "Risk of macular edema"
SPLITS = {
    "train": ("a. Training Set", "a. IDRiD_Disease Grading_Training Labels.csv"),
    "test": ("b. Testing Set", "b. IDRiD_Disease Grading_Testing Labels.csv"),
}


CODES = ("No DR", "Mild NPDR", "Moderate NPDR", "Severe NPDR", "PDR")


CLASSES = (
    "no diabetic retinopathy",
    "mild nonproliferative diabetic retinopathy",
    "moderate nonproliferative diabetic retinopathy",
    "severe nonproliferative diabetic retinopathy",
    "proliferative diabetic retinopathy",
)


CAPTIONS = (
    "No diabetic retinopathy is seen.",
    "Mild nonproliferative diabetic retinopathy with microaneurysms only.",
    "Moderate nonproliferative diabetic retinopathy, more than microaneurysms but less than severe.",
    "Severe nonproliferative diabetic retinopathy with widespread haemorrhages or venous changes.",
    "Proliferative diabetic retinopathy with new vessels, vitreous or preretinal haemorrhage.",
)


def published(folder: Path) -> list[Row] | None:
    """The rows of the publisher's folder `B. Disease Grading` or its parent; None for another layout."""
    root = inside(folder, IMAGES, TABLES)
    if root is None:
        return None
    rows = []
    for split, (images, labels) in SPLITS.items():
        path = root / TABLES / labels
        if not path.is_file():
            raise DataError(f"idrid: no such file {path}")
        rows += [_row(root / IMAGES / images, split, *row) for row in read_named(path, "Image name", GRADE, OEDEMA)]
    return rows


def _row(images: Path, split: str, where: str, cells: dict[str, str]) -> Row:
    grade, oedema = whole(cells[GRADE], where, GRADE, 5), whole(cells[OEDEMA], where, OEDEMA, 3)
    image = images / f"{cells['Image name']}.jpg"
    if not image.is_file():
        raise DataError(f"{where}: {no_such_image(image)}")
    # the image numbers of the training and test sets overlap, so the split is part of the name
    return Row(image, split, grade, f"{split}/{cells['Image name']}", {"macular_edema_risk": oedema})


IDRID = EyeDataset(
    name="idrid",
    modality="CFP",
    classes=CLASSES,
    codes=CODES,
    captions=CAPTIONS,
    targets=("macular_edema_risk",),
    layouts=(
        Layout(f"{IMAGES!r} and {TABLES!r} of 'B. Disease Grading'", published),
        label_table(CLASSES, CODES, "retinopathy_grade", {"macular_edema_risk": ("risk_of_macular_edema", 3)}),
    ),
    about=__doc__ or "",
    licence="CC BY 4.0",
    citation="Porwal P, et al. Indian Diabetic Retinopathy Image Dataset. Data 2018;3(3):25. doi:10.3390/data3030025",
    homepage="https://ieee-dataport.org/open-access/indian-diabetic-retinopathy-image-dataset-idrid",
)
