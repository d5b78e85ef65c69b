"""Decoding: every format, depth and orientation to upright u8 RGB; every broken file to one clear line."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from data_pipelines.images import decode
from data_pipelines.images.depth import BIT_DEPTHS
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
    np.testing.assert_array_equal(decode.load(tmp_path / "a"), picture())
    np.testing.assert_array_equal(decode.load(str(tmp_path / "a")), picture())


def test_jpeg_equals_what_pillow_reads():
    data = encode(picture(), "JPEG", quality=92)
    np.testing.assert_array_equal(decode.load(data), np.asarray(Image.open(io.BytesIO(data))))


def test_jpeg_is_decoded_at_a_smaller_scale_but_not_below_what_is_asked():
    data = encode(picture(400, 560), "JPEG", quality=95)
    small, size = decode.load_sized(data, at_least=100)
    assert small.shape == (100, 140, 3) and size == (400, 560)
    between = decode.load(data, at_least=101)
    assert between.shape == (150, 210, 3)
    exact = np.asarray(Image.fromarray(picture(400, 560)).resize((140, 100), Image.Resampling.BOX), int)
    assert np.abs(small.astype(int) - exact).mean() < 2
    assert decode.load(data, at_least=4000).shape == (400, 560, 3)  # never enlarged


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
    got, size = decode.load_sized(data)
    assert size == got.shape[:2] == (upright.height, upright.width)
    assert np.abs(got.astype(int) - np.asarray(upright, int)).max() <= (8 if kind == "JPEG" else 0)
    assert decode.exif_orientation(data) == orientation
    as_stored = decode.load(data, reading=decode.ReadOptions(orientation="stored"))
    assert np.abs(as_stored.astype(int) - stored).max() <= (8 if kind == "JPEG" else 0)


def test_exif_of_a_jpeg_is_read_as_pillow_reads_it():
    data, long = encode(picture(), "JPEG"), b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\4\0\0\0\1\0\0\0\6\0\0\0\0"
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf tiff:Orientation="6"/></x:xmpmeta>'
    profile = b"\xff\xe2\xfd\xe8" + bytes(0xFDE6)  # 65,000 bytes
    for before, block in ((b"", long), (b"\xff\xff", long), (profile * 2, long), (b"", xmp)):
        tagged = data[:2] + before + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + data[2:]
        assert decode.exif_orientation(tagged) == 6 and decode.load(tagged).shape == (56, 40, 3)


def test_exif_that_is_damaged_or_not_there_is_upright():
    data = encode(picture(), "JPEG")
    assert decode.exif_orientation(data) == 1
    assert decode.exif_orientation(data[:2] + b"\xff\xe1\x00\x10Exif\0\0MM\0*\0\0\xff\xff" + data[2:]) == 1
    assert decode.exif_orientation(b"\xff\xd8") == 1


@pytest.mark.parametrize(("highest", "depth"), [(255, 8), (1000, 10), (4095, 12), (16000, 14), (65535, 16)])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_deep_grey_is_divided_by_the_depth_of_its_source(kind, highest, depth):
    deep = np.linspace(0, highest, 64).astype(np.uint16).reshape(8, 8)
    for bits in [d for d in BIT_DEPTHS if d >= depth]:  # one scale for dark and bright frames
        for image in (encode(deep, kind), deep, Image.fromarray(deep)):
            got = decode.load(image, reading=decode.ReadOptions(bits))
            np.testing.assert_array_equal(got, np.repeat((deep >> (bits - 8))[..., None], 3, -1))
    if depth > 8:
        with pytest.raises(
            DataError, match=rf"its largest value is {highest}, which is more than the 8 bits of its depth"
        ):
            decode.load(encode(deep, kind), reading=decode.ReadOptions(8))


def test_the_depth_of_a_file_is_what_it_states_and_never_what_its_values_reach():
    deep = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)
    for image in (encode(deep, "PNG"), encode(deep, "TIFF"), deep, encode(deep, "TIFF", tiffinfo={281: 4000})):
        with pytest.raises(DataError, match=r"largest value 4095.* say it with depth=12 or depth=14 or depth=16"):
            decode.load(image)
    np.testing.assert_array_equal(decode.load(encode(deep, "TIFF", tiffinfo={281: 4095}))[..., 0], deep >> 4)
    np.testing.assert_array_equal(decode.load(encode(deep >> 4, "TIFF", tiffinfo={281: 4095}))[..., 0], deep >> 8)
    np.testing.assert_array_equal(decode.load(b"P5 8 8 4095\n" + deep.astype(">u2").tobytes())[..., 0], deep >> 4)
    np.testing.assert_array_equal(decode.load(encode(deep * 16, "PNG"))[..., 0], deep >> 4)
    assert decode.load(np.arange(250).reshape(10, 25)).max() == 249  # whole numbers of an array are not always deep
    negative = encode(65535 - deep * 16, "TIFF", tiffinfo={262: 0})  # WhiteIsZero
    np.testing.assert_array_equal(decode.load(negative)[..., 0], deep >> 4)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colour_of_16_bits_is_not_read_as_black(channels):
    def png(values):
        chunks = [(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0))]
        chunks.append((b"IDAT", zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))))
        parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + b"\0\0\0\0IEND\xaeB`\x82"

    values = np.repeat(np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8, 1), channels, -1)
    if channels % 2 == 0:
        values[..., -1] = 65535
    np.testing.assert_array_equal(decode.load(png(values))[..., 0], values[..., 0] >> 8)
    values[..., : 3 if channels > 2 else 1] >>= 4
    with pytest.raises(DataError, match="colour of 16 bits that is nearly black"):
        decode.load(png(values))
    assert decode.load(png(values), reading=decode.ReadOptions(16)).max() == 15


def test_float_images_of_zero_to_one():
    np.testing.assert_array_equal(decode.load(np.array([[0.0, 0.5, 1.0]]))[0, :, 0], [0, 128, 255])
    assert decode.load(encode(np.full((4, 4), 0.5, np.float32), "TIFF")).max() == 128


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 1.02), (-0.03, 1.05), (0, 255), (-2, 262), (0, 0)])
def test_floats_that_leave_their_range_a_little_are_clipped(low, high):
    values = np.linspace(low, high, 64, dtype=np.float32).reshape(8, 8)
    white = 255 if high > 2 else 1
    expected = np.round(255 * (values.astype(np.float64) / white).clip(0, 1))
    for image in (encode(values, "TIFF"), values):
        np.testing.assert_array_equal(decode.load(image)[..., 0], expected)


@pytest.mark.parametrize(("low", "high"), [(0, 1.3), (0, 40), (0, 300), (-1000, 2000)])
def test_floats_of_another_range_need_an_option(low, high):
    values = np.linspace(low, high, 256, dtype=np.float32).reshape(16, 16)
    with pytest.raises(DataError, match=r"must lie in 0\.\.1 or 0\.\.255, not .*depth=LOW:HIGH"):
        decode.load(encode(values, "TIFF"))
    got = decode.load(encode(values, "TIFF"), reading=decode.read_options(depth=f"{low}:{high}"))
    np.testing.assert_array_equal(got[..., 0].ravel(), np.arange(256))


def test_options_that_cannot_be_read_are_named():
    for words in ({"depth": "11"}, {"depth": "a"}, {"depth": "1:0"}, {"orientation": "up"}, {"max_pixels": "many"}):
        with pytest.raises(DataError, match=f"^{next(iter(words))}={next(iter(words.values()))}: expected"):
            decode.read_options(**words)
    with pytest.raises(DataError, match=r"values=0:cup,disc: 'disc' is not VALUE:CLASS"):
        decode.read_options(values="0:cup,disc")


def test_grey_palette_one_bit_and_alpha_become_rgb():
    grey = picture()[..., 0]
    np.testing.assert_array_equal(decode.load(encode(grey, "PNG")), np.repeat(grey[..., None], 3, -1))
    np.testing.assert_array_equal(decode.load(encode(grey, "GIF")), np.repeat(grey[..., None], 3, -1))
    jpeg = decode.load(encode(grey, "JPEG"))
    assert jpeg.shape == (40, 56, 3) and (jpeg[..., 0] == jpeg[..., 2]).all()
    palette = Image.fromarray(picture()).quantize(256)
    np.testing.assert_array_equal(decode.load(encode(palette, "PNG")), np.asarray(palette.convert("RGB")))
    assert set(decode.load(encode(Image.fromarray(grey > 100), "PNG")).ravel()) == {0, 255}


def test_alpha_is_laid_over_black():
    alpha = np.full((2, 2, 4), 200, np.uint8)
    alpha[..., 3] = [[0, 255], [128, 51]]
    for got in (decode.load(encode(alpha, "PNG")), decode.load(alpha)):
        np.testing.assert_array_equal(got[..., 0], [[0, 200], [100, 40]])
    cut = Image.new("P", (2, 1), 1)
    cut.putpalette([9, 9, 9, 90, 90, 90])
    cut.putpixel((0, 0), 0)
    np.testing.assert_array_equal(decode.load(encode(cut, "PNG", transparency=0))[0, :, 0], [0, 90])


def test_four_ink_jpeg():
    data = encode(Image.fromarray(picture()).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decode.load(data).astype(int) - picture()).max() < 12


def test_first_frame_of_several():
    frames = [Image.fromarray(np.full((4, 4), v, np.uint8)) for v in (50, 90)]
    out = io.BytesIO()
    frames[0].save(out, "TIFF", save_all=True, append_images=frames[1:])
    assert set(decode.load(out.getvalue()).ravel()) == {50}


def test_missing_and_unreadable_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"^\S*gone.png: no such image file$"):
        decode.load(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"cannot be opened \(Is a directory\)$"):
        decode.load(tmp_path)
    (tmp_path / "tiny.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DataError, match=r"tiny.jpg: not an image, it has only 3 bytes$"):
        decode.load(tmp_path / "tiny.jpg")
    (tmp_path / "text.jpg").write_text("<html>404 not found, sorry</html>")
    with pytest.raises(DataError, match=r"text.jpg: not an image of a known format \(JPEG, PNG"):
        decode.load(tmp_path / "text.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "PPM", "GIF", "WEBP"])
@pytest.mark.parametrize("keep", [0.1, 0.6])
def test_truncated_files_are_named(kind, keep, tmp_path):
    rng = np.random.default_rng(0)
    data = encode(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8), kind)
    (tmp_path / "cut.img").write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(DataError, match=r"cut.img: (the image is damaged or cut short \(|not an image of a known)"):
        decode.load(tmp_path / "cut.img")
    with pytest.raises(DataError, match="an image of"):
        decode.load(data[: int(len(data) * keep)])


def test_more_pixels_than_the_budget_are_refused_before_they_are_decoded():
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "BMP", "PPM", "WEBP"):
        with pytest.raises(
            DataError, match="56 x 40 pixels, more than the limit of 1000; allow more with max_pixels=2240"
        ):
            decode.load(encode(picture(), kind), reading=decode.ReadOptions(max_pixels=1000))
        assert decode.load(encode(picture(), kind), reading=decode.read_options(max_pixels="2240")).shape == (40, 56, 3)


def test_an_image_beyond_the_default_budget_is_turned_as_well():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(picture(), "JPEG", exif=exif)
    at = data.rindex(b"\xff\xc0") + 5
    assert decode.exif_orientation(data[:at] + struct.pack(">HH", 12000, 12000) + data[at + 4 :]) == 6


def test_the_budget_of_pillow_is_not_ours(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    np.testing.assert_array_equal(decode.load(encode(picture(), "PNG")), picture())


def test_a_small_file_does_not_become_a_large_image():
    small = encode(picture(), "JPEG")
    at = small.index(b"\xff\xc0") + 5
    for side, at_least in ((9000, None), (9000, 512), (13000, None), (13000, 512)):
        with pytest.raises(DataError, match=rf"damaged or cut short \({side} x {side} pixels in \d+ bytes\)"):
            decode.load(small[:at] + struct.pack(">HH", side, side) + small[at + 4 :], at_least)
    with pytest.raises(DataError, match="13000 x 13000 pixels, more than the limit of 100000000"):
        decode.load(encode(Image.new("1", (13000, 13000)), "PNG"))  # 21 kB that hold every pixel
    head = b"IHDR" + struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)
    with pytest.raises(DataError, match=r"damaged or cut short \(9000 x 9000 pixels in \d+ bytes\)"):
        decode.load(
            encode(picture(), "PNG")[:12] + head + struct.pack(">I", zlib.crc32(head)) + b"\0\0\0\x09IDAT" + bytes(13)
        )


def test_formats_that_are_not_listed_are_never_opened(tmp_path):
    (tmp_path / "eye.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    for data in ((tmp_path / "eye.jpg").read_bytes(), encode(picture(), "ICO"), encode(picture(), "PCX")):
        with pytest.raises(DataError, match="not an image of a known format"):
            decode.load(data)
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", "/dev/zero"):
        with pytest.raises(DataError, match=r"cannot be opened \(a pipe or device, not a file\)$"):
            decode.load(path)
    with pytest.raises(DataError, match="null byte"):
        decode.load("eye\0.jpg")


def test_a_pillow_image_is_read_as_its_file_is(tmp_path):
    exif, deep = Image.Exif(), (picture()[..., 0].astype(np.uint16) * 257)
    exif[0x0112] = 6
    clear = np.dstack([picture(), picture()[..., 0]])
    files = {"a.png": encode(clear, "PNG"), "b.tif": encode(deep, "TIFF"), "c.tif": encode(deep / 65535.0, "TIFF")}
    files |= {"d.jpg": encode(picture(), "JPEG", exif=exif), "e.png": encode(picture(), "PNG", exif=exif)}
    files["f.png"] = encode(Image.fromarray(picture()).quantize(9), "PNG")
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        for opened in (Image.open(tmp_path / name), Image.open(io.BytesIO(data))):
            np.testing.assert_array_equal(decode.load(opened), decode.load(tmp_path / name))
            opened.load()
            np.testing.assert_array_equal(decode.load(opened), decode.load(tmp_path / name))
    (tmp_path / "cut.jpg").write_bytes(files["d.jpg"][:-9])
    with Image.open(tmp_path / "cut.jpg") as opened, pytest.raises(DataError, match=r"cut\.jpg: the image is damaged"):
        decode.load(opened)


def test_further_frames_are_left_out_with_a_warning(caplog):
    frames = [Image.fromarray(np.full((4, 4), v, np.uint8)) for v in (50, 90)]
    for _ in range(2):
        decode.load(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert [r.getMessage().split(": ", 1)[1] for r in caplog.records] == [
        "has several frames or pages; only the first is read"
    ]


@pytest.mark.parametrize("kind", ["JPEG", "JPEG of inks", "PNG", "TIFF"])
def test_damage_inside_a_file_is_not_read_as_an_image(kind, tmp_path):
    """A run of zeros, as a lost block of a disk leaves it; formats without checksums cannot tell."""
    rng, options = np.random.default_rng(0), {"compression": "tiff_adobe_deflate"} if kind == "TIFF" else {}
    noise = Image.fromarray(rng.integers(0, 256, (128, 128, 3)).astype(np.uint8))
    data = encode(noise.convert("CMYK") if "inks" in kind else noise, kind.split()[0], **options)
    whole, half = decode.load(data), len(data) // 2
    (tmp_path / "a.img").write_bytes(data[:half] + bytes(2048) + data[half + 2048 :])
    assert whole.shape == (128, 128, 3)
    with pytest.raises(DataError, match=r"a\.img: the image is damaged or cut short"):
        decode.load(tmp_path / "a.img")


def test_text_chunks_do_not_matter():
    info = PngImagePlugin.PngInfo()
    info.add_text("Patient", "名字")
    np.testing.assert_array_equal(decode.load(encode(picture(), "PNG", pnginfo=info)), picture())


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
        decode.load(array)


def test_real_photographs_equal_pillow(shared_data):
    for path in sorted((shared_data / "hrf" / "images").glob("*.jpg"))[:3]:
        np.testing.assert_array_equal(decode.load(path), np.asarray(Image.open(path)))


def test_a_float_image_out_of_range_names_its_file(tmp_path):
    (tmp_path / "wild.tif").write_bytes(encode(np.full((4, 4), -3, np.float32), "TIFF"))
    with pytest.raises(DataError, match=r"wild\.tif: .* must lie in 0\.\.1 or 0\.\.255, not -3\.\.-3; give"):
        decode.load(tmp_path / "wild.tif")


def test_no_damage_to_a_file_ends_in_another_error():
    rng = np.random.default_rng(0)
    whole = [encode(picture(), kind) for kind in ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP")]
    outcomes = set()
    for turn in range(600):
        data = bytearray(whole[turn % len(whole)])
        for place in rng.integers(0, min(len(data), 80), 3):
            data[place] = rng.integers(256)
        try:
            outcomes.add(decode.load(bytes(data)).dtype.name)
        except DataError:
            outcomes.add("DataError")
    assert outcomes == {"uint8", "DataError"}
