"""The columns of a table and how they are read (CsvSchema), and the parsed rows (Table)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.records import ATTRIBUTES, DataError
from data_pipelines.sources.columns import Stored, Strings
from data_pipelines.sources.labels import Classes
from data_pipelines.sources.visit_columns import Slot, known_names

TEXTS = ("image", "text", "patient", "mask", "fov")
CODES = ("label", "modality", "eye")
NAMES = (*TEXTS, *CODES, "day", "points", "value")  # our names of columns
ON_REQUEST = ("mask", "fov", "points", "value")  # read only if `columns` names them; fov also together with a mask
REQUIRED = ("image", "text", "label", "patient", "day")  # an empty cell in one of these columns is an error
REQUIRED_OF_VISITS = ("image", "patient", "day")
FILES = ("image", "mask", "fov")
KEPT = (*ATTRIBUTES, "split")  # read if the file has a column of this name

Columns = Mapping[str, str | Sequence[str] | None]


@dataclass(frozen=True)
class CsvSchema:
    """Which columns of a file to read and how; `sources.csv.csv_source` explains the fields."""

    path: Path
    sep: str = ","
    columns: tuple[tuple[str, str | tuple[str, ...]], ...] = ()
    only: tuple[tuple[str, str], ...] = ()
    require: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    modality: str = "CFP"
    empty: str = "error"
    encoding: str = ""
    keep: tuple[str, ...] = ()
    values: tuple[tuple[str, str], ...] = ()
    visits: bool = False
    declare: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in [name for name, _ in self.columns] + list(self.require):
            if name not in NAMES and not (self.visits and known_names(name, self.declare)):
                raise DataError(f"columns: {name!r} is not one of our names {', '.join(NAMES)}")
        if self.empty not in ("error", "drop", "keep"):
            raise DataError(f"empty must be error, drop or keep, not {self.empty!r}")
        if self.classes is not None:
            Classes(self.classes)


@dataclass
class Table:
    """The columns of a file: strings, codes (indices into `names`), numbers f32 [rows n].

    `places` u32 [rows 2] holds the number of each data row, from 1, and its line in the file. `kept` are the columns that
    are not ours: attributes, and `split`. `notes` are further texts of a table of visits, and `slots` the views of a wide one.
    """

    places: Stored
    texts: dict[str, Strings]
    codes: dict[str, Stored]
    names: dict[str, tuple[str, ...]]
    numbers: dict[str, Stored]
    kept: dict[str, Strings]
    notes: dict[str, Strings]
    slots: tuple[Slot, ...] = ()

    def __len__(self) -> int:
        return len(self.places.array)
