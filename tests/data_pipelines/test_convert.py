import io
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import launch
from data_pipelines.convert import Sizing, convert
from data_pipelines.images.decode import ReadOptions, StoredImage, load, read_options
from data_pipelines.open import named
from data_pipelines.records import DataError, Record, View
from data_pipelines.sources.folders import image_folder
from data_pipelines.sources.shards import array_records, pack, unpack
from data_pipelines.sources.splits import split_by
from data_pipelines.sources.wrap import wrap
from data_pipelines.synthetic.sources import Eyes, Patients


def equal(a, b):
    """Every field but `where`; images by their pixels."""
    assert replace(a, views=(), targets={}, where="") == replace(b, views=(), targets={}, where="")
    assert [(v.modality, v.eye) for v in a.views] == [(v.modality, v.eye) for v in b.views]
    for one, other in zip(a.views, b.views, strict=True):
        np.testing.assert_array_equal(load(one.image), load(other.image))
    assert a.targets.keys() == b.targets.keys()
    for name, value in a.targets.items():
        same_tree(value, b.targets[name])


def same_tree(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            same_tree(a[key], b[key])
    elif isinstance(a, tuple):
        for one, other in zip(a, b, strict=True):
            same_tree(one, other)
    else:
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(a, b)


def test_every_field_of_a_record_comes_back(tmp_path):
    source = Patients(5, seed=1, modalities=("CFP", "OCT"), size=32, language="both", masks=True)
    out = convert(source, tmp_path / "eyes", Sizing(64, "png"), shard=2)
    assert sorted(p.name for p in out.glob("*.array_record")) == [
        f"data-0000{k}-of-00003.array_record" for k in range(3)
    ]
    back = named(f"array_record:{out}").source
    assert len(back) == 5 and back.classes == source.classes
    for row in range(5):
        equal(source[row], back[row])
    assert back[3].where == f"{out} row 4 (row 4)" and back[-1].patient == source[4].patient
    equal(pickle.loads(pickle.dumps(back))[2], source[2])
    with pytest.raises(IndexError):
        back[5]


def test_scalars_keep_their_types():
    targets = {"a": np.float64(0.5), "b": 3, "c": np.int32(-1), "d": "x", "e": np.zeros((0, 2), "f4"), "f": True}
    record = Record("p", (View(b"abc"),), targets=targets)
    same_tree(dict(unpack(pack(record)).targets), targets)


def test_images_shrink_and_what_lies_on_them_follows(tmp_path):
    image = np.zeros((60, 120, 3), np.uint8)
    image[:, 60:] = 200
    mask = (image[:, :, 0] > 0).astype(np.int32) * 7
    points = np.array([[59.5, 29.5], [89.5, 14.5]], np.float32)
    item = {"image": image, "text": "an eye", "mask": mask, "points": points, "patient": "p"}
    (record,) = array_records(convert(wrap([item]), tmp_path / "out", Sizing(20, "png")))
    found = load(record.views[0].image)
    assert found.shape == (20, 40, 3) and found[:, 24:].min() > 190 and found[:, :16].max() < 10
    np.testing.assert_array_equal(record.targets["mask"], np.repeat(np.arange(40)[None] >= 20, 20, 0) * 7)
    # the middle of the picture stays its middle: (59.5 + .5) / 3 - .5
    np.testing.assert_allclose(record.targets["points"], [[19.5, 9.5], [29.5, 4.5]], atol=1e-5)


@pytest.mark.parametrize("size", [40, 200])
def test_a_mask_of_another_size_than_its_image_is_refused(tmp_path, size):
    image, mask = np.zeros((80, 112, 3), np.uint8), np.ones((112, 80), np.uint8)
    Image.fromarray(mask).save(tmp_path / "m.png")
    for value in (mask, tmp_path / "m.png"):
        with pytest.raises(
            DataError, match=r"row 1: .*mask.*(80 x 112 pixels, its image 112 x 80|its image \[80, 112\])"
        ):
            convert(wrap([{"image": image, "mask": value}]), tmp_path / "out", Sizing(size))
    item = {"image": image, "mask": np.stack([mask.T, 0 * mask.T], -1)}  # one channel for each class
    (record,) = array_records(convert(wrap([item]), tmp_path / "out", Sizing(40)))
    assert record.targets["mask"].shape == (40, 56, 2) and record.targets["mask"].sum((0, 1)).tolist() == [2240, 0]


def test_masks_are_stored_as_class_numbers(tmp_path):
    mask = np.zeros((8, 8), np.uint8)
    mask[:2] = 128
    Image.fromarray(mask).save(tmp_path / "m.png")
    item = {
        "image": np.zeros((8, 8, 3), np.uint8),
        "mask": StoredImage(tmp_path / "m.png", read_options(values="0:0,128:2")),
    }
    (record,) = array_records(convert(wrap([item]), tmp_path / "out", Sizing(8)))
    assert record.targets["mask"].sum() == 32
    item["mask"] = StoredImage(tmp_path / "m.png", read_options(values="0:background,128:disc"))
    with pytest.raises(DataError, match="stores the numbers of classes: write values=128:2 instead of values=128:NAME"):
        convert(wrap([item]), tmp_path / "other", Sizing(8))


def test_stored_orientation_and_depth_are_kept(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    image = np.zeros((8, 16, 3), np.uint8)
    image[:, 8:] = 200
    Image.fromarray(image).save(tmp_path / "a.jpg", exif=exif, quality=95)
    Image.fromarray(image[..., 0].astype(np.uint16) * 16).save(tmp_path / "b.png")
    views = [StoredImage(tmp_path / "a.jpg", ReadOptions(orientation="stored"))]
    views.append(StoredImage(tmp_path / "b.png", ReadOptions(depth=12)))
    records = [Record("p", (View(view),), where="row") for view in views]
    for record in array_records(convert(records, tmp_path / "out", Sizing(8))):
        assert np.abs(load(record.views[0].image).astype(int) - image).max() < 9


def test_a_small_jpeg_keeps_its_bytes_and_a_large_one_is_encoded_well(tmp_path):
    folder = tmp_path / "eyes" / "train" / "normal"
    folder.mkdir(parents=True)
    for name, size in (("a", 40), ("b", 300)):
        Image.fromarray(load(Eyes(1, size=size)[0].views[0].image)).save(folder / f"{name}.jpg", quality=92)
    small, large = array_records(convert(image_folder(tmp_path / "eyes"), tmp_path / "out", Sizing(64)))
    assert small.views[0].image == (folder / "a.jpg").read_bytes()
    shrunk = np.asarray(Image.open(folder / "b.jpg").resize((64, 64), Image.Resampling.BICUBIC), np.float32)
    assert Image.open(io.BytesIO(large.views[0].image)).size == (64, 64)
    assert np.abs(load(large.views[0].image) - shrunk).mean() < 3
    assert large.targets["label"] == 0 and large.findings == ("normal",)


def test_the_files_do_not_depend_on_the_number_of_workers(tmp_path):
    source = Eyes(5, size=32)
    for workers in (0, 2):
        convert(source, tmp_path / str(workers), Sizing(24), shard=2, workers=workers)
    alone, several = array_records(tmp_path / "0"), array_records(tmp_path / "2")
    for row in range(5):
        equal(alone[row], several[row])


def test_a_split_by_patient_reads_no_image(tmp_path):
    source = Eyes(20, size=16)
    out = convert(source, tmp_path / "out", Sizing(16), shard=20)
    expected = split_by(source, "patient", {"a": 0.7, "b": 0.3})
    found = split_by(array_records(out), "patient", {"a": 0.7, "b": 0.3})
    (out / "data-00000-of-00001.array_record").unlink()
    for part in ("a", "b"):
        np.testing.assert_array_equal(found[part].rows, expected[part].rows)
    with pytest.raises(DataError, match=r"data-00000-of-00001.array_record is missing"):
        found["a"][0]


def test_a_mistake_leaves_nothing(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image at all, but long")
    items = [{"image": np.zeros((8, 8, 3), np.uint8)}, {"image": tmp_path / "bad.png"}]
    with pytest.raises(DataError, match=r"row 2: .*bad.png: not an image"):
        convert(wrap(items), tmp_path / "out", Sizing(8))
    assert [p.name for p in tmp_path.iterdir()] == ["bad.png"]
    with pytest.raises(DataError, match=r"bad.png exists"):
        convert(wrap(items[:1]), tmp_path / "bad.png", Sizing(8))


def test_what_is_not_or_no_longer_such_a_folder(tmp_path):
    with pytest.raises(DataError, match=r"no info.json; expected a folder that launch.py data convert wrote"):
        len(array_records(tmp_path))
    out = convert(Eyes(3, size=16), tmp_path / "out", Sizing(16))
    file = out / "data-00000-of-00001.array_record"
    whole = bytearray(file.read_bytes())
    whole[whole.index(b"synthetic-0-000001") + 3] ^= 0x10
    file.write_bytes(whole)
    with pytest.raises(DataError, match=r"out row 2: .*damaged"):
        array_records(out)[1]
    for keep in (0, 10, len(whole) // 2, len(whole) - 400):
        file.write_bytes(whole[:keep])
        with pytest.raises(
            DataError, match=r"cut short or damaged|hold \d+ records, info.json says 3|its file is damaged"
        ):
            array_records(out)[0]
    with pytest.raises(DataError, match=r"not a record .*\(\d+ bytes are missing"):
        unpack(pack(Record("p", (View(b"abc"),)))[:-1])
    (out / "info.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(DataError, match="format is not 'fundax records 1'"):
        len(array_records(out))


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(launch, "_prepare", lambda: None)
    out = str(tmp_path / "out")
    argv = ["data", "convert", "--source", "synthetic,n=4,size=32", "--out", out, "--size", "24"]
    assert launch.main(argv) == 0 and capsys.readouterr().out.strip() == out
    assert load(array_records(out)[0].views[0].image).shape == (24, 24, 3)
    assert launch.main(argv) == 2 and "exists; choose another folder" in capsys.readouterr().err


def test_shards_keep_the_attributes_of_a_record():
    record = Record("p", (View(b"abc"),), attributes={"age": "50", "sex": "F"})
    assert unpack(pack(record)).attributes == {"age": "50", "sex": "F"}
