"""The columns of a table of visits.

A long table has one row per image: `text` and `label` are those of the image, `eye_report` and `eye_label` those of the
eye, `report` and `visit_label` those of the visit. A wide table has one row per visit and a column per view: `cfp_left`,
`oct_right`, `oct_right_2`, with `text_cfp_left` and `label_cfp_left` of an image, `report_left` and `label_left` of an eye,
and `report` and `label` of the visit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from data_pipelines.records import EYES, MODALITIES, DataError, eye_name, modality_name

LONG_NOTES = ("report", "eye_report")
LONG_LABELS = ("eye_label", "visit_label")
_SLOT = re.compile(r"(?P<modality>.+?)(?:_(?P<eye>left|right|os|od|l|r))?(?:_(?P<number>\d+))?", re.IGNORECASE)


class Slot(NamedTuple):
    """A place for a view in a visit, in the order of views: by modality, eye and number."""

    modality: str
    eye: str = ""
    number: int = 1

    @property
    def name(self) -> str:
        """Name of its column, such as CFP_left."""
        return "_".join(filter(None, (self.modality, self.eye, str(self.number) if self.number > 1 else "")))


def view_order(declared: Sequence[str], modality: str, eye: str) -> tuple[int, int]:
    """Sort key of the views of a visit: the modality, then left, right and unknown eyes."""
    return (*MODALITIES, *declared).index(modality), EYES.index(eye)


def slot_of(column: str, declared: Sequence[str] = ()) -> Slot | None:
    """The view that the name of a column means (cfp_left, OCT_OD_2); None if it means none."""
    match = _SLOT.fullmatch(column)
    if match is None:
        return None
    try:
        modality = modality_name(match["modality"], declared)
    except DataError:
        return None
    return Slot(modality, eye_name(match["eye"] or ""), int(match["number"] or 1))


@dataclass
class VisitColumns:
    """The columns of a table of visits: our name -> theirs. `slots` are the views of a wide table; () of a long one."""

    notes: dict[str, str] = field(default_factory=dict)  # texts that CsvSchema does not have, and paths of views
    labels: dict[str, str] = field(default_factory=dict)  # labels in addition to `label`
    slots: tuple[Slot, ...] = ()


def long_columns(header: Sequence[str], asked: Mapping[str, Any]) -> VisitColumns:
    """The columns of a long table that a table of images does not have."""
    own = {name: asked.get(name, name if name in header else "") for name in (*LONG_NOTES, *LONG_LABELS)}
    return VisitColumns(
        {name: own[name] for name in LONG_NOTES if own[name]}, {name: own[name] for name in LONG_LABELS if own[name]}
    )


def wide_columns(header: Sequence[str], asked: Mapping[str, Any], declared: Sequence[str]) -> VisitColumns:
    """The columns of a wide table; its slots are () if the header names no view."""
    found = VisitColumns()
    views: dict[Slot, str] = {}
    for name in [*header, *asked]:
        theirs = asked.get(name, name)
        prefix, _, rest = name.partition("_")
        if not theirs or not name:
            continue
        if prefix.lower() in ("text", "label") and (slot := slot_of(rest, declared)):
            (found.labels if prefix.lower() == "label" else found.notes)[f"{prefix.lower()}_{slot.name}"] = theirs
        elif slot := slot_of(name, declared):
            views[slot] = theirs
    for kind, into in (("report", found.notes), ("label", found.labels)):
        sides = {f"{kind}_{eye}": asked.get(f"{kind}_{eye}", f"{kind}_{eye}") for eye in ("left", "right")}
        into.update({name: theirs for name, theirs in sides.items() if theirs in header or name in asked})
    report = next((asked.get(name, name) for name in ("report", "text") if name in header or asked.get(name)), "")
    found.notes.update({"report": report} if report else {})
    found.slots = tuple(sorted(views, key=lambda slot: (*view_order(declared, slot.modality, slot.eye), slot.number)))
    found.notes.update({slot.name: views[slot] for slot in found.slots})
    return found


def known_names(name: str, declared: Sequence[str] = ()) -> bool:
    """Whether an option of a table of visits names one of its columns."""
    prefix, _, rest = name.partition("_")
    if name in (*LONG_NOTES, *LONG_LABELS) or slot_of(name, declared):
        return True
    return prefix in ("text", "label", "report") and (rest in ("left", "right") or slot_of(rest, declared) is not None)
