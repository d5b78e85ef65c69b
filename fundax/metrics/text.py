"""Similarity of generated and reference reports: BLEU (by sacrebleu), ROUGE-L, METEOR without synonyms, CIDEr-D.

All functions take a list of generated texts and a list of references, one for each text. Words are lower-cased,
punctuation is ignored, and each Chinese character is a word."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

_WORDS = re.compile(r"[a-z0-9]+(?:[./-][a-z0-9]+)*|[\u4e00-\u9fff]")
_BETA = 1.2  # ROUGE-L's weight of recall in the captioning literature
_Gram = tuple[str, ...]
_SIGMA = 6.0  # words; width of CIDEr-D's penalty for differences in length


def words(text: str) -> list[str]:
    """The tokens of a text: words, numbers, Chinese characters."""
    return _WORDS.findall(text.lower())


def bleu(written: Sequence[str], true: Sequence[str], order: int = 4) -> float:
    """Corpus BLEU of n-grams up to `order`, 0 to 1, without smoothing.

    Source: Papineni et al. 2002, as github.com/mjpost/sacrebleu computes it.
    """
    from sacrebleu.metrics.bleu import BLEU

    score = BLEU(max_ngram_order=order, tokenize="none", smooth_method="none", force=True)
    texts = [[" ".join(words(text)) for text in side] for side in (written, true)]
    return float(score.corpus_score(texts[0], [texts[1]]).score) / 100


def rouge_l(written: Sequence[str], true: Sequence[str]) -> float:
    """Mean ROUGE-L: F-score of the longest common subsequence with beta 1.2, 0 to 1 (Lin 2004, equations 2 to 4)."""
    return float(np.mean([_rouge_l(words(a), words(b)) for a, b in zip(written, true, strict=True)]))


def meteor_like(written: Sequence[str], true: Sequence[str]) -> float:
    """METEOR without stems and synonyms: the mean of 10PR/(R+9P) times 1 - 0.5 (chunks/matches)^3, 0 to 1.

    Words match if they are equal up to a final s. METEOR's stems and synonyms, which need dictionaries, are omitted. Runs
    of common words are matched from the longest to the shortest, and each run is a chunk.

    Source: Banerjee and Lavie 2005, section 2.2.
    """
    return float(np.mean([_meteor(words(a), words(b)) for a, b in zip(written, true, strict=True)]))


def cider(written: Sequence[str], true: Sequence[str]) -> float:
    """CIDEr-D: 10 times the mean over n = 1..4 of the clipped TF-IDF cosine of n-grams, 0 to 10.

    Document frequencies are those of `true`. If it has fewer than two different texts, the score is 0.

    Source: Vedantam et al. 2015, equations 1 to 3 and section 5, as the COCO evaluation computes it.
    """
    pairs = [(words(a), words(b)) for a, b in zip(written, true, strict=True)]
    scores = np.zeros(len(pairs))
    for n in range(1, 5):
        grams = [(_grams(a, n), _grams(b, n)) for a, b in pairs]
        seen = Counter(gram for _, b in grams for gram in b)
        rarity = {gram: math.log(len(pairs) / seen[gram]) for gram in seen}
        scores += [_cosine(_weighted(a, rarity, len(pairs)), _weighted(b, rarity, len(pairs))) for a, b in grams]
    lengths = np.array([len(a) - len(b) for a, b in pairs])
    return float(np.mean(10 * scores / 4 * np.exp(-(lengths**2) / (2 * _SIGMA**2))))


def all_scores(written: Sequence[str], true: Sequence[str]) -> dict[str, float]:
    """bleu1 to bleu4, rouge_l, meteor_like and cider of N generated reports against N reference reports."""
    scores = {f"bleu{n}": bleu(written, true, n) for n in (1, 2, 3, 4)}
    return scores | {f.__name__: f(written, true) for f in (rouge_l, meteor_like, cider)}


def _rouge_l(written: list[str], true: list[str]) -> float:
    row = [0] * (len(true) + 1)
    for word in written:
        before = row.copy()
        for k, other in enumerate(true, start=1):
            row[k] = before[k - 1] + 1 if word == other else max(before[k], row[k - 1])
    if not row[-1]:
        return float(written == true)
    precision, recall = row[-1] / len(written), row[-1] / len(true)
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _meteor(written: list[str], true: list[str]) -> float:
    a, b = ([word.rstrip("s") or word for word in side] for side in (written, true))
    free_a, free_b = np.ones(len(a), bool), np.ones(len(b), bool)
    same = np.array([[x == y for y in b] for x in a], bool).reshape(len(a), len(b))
    matches = chunks = 0
    while same.any():
        length, i, j = _longest_run(same & free_a[:, None] & free_b[None])
        if not length:
            break
        free_a[i : i + length], free_b[j : j + length] = False, False
        matches, chunks = matches + length, chunks + 1
    if not matches:
        return float(a == b)
    precision, recall = matches / len(a), matches / len(b)
    penalty = 0.5 * (chunks / matches) ** 3
    return 10 * precision * recall / (recall + 9 * precision) * (1 - penalty)


def _longest_run(same: np.ndarray) -> tuple[int, int, int]:
    """Length and start (i, j) of the longest diagonal run of True."""
    runs = np.zeros((same.shape[0] + 1, same.shape[1] + 1), int)
    for i in range(same.shape[0]):
        runs[i + 1, 1:] = np.where(same[i], runs[i, :-1] + 1, 0)
    i, j = np.unravel_index(int(runs.argmax()), runs.shape)
    length = int(runs[i, j])
    return length, int(i) - length, int(j) - length


def _grams(tokens: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[k : k + n]) for k in range(len(tokens) - n + 1))


def _weighted(grams: Mapping[_Gram, int], rarity: Mapping[_Gram, float], texts: int) -> dict[_Gram, float]:
    """Counts times inverse document frequency; an unseen n-gram is treated as if it occurred in a single text."""
    return {gram: count * rarity.get(gram, math.log(texts)) for gram, count in grams.items()}


def _cosine(a: dict[_Gram, float], b: dict[_Gram, float]) -> float:
    """Cosine of two vectors of weighted counts, with the counts of `a` clipped to those of `b`."""
    norms = [math.sqrt(sum(v * v for v in side.values())) for side in (a, b)]
    if not all(norms):
        return 0.0
    return sum(min(v, b[gram]) * b[gram] for gram, v in a.items() if gram in b) / (norms[0] * norms[1])
