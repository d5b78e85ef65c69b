"""DICOM files: colour as stored, grey by its stored bits and either way up, and one line for a damaged one."""

import io

import numpy as np
import pytest

from data_pipelines.images.decode import ReadOptions, load
from data_pipelines.records import DataError

pydicom = pytest.importorskip("pydicom", reason="DICOM is an extra")


def dicom(pixels: np.ndarray, photometric: str, bits: int) -> bytes:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, OphthalmicPhotography8BitImageStorage

    meta, image = FileMetaDataset(), Dataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPInstanceUID = ExplicitVRLittleEndian, "1.2.3"
    meta.MediaStorageSOPClassUID, image.file_meta = OphthalmicPhotography8BitImageStorage, meta
    image.Rows, image.Columns = pixels.shape[:2]
    image.SamplesPerPixel, image.PhotometricInterpretation = (3 if pixels.ndim == 3 else 1), photometric
    image.BitsAllocated, image.BitsStored, image.HighBit = pixels.dtype.itemsize * 8, bits, bits - 1
    image.PixelRepresentation, image.PlanarConfiguration, image.PixelData = 0, 0, pixels.tobytes()
    buffer = io.BytesIO()
    image.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_colour_and_grey(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)
    (tmp_path / "eye.dcm").write_bytes(dicom(colour, "RGB", 8))
    np.testing.assert_array_equal(load(tmp_path / "eye.dcm"), colour)
    grey = np.linspace(0, 4095, 80).astype(np.uint16).reshape(8, 10)
    found = load(dicom(grey, "MONOCHROME2", 12))
    assert found.shape == (8, 10, 3) and found[0, 0, 0] == 0 and found[-1, -1, 0] == 255
    np.testing.assert_array_equal(load(dicom(grey, "MONOCHROME1", 12)), 255 - found)


def test_mistakes():
    data = dicom(np.zeros((8, 10, 3), np.uint8), "RGB", 8)
    with pytest.raises(DataError, match="a DICOM file whose image cannot be read"):
        load(data[:200])
    with pytest.raises(DataError, match="10 x 8 pixels, more than the limit of 20"):
        load(data, reading=ReadOptions(max_pixels=20))
