"""VisionFM's lists of labels: text files without a header, with one image in each line."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.images.decode import DEFAULT, ReadOptions
from data_pipelines.records import DataError, Record, View, modality_name
from data_pipelines.sources.columns import Indexed, read_once, row_index
from data_pipelines.sources.labels import MOST_CLASSES

FORMS = "path;3, path;1,0,0,1 (several labels), or path,label,days (a forecast)"


@dataclass(frozen=True)
class LabelList(Indexed):
    """A list such as training_labels.txt: `path;3`, `path;1,0,...` for several labels, or `path, label, days`.

    Paths are relative to `image_dir`, or to the folder of the list. Days become the target `value` f32 [1]. The first use
    raises DataError naming the line that has another form.

    Source: github.com/ABILab-CUHK/VisionFM, whose decoders for classification, several modalities and forecasting read
    these lists.
    """

    path: Path
    image_dir: Path | None = None
    modality: str = "CFP"
    reading: ReadOptions = DEFAULT

    @read_once
    def rows(self) -> tuple[tuple[str, tuple[float, ...], bool, int], ...]:
        """(image, its numbers, whether the second of them is days, line) of every image."""
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such file; expected {FORMS}")
        try:
            lines = self.path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeError) as error:
            raise DataError(f"{self.path}: cannot be read ({error})") from None
        found = [_row(line, f"{self.path}, line {k}", k) for k, line in enumerate(lines, 1) if line.strip()]
        if not found:
            raise DataError(f"{self.path}: has no lines; expected {FORMS}")
        for _, numbers, forecast, line in found:
            if (len(numbers), forecast) != (len(found[0][1]), found[0][2]):
                raise DataError(f"{self.path}, line {line}: is of another form than the first line")
        return tuple(found)

    @property
    def classes(self) -> tuple[str, ...]:
        """The numbers 0 to the highest label; () for several labels, which the list does not name."""
        if len(self.rows[0][1]) > 1 and not self.rows[0][2]:
            return ()
        return tuple(str(k) for k in range(int(max(numbers[0] for _, numbers, _, _ in self.rows)) + 1))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        image, numbers, forecast, line = self.rows[row_index(index, len(self))]
        targets: dict[str, np.ndarray | np.int32] = {"label": np.array(numbers, np.float32)}
        if forecast or len(numbers) == 1:
            targets = {"label": np.int32(numbers[0])}
        if forecast:
            targets["value"] = np.array(numbers[1:], np.float32)
        view = View(self.reading.file((self.image_dir or self.path.parent) / image), modality_name(self.modality))
        return Record(image, (view,), targets=targets, where=f"{self.path}, line {line}")

    def patients(self) -> list[str]:
        """The image of each row, since the list names no patients."""
        return [image for image, _, _, _ in self.rows]


def _row(line: str, place: str, number: int) -> tuple[str, tuple[float, ...], bool, int]:
    image, semicolon, rest = line.partition(";")
    cells = rest.split(",") if semicolon else line.split(",")[1:]
    image = image if semicolon else line.split(",")[0]
    numbers: list[float] = []
    with contextlib.suppress(ValueError):
        numbers = [float(cell) for cell in cells]
    if semicolon and len(numbers) > 1:
        right = all(label in (0, 1) or np.isnan(label) for label in numbers)
    else:
        right = len(numbers) == (1 if semicolon else 2) and np.isfinite(numbers[-1])
        right = right and numbers[0].is_integer() and 0 <= numbers[0] < MOST_CLASSES
    if not image.strip() or not right:
        raise DataError(f"{place}: {line[:60]!r} is not {FORMS}")
    return image.strip(), tuple(numbers), not semicolon, number
