"""Masks: which pixels are the structure, in every way that programs write it; what is unclear is an error."""

import io

import numpy as np
import pytest
from PIL import Image

from data_pipelines.images.decode import ReadOptions, StoredImage, load, read_options
from data_pipelines.images.masks import load_mask, read_field_of_view, read_mask
from data_pipelines.records import DataError

VESSEL = np.zeros((40, 56), np.uint8)
VESSEL[10:20, 10:30] = 1
LEVELS = VESSEL * 128  # a disc with a cup of 16 pixels
LEVELS[12:16, 12:16] = 255
CLASSES = np.select([LEVELS == 128, LEVELS == 255], [1, 2])
BLACK, WHITE, RED, GREEN, GREY = (0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (128, 128, 128)
MAPPED = "0:background,128:disc,255:cup"


def encode(image, kind="PNG", **options):
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, kind, **options)
    return out.getvalue()


def palette(index, *colors, kind="PNG"):
    image = Image.frombytes("P", (56, 40), index.tobytes())
    image.putpalette([level for color in colors for level in color])
    return encode(image, kind)


def colored(index, *colors):
    return np.array(colors, np.uint8)[index]


@pytest.mark.parametrize(
    "mask",
    [
        VESSEL,
        VESSEL > 0,
        VESSEL.astype(np.int64) * 255,
        *(encode(VESSEL * value) for value in (1, 255)),
        encode(VESSEL.astype(np.uint16) * 65535),
        encode(Image.fromarray(VESSEL > 0)),
        encode(Image.fromarray(VESSEL > 0), "TIFF", compression="group4"),
        encode(VESSEL.astype(np.float32), "TIFF"),
        encode(65535 - VESSEL.astype(np.uint16) * 65535, "TIFF", tiffinfo={262: 0}),
        *(palette(VESSEL, BLACK, WHITE, kind=kind) for kind in ("PNG", "GIF")),
        *(palette(1 - VESSEL, WHITE, BLACK, kind=kind) for kind in ("PNG", "GIF", "BMP")),
        palette(VESSEL, BLACK, RED),
        palette(2 * VESSEL, BLACK, RED, GREEN),
        encode(colored(VESSEL, BLACK, WHITE)),
        encode(colored(VESSEL, BLACK, RED)),
        encode(Image.fromarray(VESSEL * 255).convert("LA")),
        encode(VESSEL * 255, "JPEG", quality=75),
        encode(colored(VESSEL, BLACK, WHITE), "JPEG", quality=75),
        Image.fromarray(VESSEL * 255),
    ],
)
def test_the_structure_of_a_mask_of_one_structure_is_what_is_white_or_not_black(mask):
    np.testing.assert_array_equal(load_mask(mask, ("vessel",)), VESSEL)


@pytest.mark.parametrize(
    ("mask", "values"),
    [
        (encode(LEVELS), MAPPED),
        (encode(LEVELS), MAPPED.replace(",", "+")),
        (encode(LEVELS), "0:0,100-200:1,201-255:2"),
        (encode(255 - LEVELS), "255:background,127:disc,0:cup"),  # REFUGE
        (encode(LEVELS.astype(np.uint16) * 257), "0:background,32896:disc,65535:cup"),
        (encode(colored(CLASSES, BLACK, GREY, WHITE)), MAPPED),
        (encode(colored(CLASSES, WHITE, RED, GREEN)), "#ffffff:background,#FF0000:disc,#00ff00:cup"),
        (palette(CLASSES.astype(np.uint8), WHITE, RED, GREEN), "#ffffff:background,#ff0000:disc,#00ff00:cup"),
        (palette(CLASSES.astype(np.uint8), WHITE, RED, GREEN), "0:background,1:disc,2:cup"),
        (palette(2 - CLASSES.astype(np.uint8), WHITE, GREY, BLACK), MAPPED),
        (encode(LEVELS, "JPEG", quality=90), MAPPED),
        (LEVELS, MAPPED),
        (palette(CLASSES.astype(np.uint8), BLACK, RED, GREEN), ""),
        (encode(CLASSES.astype(np.uint8)), ""),
    ],
)
def test_values_are_mapped_to_classes(mask, values):
    got = load_mask(mask, ("disc", "cup"), read_options(values=values))
    np.testing.assert_array_equal(got, CLASSES)


def test_a_mapping_of_one_structure_and_of_none():
    for values in ("0:vessel,255:background", "0:1,255:0", "0:vessel,255:other"):
        got = load_mask(encode(255 - 255 * VESSEL), ("vessel",), read_options(values=values))
        np.testing.assert_array_equal(got, VESSEL)
    np.testing.assert_array_equal(load_mask(encode(LEVELS), (), read_options(values=MAPPED)), CLASSES)


