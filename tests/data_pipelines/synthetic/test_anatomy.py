"""The vessel tree: from the disc, around the fovea, as wiggly and as narrow as asked."""

import numpy as np

from data_pipelines.synthetic.anatomy import Tone, vessel_tree
from data_pipelines.synthetic.noise import stream

DISC = (15.4, -1.4)


def tree(
    tortuosity: float = 0.3, ratio: float = 0.7, dilation: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    return vessel_tree(DISC, Tone(tortuosity, ratio, dilation), stream(seed))


def test_trunks_leave_the_disc_and_spare_the_fovea() -> None:
    for segments in tree():
        start = segments[segments[:, 4] >= segments[:, 4].max() * 0.99][:, :2]
        assert (np.hypot(*(start - DISC).T) < 2).all()
        assert np.hypot(segments[:, 2], segments[:, 3]).min() > 1.7
        assert segments.shape[1] == 6 and (segments[:, 4] >= segments[:, 5]).all()


def test_arcades_arch_above_and_below_the_macula() -> None:
    arteries, veins = tree()
    for segments in (arteries, veins):
        trunk = segments[segments[:, 4] > 0.55 * segments[:, 4].max()]
        over = trunk[np.abs(trunk[:, 0]) < 4][:, 1]
        assert over.min() < -8 and over.max() > 8 and np.abs(over).min() > 5


def test_calibres_follow_the_ratio_and_the_dilation() -> None:
    arteries, veins = tree(ratio=0.6)
    assert np.isclose(arteries[:, 4].max() / veins[:, 4].max(), 0.6)
    assert np.isclose(tree(dilation=0.8)[1][:, 4].max() / veins[:, 4].max(), 1.4)


def test_tortuosity_lengthens_the_same_vessels() -> None:
    def length(tortuosity: float) -> float:
        arteries = np.concatenate([tree(tortuosity, seed=k)[0] for k in range(5)])
        trunk = arteries[arteries[:, 4] > 0.22]
        return float(np.hypot(*(trunk[:, 2:4] - trunk[:, :2]).T).sum())

    assert length(0.0) * 1.05 < length(1.0)
