"""Features of folders and tables: the rows of one pass, whole after a stop in the middle, and mistakes before the work."""

import numpy as np
import pytest
from PIL import Image

import fundax
from data_pipelines.records import DataError
from fundax.encoders.backbone import Encoder
from fundax.encoders.vit import dino_vit
from fundax.inference import embed as module
from fundax.inference.embed import embed
from fundax.interop import dinov2, keymap
from fundax.interop.checkpoint import Checkpoint
from fundax.params import unflatten
from fundax.types import UserError

OBJECTIVE = Encoder(dino_vit("S/16").clone(image_size=16, patch=8, width=8, depth=1, heads=1))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An encoder, a folder of seven photographs in two subfolders, and a table of three of them."""
    place, rng = tmp_path_factory.mktemp("embed"), np.random.default_rng(0)
    shapes = keymap.shapes_of(OBJECTIVE)
    params = unflatten({path: 0.3 * rng.standard_normal(shape, np.float32) for path, shape in shapes.items()})
    dinov2.write_folder(Checkpoint(OBJECTIVE, params, {"image_size": 16}), place / "model")
    for k in range(7):
        path = place / "eyes" / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(path)
    rows = ["image,patient,eye", *(f"eyes/a/{k}.png,p{k},left" for k in (0, 2, 4))]
    (place / "table.csv").write_text("\n".join(rows))
    return place


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(module, "PART", 3)


def test_a_folder_is_embedded_and_resumed(place, tmp_path, monkeypatch):
    paths = sorted((place / "eyes").rglob("*.png"))
    expected = fundax.load(place / "model", batch=4).encode_image(paths)
    whole, written = module._write_part, []

    def killed(path, *rest):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        whole(path, *rest)

    monkeypatch.setattr(module, "_write_part", killed)
    with pytest.raises(KeyboardInterrupt):
        embed(place / "model", [place / "eyes"], tmp_path / "new" / "f.npz", batch=4)
    assert not (tmp_path / "new" / "f.npz").exists()
    with pytest.raises(UserError, match="parts of another feature; remove the folder"):
        embed(place / "model", [place / "eyes"], tmp_path / "new" / "f.npz", batch=4, feature="mean")
    monkeypatch.setattr(module, "_write_part", lambda path, *rest: (written.append(path.name), whole(path, *rest)))
    line = embed(place / "model", [place / "eyes"], tmp_path / "new" / "f.npz", batch=4)
    assert written == ["000000.npz", "000001.npz", "000002.npz"] and "pooled 7 x 8" in line
    with np.load(tmp_path / "new" / "f.npz") as found:
        np.testing.assert_allclose(found["features"], expected, atol=1e-6)
        assert found["image"].tolist() == [str(path) for path in paths] and found["row"].tolist() == list(range(7))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["f.npz"]


def test_a_table_as_parquet(place, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="Parquet is an extra")
    embed(place / "model", [f"{place / 'table.csv'},images={place}"], tmp_path / "f.parquet", batch=4, feature="mean")
    table = parquet.read_table(tmp_path / "f.parquet")
    assert table.column("patient").to_pylist() == ["p0", "p2", "p4"] and table.num_rows == 3
    paths = [place / "eyes" / "a" / f"{k}.png" for k in (0, 2, 4)]
    expected = fundax.load(place / "model", batch=4).encode_image(paths, "mean")
    np.testing.assert_allclose(np.array(table.column("features").to_pylist()), expected, atol=1e-6)


def test_images_that_cannot_be_read(place, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"nothing of an image, whatever its name says")
    words = [place / "eyes" / "a", tmp_path / "bad.png"]
    with pytest.raises(DataError, match=r"bad\.png"):
        embed(place / "model", words, tmp_path / "f.npz", batch=4)
    line = embed(place / "model", words, tmp_path / "f.npz", batch=4, skip_bad=True)
    assert "pooled 4 x 8" in line and "1 images could not be read" in line
    for out, message in (("f.npz", "already exists"), ("f.csv", r"ends in \.npz or \.parquet")):
        with pytest.raises(UserError, match=message):
            embed(place / "model", words, tmp_path / out)
    with pytest.raises(UserError, match="no images"):
        embed(place / "model", [], tmp_path / "g.npz")
