"""One list of modalities: VisionFM's folders, their moments, and shares of a mix."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from data_pipelines.open import Sources
from data_pipelines.pipeline import mix
from data_pipelines.records import MODALITIES, DataError, modality_name
from data_pipelines.sources.modality_folders import PUBLISHED, modality_folders, moments
from data_pipelines.synthetic.sources import Eyes
from data_pipelines.tasks.modality_mix import by_modality, images, shares
from data_pipelines.transforms.steps import Select
from data_pipelines.transforms.views import SingleView


@pytest.fixture
def root(tmp_path):
    for name, count in (("Fundus", 3), ("Silt-Lamp", 1), ("OCT", 2)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.fromarray(np.full((6, 6, 3), 10 * i, np.uint8)).save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_every_name_of_the_original_is_known():
    theirs = ("Fundus", "OCT", "External", "UBM", "Ultrasound", "UltraSound", "MRI", "Silt-Lamp", "SlitLamp", "FFA")
    assert {modality_name(name) for name in theirs} == set(PUBLISHED) == set(MODALITIES[:8])


def test_moments_by_index_of_the_batch():
    mean, std = moments()
    assert len(mean) == len(std) == len(MODALITIES)
    assert mean[MODALITIES.index("OCT")][2] == 0.21091919 and std[MODALITIES.index("MRI")][0] == 0.16198656
    assert moments(("UWF",)) == moments(("fundus",))


def test_folders(root):
    found = modality_folders(root)
    assert list(found) == ["CFP", "OCT", "SLIT_LAMP"] and [len(s) for s in found.values()] == [3, 2, 1]
    record = found["OCT"][1]
    assert record.patient == "1.png" and record.views[0].modality == "OCT"
    assert list(modality_folders(root, only=("OCT",))) == ["OCT"]


def test_subfolders_and_helper_folders(root, caplog):
    (root / "OCT" / "site1").mkdir()
    (root / "__MACOSX").mkdir()
    Image.fromarray(np.zeros((6, 6), np.uint8)).save(root / "OCT" / "site1" / "c.jfif", "JPEG")
    (root / "OCT" / "._0.png").write_bytes(b"x")
    (root / "OCT" / "scan.e2e").write_bytes(b"x")
    source = modality_folders(root)["OCT"]
    assert [record.patient for record in source] == ["0.png", "1.png", "site1/c.jfif"]
    assert "OCT: 1 files are not images and are passed over (1 .e2e)" in caplog.text


def test_mistakes_are_named(root):
    with pytest.raises(DataError, match="no folder of UBM; it holds CFP, OCT, SLIT_LAMP"):
        modality_folders(root, only=("UBM",))
    (root / "Colour").mkdir()
    with pytest.raises(DataError, match="Colour: modality 'Colour' is not one of"):
        modality_folders(root)
    (root / "Colour").rename(root / "CFP")
    with pytest.raises(DataError, match=r"another folder of .* is also CFP"):
        modality_folders(root)
    (root / "CFP").rmdir()
    for file in (root / "OCT").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="OCT: no images"):
        len(modality_folders(root)["OCT"])
    with pytest.raises(DataError, match="no images of MRI"):
        by_modality(Sources(data=("synthetic",)), ("MRI",), Eyes(1))


@pytest.mark.parametrize("balanced", [True, False])
def test_shares(root, balanced):
    """Balanced, every modality comes as often as the others; otherwise in proportion to its images."""
    words = ("synthetic", str(root)) if balanced else (str(root),)
    sources, _ = by_modality(Sources(data=words, fractions=(1.0,)), MODALITIES, Eyes(2, size=16), keep=True)
    assert images(sources) == (14 if balanced else 6)
    chain = (SingleView(text=None, targets=()), Select(("modality",)))
    data = mix(shares(sources, chain, balanced), batch=40, seed=0)()
    seen = Counter(int(k) for k in next(data)["modality"])
    data.close()
    if balanced:  # CFP, FFA, OCT, slit lamp, UWF
        assert seen == {MODALITIES.index(name): 8 for name in ("CFP", "FFA", "OCT", "SLIT_LAMP", "UWF")}
    else:
        assert abs(seen[0] - 20) <= 1 and abs(seen[2] - 13) <= 1 and abs(seen[3] - 7) <= 1
