"""Nearest neighbours: the most similar cases of a run's data, by the cosine similarity of features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.images import decode as files
from data_pipelines.records import DataError
from fundax.inference.embed import COLUMNS, embed
from fundax.inference.model import Model
from fundax.runtime.arrays import read_arrays
from fundax.runtime.workdir import read_optional_json
from fundax.serving.answers import data_uri, smaller
from fundax.types import UserError

OWN, FILE = "data", "neighbours.npz"
NEAREST, THUMBNAIL = 5, 160
SAME = 0.99  # cosine of one image's feature now and in the file, below which the file is another model's


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Unit features f32 [N E] of N cases, and their texts [N] by column: image, patient, eye, modality."""

    features: np.ndarray
    columns: dict[str, np.ndarray]

    def nearest(self, feature: np.ndarray, count: int = NEAREST) -> list[dict[str, Any]]:
        """The cases nearest to a feature f32 [E], nearest first: similarity, the columns, and a picture, if available."""
        cosines = self.features @ (feature / max(float(np.linalg.norm(feature)), 1e-12))
        found = []
        for row in np.argsort(-cosines, kind="stable")[:count]:
            texts = {name: str(column[row]) for name, column in self.columns.items() if str(column[row])}
            path = texts.get("image", "")
            texts["image"] = Path(path).name
            found.append({"similarity": float(cosines[row]), **texts, "picture": _picture(path)})
        return found


def open_neighbours(model: Model, run: str | Path, source: str) -> Neighbours | None:
    """Open the cases that a served model compares photographs with.

    Args:
        source: a file of launch.py embed; "data" for the run's own data, whose features are computed once, with progress,
            and kept in the run; "" for none.
    Raises:
        UserError: a run without files of data, or features of another model.
    """
    if not source:
        return None
    path = Path(source)
    if source == OWN:
        path = Path(run) / FILE
        words = read_optional_json(Path(run) / "config.json").get("args", {}).get("data") or ()
        if not words:
            raise UserError(
                f"--neighbours data: {run} has no files of data to compare with; give a file of launch.py embed"
            )
        if not path.exists():
            print(embed(run, list(words), path, skip_bad=True))
    arrays = read_arrays(path)
    if "features" not in arrays or "image" not in arrays:
        raise UserError(f"{path}: expected the features and names that launch.py embed writes")
    features = np.asarray(arrays["features"], np.float32)
    features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    found = Neighbours(features, {name: arrays[name] for name in COLUMNS if name in arrays})
    _check_model(model, found, path)
    return found


def _check_model(model: Model, found: Neighbours, path: Path) -> None:
    """Raise UserError if the features were not computed with this model."""
    row = next((k for k, name in enumerate(found.columns["image"]) if Path(str(name)).is_file()), None)
    width = model.encode_image([np.zeros((8, 8, 3), np.uint8)]).shape[1]
    same = found.features.shape[1] == width
    if same and row is not None:
        own = model.encode_image([str(found.columns["image"][row])])[0]
        same = float(own @ found.features[row]) / float(np.linalg.norm(own)) > SAME
    if not same:
        raise UserError(f"{path}: these are not features of this model; write them again: launch.py embed")


def _picture(path: str) -> str:
    """A small picture of a file as a data URI; "" if it cannot be read, as for a synthetic image."""
    try:
        return data_uri(smaller(files.load(path, THUMBNAIL), THUMBNAIL)) if Path(path).is_file() else ""
    except DataError:
        return ""