@pytest.mark.parametrize(
    ("mask", "classes", "values", "message"),
    [
        (
            encode(LEVELS),
            ("disc", "cup"),
            "",
            "has the value 128; expected 0 to 2 for background, disc, cup, or a mapping",
        ),
        (encode(VESSEL * 128), ("vessel",), "", "has the value 128; .* values=0:background,128:vessel"),
        (encode(VESSEL * 7), ("vessel",), "", "has the value 7"),
        (-VESSEL.astype(int), ("vessel",), "", "mask has the value -1"),
        (palette(VESSEL, WHITE, RED), ("vessel",), "", "has the colours #ffffff, #ff0000; say which is which: values="),
        (palette(1 - VESSEL, WHITE, BLACK), ("disc", "cup"), "", "has the value 255"),
        (
            palette(2 - CLASSES.astype(np.uint8), GREEN, RED, BLACK),
            ("disc", "cup"),
            "",
            "has the colours #00ff00, #ff0000",
        ),
        (encode(colored(CLASSES, BLACK, RED, GREEN)), ("disc", "cup"), "", "has the colours #000000, #00ff00, #ff0000"),
        (encode(colored(CLASSES, BLACK, RED, GREEN)), (), "", "has the colours"),
        (encode(colored(CLASSES, BLACK, RED, GREEN)), ("disc", "cup"), MAPPED, "has the colours"),
        (encode(LEVELS, "JPEG", quality=90), ("disc", "cup"), "", "is a JPEG, which does not keep class numbers"),
        (encode(VESSEL, "JPEG"), ("vessel",), "", "is a JPEG, which does not keep class numbers"),
        (encode(CLASSES.astype(np.uint8), "JPEG"), ("disc", "cup"), "", "is a JPEG, which does not keep class numbers"),
        (encode(LEVELS), ("disc", "cup"), "0:background,128:disc", "has the value 255, which is not in values=0:"),
        (
            encode(LEVELS),
            ("disc", "cup"),
            "0:background,128:disk",
            "values=...:disk, which is not one of the classes disc",
        ),
        (encode(LEVELS), ("disc", "cup"), "zero:disc", "values=zero:...; expected a number, LOW-HIGH, or a colour"),
        (encode(np.dstack([VESSEL * 255] * 4)), ("vessel",), "", "transparent in places"),
        (encode(VESSEL * np.float32(0.5), "TIFF"), ("vessel",), "", "must hold whole numbers"),
        (np.zeros((2, 2)), ("vessel",), "", r"whole numbers \[H W\], not float64"),
        (encode(VESSEL)[:60], ("vessel",), "", "the image is damaged or cut short"),
        (b"abc", ("vessel",), "", "only 3 bytes"),
        ({"path": None}, ("vessel",), "", "must be a file, bytes, an array or a Pillow image, not dict"),
    ],
)
def test_a_mask_that_does_not_tell_its_classes_is_an_error(mask, classes, values, message):
    with pytest.raises(DataError, match=message):
        load_mask(mask, classes, read_options(values=values))


def test_values_without_classes_are_those_of_the_file(tmp_path):
    numbers = np.array([[0, 1, 2], [3, 4, 255]], np.uint8)
    for mask in (encode(numbers), numbers):
        np.testing.assert_array_equal(load_mask(mask), numbers)
    assert load_mask(numbers).dtype == np.int32
    np.testing.assert_array_equal(load_mask(palette(2 * VESSEL, BLACK, RED, GREEN)), 2 * VESSEL)
    for mask in (palette(1 - VESSEL, WHITE, BLACK), palette(1 - VESSEL, RED, BLACK), encode(VESSEL * 255, "JPEG")):
        np.testing.assert_array_equal(load_mask(mask), VESSEL * 255)
    assert load_mask(palette(0 * VESSEL, WHITE, BLACK)).min() == 255  # all of it is the structure


def test_a_mask_is_turned_as_its_image_is(tmp_path):
    image = np.dstack([VESSEL * 200] * 3)
    for kind in ("PNG", "TIFF", "WEBP"):
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            options = {"exif": exif} | ({"lossless": True} if kind == "WEBP" else {})
            pictures = [encode(pixels, kind, **options) for pixels in (image, image // 200 * 255)]
            for reading in (ReadOptions(), ReadOptions(orientation="stored")):
                marked = load_mask(pictures[1], ("vessel",), reading)
                np.testing.assert_array_equal(load(pictures[0], reading=reading)[..., 0] > 0, marked > 0)
            assert marked.shape == VESSEL.shape


def test_warning_if_only_the_image_is_turned(tmp_path, caplog):
    exif = Image.Exif()
    for orientation, size in ((3, (40, 56)), (6, (56, 40))):
        exif[0x0112] = orientation
        image, mask = tmp_path / "eye.jpg", tmp_path / "mask.png"
        image.write_bytes(encode(np.dstack([VESSEL * 200] * 3), "JPEG", exif=exif))
        mask.write_bytes(encode(VESSEL))
        stored = ReadOptions(orientation="stored")
        got = read_mask(StoredImage(mask, stored), (40, 56), ("vessel",), image=StoredImage(image, stored))
        np.testing.assert_array_equal(got, VESSEL)
        if orientation == 3:
            read_mask(mask, size, ("vessel",), image=image)
            (message,) = [record.getMessage() for record in caplog.records]
            assert (
                f"{image}: is turned by its EXIF orientation 3, and its mask {mask} is not; use orientation=stored"
                in message
            )
        else:
            with pytest.raises(
                DataError, match=r"mask.png is 56 x 40 pixels, its image 40 x 56, turned by its EXIF .* 6"
            ):
                read_mask(mask, size, ("vessel",), image=image)


def test_a_field_of_view_is_white_whatever_the_mask_maps(tmp_path):
    (tmp_path / "fov.png").write_bytes(encode(colored(VESSEL, BLACK, WHITE)))
    fov = StoredImage(tmp_path / "fov.png", read_options(values=MAPPED))
    np.testing.assert_array_equal(read_field_of_view(fov, (40, 56)), VESSEL)
    with pytest.raises(DataError, match=r"fov \S+fov.png is 56 x 40 pixels, its image 40 x 40"):
        read_field_of_view(fov, (40, 40))


def test_the_masks_of_the_issue(shared_data):
    cases = shared_data.parent / "cases"
    assert load_mask(cases / "wb.gif", ("vessel",)).sum() == 200
    for reading in (ReadOptions(), ReadOptions(orientation="stored")):
        image, mask = load(cases / "exif3_image.png", reading=reading), load_mask(cases / "exif3_mask.png", (), reading)
        np.testing.assert_array_equal(mask > 0, (image == (255, 0, 0)).all(-1))
        assert (mask > 0).sum() == 100
