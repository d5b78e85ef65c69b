"""Scores of texts: each by hand on a few words, 1 or 10 for the same text, 0 where nothing is shared."""

import math

import pytest

from fundax.metrics.text import all_scores, bleu, cider, meteor_like, rouge_l, words

TRUE = ["No macular oedema, drusen seen", "right eye: glaucoma with a large cup", "normal fundus of a healthy eye"]


def test_words():
    assert words("C/D 0.6: cotton-wool spots; 黄斑水肿.") == ["c/d", "0.6", "cotton-wool", "spots", *"黄斑水肿"]


def test_the_same_text_and_another():
    found = all_scores(TRUE, TRUE)
    assert found.pop("cider") == pytest.approx(10)
    assert found.pop("meteor_like") == pytest.approx(1 - 0.5 * (1 / 125 + 1 / 343 + 1 / 216) / 3)  # one chunk each
    assert found == pytest.approx(dict.fromkeys(("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l"), 1))
    assert set(all_scores(["cataract"] * 3, TRUE).values()) == {0.0}
    assert set(all_scores([""] * 3, TRUE).values()) == {0.0}


def test_bleu_by_hand():
    # 2 of 3 words, 1 of 2 pairs; one word too short: exp(1 - 4/3)
    assert bleu(["no macular hole"], ["no macular oedema seen"], 2) == pytest.approx(
        math.sqrt(2 / 3 * 1 / 2) * math.exp(-1 / 3)
    )


def test_rouge_l_by_hand():
    # "a c" is the longest common subsequence of 3 and 4 words: P 2/3, R 1/2
    p, r = 2 / 3, 1 / 2
    assert rouge_l(["a b c"], ["a x c y"]) == pytest.approx(2.44 * p * r / (r + 1.44 * p))


def test_meteor_like_by_hand():
    # four words in two chunks, turned around; P = R = 1
    assert meteor_like(["soft drusen new vessels"], ["new vessels soft drusens"]) == pytest.approx(1 - 0.5 / 8)


def test_cider_by_hand():
    # "a" is in both true texts and weighs 0, the others ln 2; n = 1 and 2 count, n = 3 and 4 are empty
    assert cider(["a b", "a b"], ["a b", "a c"]) == pytest.approx(10 / 4 * (2 + 0) / 2)
    assert cider(["a b b", "q"], ["a b", "c"]) == pytest.approx(
        10 / 4 / 2 * math.exp(-1 / 72) * (2 / math.sqrt(10) + 1 / math.sqrt(2))
    )
