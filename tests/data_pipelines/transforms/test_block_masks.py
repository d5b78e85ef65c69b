"""Invariants of block masks: the budget, the edges of the grid, the order of draws. Golden tests compare the masks themselves."""

import random

import numpy as np
import pytest

from data_pipelines.records import DataError
from data_pipelines.transforms.multi_crop import Ratio, block_mask, masks, random_mask


@pytest.mark.parametrize("budget", [0, 1, 20, 60.5])
def test_blocks_stay_within_the_budget(budget):
    for seed in range(5):
        mask = block_mask(14, 14, budget, random.Random(seed))
        assert mask.sum() <= budget
        assert mask.any() or budget < 16  # the least rectangle has 16 patches: smaller budgets often stay unused


def test_random_masks_have_the_exact_number():
    mask = random_mask(4, 5, 7.9, np.random.default_rng(0))
    assert mask.shape == (4, 5) and mask.sum() == 7


def test_ratio_draws_every_choice_then_chooses():
    draw, same = random.Random(3), random.Random(3)
    value = same.uniform(0.1, 0.5)
    assert Ratio().draw(draw) == same.choice([0.0, value])
    assert Ratio(((0.3, 0.0),)).draw(draw) == 0.3


def test_about_half_of_the_crops_stay_whole():
    found = masks((400, 14, 14), Ratio(), "block", np.random.default_rng(0))
    empty = ~found.any((1, 2))
    assert 0.45 < empty.mean() < 0.6
    assert 0.25 < found[~empty].mean() < 0.35


def test_masks_are_a_function_of_the_generator():
    one, two = (masks((3, 6, 6), Ratio(), "random", np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_mistakes_are_named():
    with pytest.raises(DataError, match=r"mask is \"block\" or \"random\", not 'rows'"):
        masks((1, 4, 4), Ratio(), "rows", np.random.default_rng(0))
    with pytest.raises(DataError, match="mask ratios are pairs"):
        Ratio(((0.9, 0.2),))
