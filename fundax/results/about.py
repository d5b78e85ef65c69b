"""Provenance of an evaluation: data, part, step and preprocessing, as stored by the trainer."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from fundax.evals.kinds import Result
from fundax.types import UserError


@dataclass(frozen=True)
class About:
    """Provenance of an evaluation. Evaluations of earlier versions did not store it; the fields are then empty."""

    data: tuple[str, ...] = ()  # names of the sources
    digest: str = ""  # of the data
    part: str = ""
    step: int = -1  # of the checkpoint; -1 if unknown
    preprocessing: str = ""  # digest of the preprocessing

    def text(self) -> str:
        """Format as "labels, part val, step 120"; "" if nothing is stored."""
        named = ", ".join(self.data) or ("own data" if self.step >= 0 else "")
        part = f"part {self.part}" if self.part else ""
        return ", ".join(filter(None, (named, part, f"step {self.step}" if self.step >= 0 else "")))


def about(result: Result) -> About:
    """Parse the provenance of a result. Raises UserError if `about` was not written by the trainer."""
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
    """The reason why thresholds chosen on an evaluation may not be applied to another one of the same run; "" if they may."""
    if chosen.step != applied.step:
        return f"the validation rows are of step {_step(chosen)}, these rows of step {_step(applied)}"
    if chosen.preprocessing != applied.preprocessing:
        return "the validation rows were preprocessed differently"
    return ""


def _step(provenance: About) -> str:
    return str(provenance.step) if provenance.step >= 0 else "unknown"
