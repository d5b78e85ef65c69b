"""RFMiD's label files: the real one, the publisher's layout, and rows that are wrong."""

import numpy as np
import pytest
from PIL import Image

from data_pipelines.datasets.rfmid import CONDITIONS, LABELS, RFMiD, rfmid
from data_pipelines.records import DataError


def test_the_real_label_file(shared_data, tmp_path):
    source = RFMiD(shared_data / "rfmid_labels_only" / "labels.csv", tmp_path)
    assert len(source) == 1920
    assert len(source.classes) == 28
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "4.png")
    record = source[3]
    assert record.findings == ("MH", "ODC")
    assert record.targets["label"].shape == (28,)
    assert record.targets["label"].sum() == 2
    with pytest.raises(DataError, match=r"labels\.csv row 1 \(line 2\): no image 1\{\.png"):
        source[0]
    assert source._rows[1][:, -1].sum() == 34  # the rare ones together


def write(folder, rows, columns=(*CONDITIONS, "CWS", "CL")):
    (folder / "Training").mkdir(parents=True)
    lines = [",".join(("ID", "Disease_Risk", *columns)), *(",".join(map(str, row)) for row in rows)]
    (folder / "RFMiD_Training_Labels.csv").write_text("\n".join(lines), encoding="utf-8-sig")


def test_publishers_layout_and_other(tmp_path):
    write(tmp_path / "Training_Set", [[7, 1, 1, *[0] * 26, 0, 1], [8, 0, *[0] * 29]])
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "Training_Set" / "Training" / "7.png")
    source = rfmid(tmp_path, "train")
    assert source[0].findings == ("DR", "OTHER")
    assert LABELS.index("OTHER") == 27
    with pytest.raises(DataError, match=r"expected one RFMiD_Validation_Labels\.csv in it, found 0"):
        rfmid(tmp_path, "valid")
    with pytest.raises(DataError, match="expected one of train, valid, test"):
        rfmid(tmp_path, "dev")


def test_wrong_rows_are_named(tmp_path):
    write(tmp_path / "a", [[7, 1, 2, *[0] * 28]])
    with pytest.raises(DataError, match=r"row 1 \(line 2\): DR is '2', expected 0 or 1"):
        len(rfmid(tmp_path / "a", "train"))
    write(tmp_path / "b", [], columns=CONDITIONS[1:])
    with pytest.raises(DataError, match="no column 'DR'"):
        len(rfmid(tmp_path / "b", "train"))


def test_encodings_and_gaps_of_the_label_file(tmp_path):
    write(tmp_path / "a", [[7, 1, *[0] * 29], ["", 1, *[0] * 29]])
    with pytest.raises(DataError, match=r"row 2 \(line 3\): ID is empty"):
        len(rfmid(tmp_path / "a", "train"))
    path = tmp_path / "a" / "RFMiD_Training_Labels.csv"
    path.write_bytes(path.read_text(encoding="utf-8-sig").rsplit("\n", 1)[0].encode("utf-16"))
    assert len(rfmid(tmp_path / "a", "train")) == 1
    path.write_bytes("ID,病\n".encode("gb18030"))
    with pytest.raises(DataError, match="is not utf-8"):
        len(rfmid(tmp_path / "a", "train"))
