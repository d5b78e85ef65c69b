"""A folder of DICOM files as the rows of a table of images, by the tags in their headers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.images.dicom import is_dicom
from data_pipelines.records import DataError, modality_name

# our columns and the tags that fill them; of several, the first that has a value
TAGS = {
    "patient": ("PatientID",),
    "day": ("StudyDate", "AcquisitionDate", "ContentDate", "SeriesDate"),
    "eye": ("ImageLaterality", "Laterality"),
    "text": ("ImageComments",),
    "report": ("StudyComments",),
    "age": ("PatientAge",),
    "sex": ("PatientSex",),
    "device": ("ManufacturerModelName",),
    "site": ("InstitutionName",),
    "ethnicity": ("EthnicGroup",),
}
HEADER = ("image", "modality", *TAGS)
# tags that may name the modality; `Modality` alone says no more than ophthalmic photography
_DESCRIPTIONS = ("SeriesDescription", "ProtocolName", "AcquisitionProtocolName", "ImageType")
_KINDS = {"OP": "CFP", "OPT": "OCT", "US": "B_ULTRASOUND", "OPTENF": "OCT", "MR": "MRI"}


def dicom_rows(folder: Path, more: Sequence[str] = ()) -> Iterator[tuple[int, int, list[str]]]:
    """Rows of the images below `folder`, sorted by patient, day and path, as `tables.read_rows` yields those of a table.

    The columns are those of HEADER that any file fills, and the keywords of further tags in `more`. The modality is the
    first that SeriesDescription, ProtocolName or ImageType name, or that of the tag Modality (OP: CFP, OPT: OCT, US:
    B_ULTRASOUND). Raises DataError if the folder holds no DICOM file or a file cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    further = [name for name in dict.fromkeys(more) if name not in HEADER]
    files = sorted(path for path in folder.rglob("*") if path.is_file() and is_dicom(_beginning(path)))
    if not files:
        raise DataError(f"{folder}: holds no DICOM file; expected a table of images, or a folder of DICOM files")
    rows = [_row(folder, path, further) for path in files]
    day = HEADER.index("day")
    rows.sort(key=lambda cells: (cells[HEADER.index("patient")], cells[day], cells[0]))
    kept = [k for k, cells in enumerate(zip(*rows, strict=True)) if any(cells) or k >= len(HEADER)]
    yield 0, 0, [[*HEADER, *further][k] for k in kept]
    for number, cells in enumerate(rows, 1):
        yield number, 0, [cells[k] for k in kept]


def _row(folder: Path, path: Path, further: Sequence[str]) -> list[str]:
    header = _header(path)
    values = {name: next(filter(None, (_text(header, tag) for tag in tags)), "") for name, tags in TAGS.items()}
    values["eye"] = values["eye"].replace("B", "")  # both eyes in one image
    values["age"] = values["age"].lstrip("0").removesuffix("Y")
    own = [path.relative_to(folder).as_posix(), _modality(header), *values.values()]
    return [*own, *(_text(header, keyword) for keyword in further)]


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(132)


def _header(path: Path) -> Any:
    """The tags of a file, without its pixels. Raises DataError naming the file."""
    try:
        import pydicom
    except ImportError as error:
        raise DataError(f"{path}: a DICOM file; reading it needs pydicom: pip install -e '.[dicom]'") from error
    try:
        return pydicom.dcmread(path, stop_before_pixels=True)
    except Exception as error:  # damaged bytes raise what pydicom happens to raise
        raise DataError(f"{path}: a DICOM file that cannot be read ({str(error)[:200]})") from error


def _modality(header: Any) -> str:
    """The modality that a description names, or that of the tag; what is unknown is left for the table to refuse."""
    for tag in _DESCRIPTIONS:
        value = header.get(tag, "")
        for word in [value] if isinstance(value, str) else list(value or ()):
            try:
                return modality_name(str(word))
            except DataError:
                continue
    named = _text(header, "SeriesDescription")
    kind = _text(header, "Modality")
    return _KINDS.get(kind, named or kind)


def _text(header: Any, keyword: str) -> str:
    value = header.get(keyword)
    return "" if value is None else str(value).strip()
