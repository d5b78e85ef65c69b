"""Modalities are data: measured, declared by a file, named in captions, and unknown without it."""

import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines.open import Data
from data_pipelines.records import MODALITIES, DataError
from data_pipelines.sources.modality_folders import moments
from data_pipelines.sources.modality_stats import measure, moments_of, read_stats, write_stats
from data_pipelines.tasks.image_text import worded
from data_pipelines.transforms.views import SingleView
from data_pipelines.words import named


@pytest.fixture
def table(tmp_path):
    for name, value in (("a", 51), ("b", 153), ("c", 255)):
        Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(tmp_path / f"{name}.png")
    text = "image,patient,modality,text\na.png,p,octa,one\nb.png,p,OCTA,two\nc.png,q,CFP,three\n"
    (tmp_path / "t.csv").write_text(text)
    return tmp_path / "t.csv"


def test_statistics_are_kept_and_used(table, tmp_path):
    found = measure(named(f"{table},declare=OCTA").source)
    assert found["OCTA"].images == 2 and found["CFP"].images == 1
    np.testing.assert_allclose(found["OCTA"].mean, 0.4, atol=1e-6)
    np.testing.assert_allclose(found["OCTA"].std, 0.2, atol=1e-6)
    path = write_stats(found, tmp_path / "m.json")
    assert read_stats(path) == found
    data = Data(data=(f"{table}",), modalities=("octa", "UWF"), modality_file=str(path))
    assert data.wanted == ("OCTA", "UWF") and data.known == (*MODALITIES, "OCTA")
    mean, std = data.moments()
    assert (mean[0], std[0]) == (found["OCTA"].mean, found["OCTA"].std)
    assert mean[1] == moments(("UWF",))[0][0]
    assert json.loads(path.read_text()) == json.loads(json.dumps(data.used["modalities"]))
    record = data.open(data.data)[0].source[0]
    example = SingleView(prompt="{modality}: {text}", names=data.known)(record, np.random.default_rng(0))
    assert example["text"] == "OCTA image: one" and example["modality"] == len(MODALITIES)
    assert list(worded("{modality} of {text}")("x", "OCTA")) == ["OCTA image of x"]


def test_what_is_not_declared_is_an_error_that_says_how(table, tmp_path):
    with pytest.raises(
        DataError, match=r"row 1 \(line 2\): modality 'octa' is not one of .*declare=octa.*--modality-file"
    ):
        len(named(str(table)).source)
    with pytest.raises(DataError, match="modality 'OCTA' is not one of"):
        moments_of(("OCTA",), {})
    (tmp_path / "no.json").write_text("{}")
    with pytest.raises(DataError, match=r"launch\.py data stats"):
        read_stats(tmp_path / "no.json")
