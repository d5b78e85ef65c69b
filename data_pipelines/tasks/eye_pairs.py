"""Evaluation data of RET-CLIP: both eyes of synthetic patients, class prompts, and labelled images for linear probes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.datasets.rfmid import rfmid
from data_pipelines.language.prompts import prompts
from data_pipelines.language.tokenizers import Tokenizer
from data_pipelines.open import Sources
from data_pipelines.pipeline import Data, one_epoch
from data_pipelines.sources.cached import CachedSource
from data_pipelines.sources.ret_clip import open_pairs
from data_pipelines.synthetic.sources import Eyes, Patients
from data_pipelines.tasks.image_text import scored_names
from data_pipelines.transforms.steps import Select, Squash, Step
from data_pipelines.transforms.views import PairedEyes, SingleView
from data_pipelines.words import Named

TARGETS = ("label", "label_left", "label_right")


def pairs(data: Sources) -> Callable[[Sequence[str]], list[Named]]:
    """Make a function that opens the words of --data as sources of both eyes and a report (see open_pairs)."""
    return lambda words: [Named(Path(word).stem, open_pairs(word, data.image_dir), None, word) for word in words]


def retrieval_passes(
    data: Sources, parts: Mapping[str, list[Named]], steps: Sequence[Step], batch: int
) -> dict[str, Data]:
    """One pass over both eyes and the report of each held-out patient of --data, by the name of the evaluation."""
    scored = scored_names(data, parts) if data.data else []
    return {f"retrieval{end}": one_epoch(named.source, (PairedEyes(), *steps), batch=batch) for end, named in scored}


def paired(patients: Patients, batch: int) -> Data:
    """One pass over both eyes of each patient and their labels."""
    steps = (PairedEyes(text=None, targets=TARGETS), Squash(patients.size), Select(("left", "right", *TARGETS)))
    return one_epoch(CachedSource(patients), steps, batch=batch)


def level_prompts(patients: Patients, tokenizer: Tokenizer) -> dict[str, list[np.ndarray]]:
    """Prompts of each class as token ids i32 [P L], for the levels patient, left and right."""
    language = "en" if patients.language == "both" else patients.language
    names = patients.prompts(language)
    return {
        level: [tokenizer(prompts(name, level, language)) for name in names] for level in ("patient", "left", "right")
    }


def probe_data(patients: Patients, rfmid_root: str, batch: int) -> tuple[dict[str, Any], str]:
    """The parts of the data for a linear probe by name, and the key of the labels.

    With `rfmid_root`, the parts are train, valid and test of RFMiD, with its 28 labels. Without it, they are train and
    valid: single eyes of synthetic patients outside `patients`, with their findings as labels.
    """
    if rfmid_root:
        splits = {name: rfmid(rfmid_root, name) for name in ("train", "valid", "test")}
    else:
        n, start, side = patients.n, patients.start, patients.size
        shown = {"train": (n, start + n), "valid": (n // 2, start + 2 * n)}
        splits = {name: CachedSource(Eyes(k, patients.seed, first, size=side)) for name, (k, first) in shown.items()}
    label = "label" if rfmid_root else "findings"
    steps = (SingleView(text=None, targets=(label,)), Squash(patients.size), Select(("image", label)))
    return {name: one_epoch(source, steps, batch=batch) for name, source in splits.items()}, label
