"""Masks and landmarks of a table are matched to the classes by the names of their columns."""

import logging

import numpy as np
import pytest
from PIL import Image

from data_pipelines.open import Data
from data_pipelines.tasks.dense import masks, points

ALL = {"part": "all"}


@pytest.fixture
def table(tmp_path):
    rows = ["image,cup_mask,disc_mask,macula_x,macula_y,onh_x,onh_y"]
    for k in range(2):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / f"{k}.png")
        for name, value in (("cup", 1), ("disc", 2)):
            drawn = np.zeros((8, 8), np.uint8)
            drawn[:value] = 1
            Image.fromarray(drawn).save(tmp_path / f"{name}{k}.png")
        rows.append(f"{k}.png,cup{k}.png,disc{k}.png,1,2,3,4")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "labels.csv"


def test_masks_by_the_names_of_their_columns(table):
    for word in ("cup_mask+disc_mask", "disc_mask+cup_mask"):
        data = Data(data=(f"{table},mask={word}",), classes=("disc", "cup"), **ALL)
        found = masks(data, 0, 8, overlapping=True, crop=False, keep=False)
        assert found.scored[0].targets["truth"].sum((0, 1)).tolist() == [16, 8] and found.name == "all"
    assert data.used["classes"] == ["disc", "cup"]


def test_columns_that_name_no_class_are_read_in_order_with_a_warning(table, caplog):
    data = Data(data=(f"{table},points=macula+onh",), classes=("fovea", "disc"), **ALL)
    with caplog.at_level(logging.WARNING):
        found = points(data, 0, 8, missing="error", diameter=0, resize="squash", keep=False)
    assert found.scored[0].targets["points"].tolist() == [[1, 2], [3, 4]]
    assert "the columns macula, onh are read as fovea, disc, in this order" in caplog.text
