"""Decoding: every format, depth and orientation to upright u8 RGB; every broken file to one clear line."""

import io

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from data_pipelines import images
from data_pipelines.records import DataError


def picture(height=40, width=56):
    """Smooth, so that JPEG keeps it, and different in all four corners."""
    y, x = np.mgrid[:height, :width] / (height - 1)
    return np.stack([255 * y, 255 * x / x.max(), 255 * (1 - y) * x / x.max()], -1).astype(np.uint8)


def encode(image, kind, **options):
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM", "WEBP"])
def test_lossless_formats_come_back_bit_for_bit(kind, tmp_path):
    options = {"lossless": True} if kind == "WEBP" else {}
    (tmp_path / "a").write_bytes(encode(picture(), kind, **options))
    np.testing.assert_array_equal(images.load(tmp_path / "a"), picture())
    np.testing.assert_array_equal(images.load(str(tmp_path / "a")), picture())


def test_jpeg_equals_what_pillow_reads():
    data = encode(picture(), "JPEG", quality=92)
    np.testing.assert_array_equal(images.load(data), np.asarray(Image.open(io.BytesIO(data))))


def test_jpeg_is_decoded_at_a_smaller_scale_but_not_below_what_is_asked():
    data = encode(picture(400, 560), "JPEG", quality=95)
    small, size = images.load_sized(data, at_least=100)
    assert small.shape == (100, 140, 3) and size == (400, 560)
    between = images.load(data, at_least=101)
    assert between.shape == (150, 210, 3)
    exact = np.asarray(Image.fromarray(picture(400, 560)).resize((140, 100), Image.Resampling.BOX), int)
    assert np.abs(small.astype(int) - exact).mean() < 2
    assert images.load(data, at_least=4000).shape == (400, 560, 3)  # never enlarged


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_is_undone(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = picture()  # as the sensor wrote it; the viewer turns it
    data = encode(stored, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    turn = {
        2: "FLIP_LEFT_RIGHT",
        3: "ROTATE_180",
        4: "FLIP_TOP_BOTTOM",
        5: "TRANSPOSE",
        6: "ROTATE_270",
        7: "TRANSVERSE",
    }
    turn |= {8: "ROTATE_90"}
    upright = Image.fromarray(stored)
    if orientation > 1:
        upright = upright.transpose(getattr(Image.Transpose, turn[orientation]))
    got, size = images.load_sized(data)
    assert size == got.shape[:2] == (upright.height, upright.width)
    assert np.abs(got.astype(int) - np.asarray(upright, int)).max() <= (8 if kind == "JPEG" else 0)
    if kind == "JPEG":
        assert images.exif_orientation(data) == orientation


def test_exif_that_is_damaged_or_not_there_is_upright():
    data = encode(picture(), "JPEG")
    assert images.exif_orientation(data) == 1
    assert images.exif_orientation(data[:2] + b"\xff\xe1\x00\x10Exif\0\0MM\0*\0\0\xff\xff" + data[2:]) == 1
    assert images.exif_orientation(b"\xff\xd8") == 1


@pytest.mark.parametrize(("highest", "depth"), [(255, 8), (1000, 10), (4095, 12), (16000, 14), (65535, 16)])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_deep_grey_is_divided_by_the_depth_its_maximum_needs(kind, highest, depth):
    deep = np.linspace(0, highest, 64).astype(np.uint16).reshape(8, 8)
    got = images.load(encode(deep, kind))
    np.testing.assert_array_equal(got, np.repeat((deep >> (depth - 8))[..., None], 3, -1))
    np.testing.assert_array_equal(images.load(deep), got)


def test_float_images_of_zero_to_one():
    np.testing.assert_array_equal(images.load(np.array([[0.0, 0.5, 1.0]]))[0, :, 0], [0, 128, 255])
    assert images.load(encode(np.full((4, 4), 0.5, np.float32), "TIFF")).max() == 128


def test_grey_palette_one_bit_and_alpha_become_rgb():
    grey = picture()[..., 0]
    np.testing.assert_array_equal(images.load(encode(grey, "PNG")), np.repeat(grey[..., None], 3, -1))
    np.testing.assert_array_equal(images.load(encode(grey, "GIF")), np.repeat(grey[..., None], 3, -1))
    jpeg = images.load(encode(grey, "JPEG"))
    assert jpeg.shape == (40, 56, 3) and (jpeg[..., 0] == jpeg[..., 2]).all()
    palette = Image.fromarray(picture()).quantize(256)
    np.testing.assert_array_equal(images.load(encode(palette, "PNG")), np.asarray(palette.convert("RGB")))
    assert set(images.load(encode(Image.fromarray(grey > 100), "PNG")).ravel()) == {0, 255}


def test_alpha_is_laid_over_black():
    alpha = np.full((2, 2, 4), 200, np.uint8)
    alpha[..., 3] = [[0, 255], [128, 51]]
    for got in (images.load(encode(alpha, "PNG")), images.load(alpha)):
        np.testing.assert_array_equal(got[..., 0], [[0, 200], [100, 40]])
    cut = Image.new("P", (2, 1), 1)
    cut.putpalette([9, 9, 9, 90, 90, 90])
    cut.putpixel((0, 0), 0)
    np.testing.assert_array_equal(images.load(encode(cut, "PNG", transparency=0))[0, :, 0], [0, 90])


def test_four_ink_jpeg():
    data = encode(Image.fromarray(picture()).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(images.load(data).astype(int) - picture()).max() < 12


def test_first_frame_of_several():
    frames = [Image.fromarray(np.full((4, 4), v, np.uint8)) for v in (50, 90)]
    out = io.BytesIO()
    frames[0].save(out, "TIFF", save_all=True, append_images=frames[1:])
    assert set(images.load(out.getvalue()).ravel()) == {50}


def test_missing_and_unreadable_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"^\S*gone.png: no such image file$"):
        images.load(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"cannot be opened \(Is a directory\)$"):
        images.load(tmp_path)
    (tmp_path / "tiny.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DataError, match=r"tiny.jpg: not an image, it has only 3 bytes$"):
        images.load(tmp_path / "tiny.jpg")
    (tmp_path / "text.jpg").write_text("<html>404 not found, sorry</html>")
    with pytest.raises(DataError, match=r"text.jpg: not an image of a known format \(JPEG, PNG"):
        images.load(tmp_path / "text.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "PPM"])
@pytest.mark.parametrize("keep", [0.1, 0.6])
def test_truncated_files_are_named(kind, keep, tmp_path):
    rng = np.random.default_rng(0)
    data = encode(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8), kind)
    (tmp_path / "cut.img").write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(DataError, match=r"cut.img: (the image is damaged or cut short \(|not an image of a known)"):
        images.load(tmp_path / "cut.img")
    with pytest.raises(DataError, match="an image of"):
        images.load(data[: int(len(data) * keep)])


def test_decompression_bombs_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    for kind in ("JPEG", "PNG"):
        with pytest.raises(DataError, match="56 x 40 pixels, more than 1000"):
            images.load(encode(picture(), kind))


def test_pillows_own_warning_of_a_bomb_is_an_error_too(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(DataError, match="decompression bomb"):
        images.load(encode(picture(), "PNG"))


def test_text_chunks_do_not_matter():
    info = PngImagePlugin.PngInfo()
    info.add_text("Patient", "名字")
    np.testing.assert_array_equal(images.load(encode(picture(), "PNG", pnginfo=info)), picture())


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3, 5), np.uint8), r"not \[2, 3, 5\]"),
        (np.zeros((0, 3, 3), np.uint8), r"not \[0, 3, 3\]"),
        (np.full((2, 2), np.nan), "finite numbers"),
        (np.full((2, 2), -1), r"0..65535, not -1..-1"),
        (np.full((2, 2), "a"), "finite numbers"),
    ],
)
def test_arrays_that_are_no_images(array, message):
    with pytest.raises(DataError, match=message):
        images.load(array)


