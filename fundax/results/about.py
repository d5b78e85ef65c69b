"""What the numbers of an evaluation are of: data, part, step and preprocessing, as the trainer stored it beside them."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from fundax.evals.kinds import Result
from fundax.types import UserError


@dataclass(frozen=True)
class About:
    """Names of the data sources, digest of the data, part, step of the checkpoint, digest of the preprocessing.

    Empty, and step -1, where an evaluation of an earlier version did not store them.
    """

    data: tuple[str, ...] = ()
    digest: str = ""
    part: str = ""
    step: int = -1
    preprocessing: str = ""

    def text(self) -> str:
        """ "labels, part val, step 120"; an empty string where nothing is stored."""
        named = ", ".join(self.data) or ("own data" if self.step >= 0 else "")
        part = f"part {self.part}" if self.part else ""
        return ", ".join(filter(None, (named, part, f"step {self.step}" if self.step >= 0 else "")))


def about(result: Result) -> About:
    """What a result is of. Raises UserError where `about` is not what the trainer writes."""
    if result.about is None:
        return About()
    try:
        stored = json.loads(str(np.asarray(result.about)))
        step = stored.get("step", -1)
        return About(
            tuple(map(str, stored.get("data", ()))), str(stored.get("digest", "")), str(stored.get("part", "")),
            -1 if step is None else int(step), str(stored.get("preprocessing", "")),
        )  # fmt: skip
    except (ValueError, TypeError, AttributeError):
        raise UserError("`about` is not JSON with data, part, step and preprocessing") from None


def apart(chosen: About, applied: About) -> str:
    """Why thresholds chosen on one evaluation of a run may not be applied to another; an empty string if they may."""
    if chosen.step != applied.step:
        return f"validation is of step {_step(chosen)}, these rows of step {_step(applied)}"
    if chosen.preprocessing != applied.preprocessing:
        return "validation was preprocessed otherwise than these rows"
    return ""


def _step(one: About) -> str:
    return str(one.step) if one.step >= 0 else "unknown"
