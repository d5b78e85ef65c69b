"""The camera: fields, veils and JPEG, each against numbers worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from data_pipelines.synthetic import camera as cam
from data_pipelines.synthetic.noise import stream
from data_pipelines.synthetic.raster import Frame

FRAME = Frame(64, 1.0, 0.0, 0.0)
PLAIN = cam.Device((1.0, 1.0, 1.0), 0.9, 1.0, 0.0, (0.0, 0.0), 0.0, 0.0, 95)


def test_field_is_a_disc_of_its_radius() -> None:
    assert cam.field(FRAME, PLAIN).sum() == pytest.approx(np.pi * (0.9 * 32) ** 2, rel=0.01)
    oval = cam.field(FRAME, replace(PLAIN, flat=0.5))
    assert oval.sum() == pytest.approx(np.pi * 0.5 * (0.9 * 32) ** 2, rel=0.03)


def test_light_falls_to_the_rim() -> None:
    light = cam.illumination(FRAME, replace(PLAIN, vignette=0.4))
    assert light[32, 32] == pytest.approx(1.0, abs=1e-3) and light[32, 63] == pytest.approx(1 - 0.4, abs=0.03)
    tilted = cam.illumination(FRAME, replace(PLAIN, light=(0.1, 0.0)))
    assert tilted[5, 63] - tilted[5, 0] == pytest.approx(0.2, abs=0.01)


def test_veil_mixes_towards_its_colour() -> None:
    plane = np.full((2, 2), 0.2, np.float32)
    cam.veil([plane], 0.5, (0.6,), np.ones((2, 2), np.float32))
    np.testing.assert_allclose(plane, 0.2 * 0.55 + 0.45 * 0.6, rtol=1e-6)


def test_exposure_is_the_planes_times_the_tint_inside_the_field() -> None:
    planes = [np.full((64, 64), v, np.float32) for v in (0.8, 0.4, 0.2)]
    tinted = replace(PLAIN, tint=(1.0, 0.5, 1.5))
    image = cam.expose(planes, tinted, cam.field(FRAME, PLAIN), 0.0, stream(1))
    np.testing.assert_allclose(image[32, 32], (204 + 4, 51 + 4, 76.5 + 4), atol=3)
    assert image[0, 0].max() < 12


def test_blur_keeps_the_mean_and_jpeg_keeps_the_picture() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    image[12:20, 12:20] = 200
    assert cam.soften(image, 0.0) is image
    soft = cam.soften(image, 2.0)
    assert abs(float(soft.mean()) - float(image.mean())) < 0.5 and soft.max() <= 200 and soft[11, 16, 0] > 0
    coded = cam.jpeg(image, 95)
    assert coded.shape == image.shape and np.abs(coded.astype(int) - image).mean() < 4


@pytest.mark.parametrize("kind", ["CFP", "UWF", "FFA", "OCT"])
def test_devices_vary_within_bounds(kind: str) -> None:
    devices = [cam.device(stream(3, k), kind) for k in range(50)]
    assert len({d.quality for d in devices}) > 5 and all(80 <= d.quality < 96 for d in devices)
    assert all(0.75 <= t <= 1.3 for d in devices for t in d.tint)
    assert all(d.flat == 1.0 for d in devices) == (kind == "CFP")