def test_masks_keep_their_class_numbers(tmp_path):
    classes = np.array([[0, 1, 2], [3, 4, 255]], np.uint8)
    for data in (encode(classes, "PNG"), classes):
        np.testing.assert_array_equal(images.load_mask(data), classes)
    colored = Image.new("P", (3, 2))
    colored.putdata([0, 1, 2, 2, 1, 0])
    colored.putpalette([0, 0, 0, 250, 0, 0, 0, 250, 0])
    np.testing.assert_array_equal(images.load_mask(encode(colored, "PNG")), [[0, 1, 2], [2, 1, 0]])
    np.testing.assert_array_equal(images.load_mask(encode(Image.fromarray(classes > 1), "PNG")), classes > 1)
    assert images.load_mask(classes).dtype == np.int32
    (tmp_path / "m.png").write_bytes(encode(picture(), "PNG"))
    with pytest.raises(DataError, match=r"m\.png: a mask has one channel of class numbers, this image is RGB"):
        images.load_mask(tmp_path / "m.png")
    with pytest.raises(DataError, match=r"whole numbers \[H W\], not float64"):
        images.load_mask(np.zeros((2, 2)))
    with pytest.raises(DataError, match="only 3 bytes"):
        images.load_mask(b"abc")


def test_real_photographs_equal_pillow(shared_data):
    for path in sorted((shared_data / "hrf" / "images").glob("*.jpg"))[:3]:
        np.testing.assert_array_equal(images.load(path), np.asarray(Image.open(path)))


def test_a_float_image_out_of_range_names_its_file(tmp_path):
    (tmp_path / "wild.tif").write_bytes(encode(np.full((4, 4), -3, np.float32), "TIFF"))
    with pytest.raises(DataError, match=r"wild\.tif: an image must lie in 0\.\.65535, not -3\.\.-3$"):
        images.load(tmp_path / "wild.tif")


def test_no_damage_to_a_file_ends_in_another_error():
    rng = np.random.default_rng(0)
    whole = [encode(picture(), kind) for kind in ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP")]
    outcomes = set()
    for turn in range(600):
        data = bytearray(whole[turn % len(whole)])
        for place in rng.integers(0, min(len(data), 80), 3):
            data[place] = rng.integers(256)
        try:
            outcomes.add(images.load(bytes(data)).dtype.name)
        except DataError:
            outcomes.add("DataError")
    assert outcomes == {"uint8", "DataError"}
