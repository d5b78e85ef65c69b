"""Whole words hidden from a text tower: the examples of masked-language pretraining.

A step in the pipeline, so that what is hidden is a function of (seed, position) as everything else there."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.language.tokenizers import Tokenizer
from data_pipelines.records import DataError

WORD_END, CONTINUED = "</w>", "##"


@dataclass(frozen=True, eq=False)
class MaskWords:
    """`text` i32 [L] to text with words hidden, `original` i32 [L] as it was, and `hidden` bool [L], where to guess.

    Words are drawn until `rate` of the text's pieces are hidden, all pieces of a word together, one word at least. Of
    the hidden pieces 80 % become the mask id, 10 % another piece, 10 % stay. Runs of more than `longest` pieces are
    counted piece by piece: Chinese, which writes no spaces, would else go in whole clauses.

    Source: arXiv:1810.04805, section 3.1, and the whole-word rule of github.com/google-research/bert.
    """

    tokenizer: Tokenizer
    rate: float = 0.15
    longest: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise DataError(f"MaskWords: rate is {self.rate}; expected between 0 and 1")

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        ids = example.get("text")
        if not isinstance(ids, np.ndarray):
            raise DataError("MaskWords hides pieces of token ids: put it behind Tokenize")
        hidden = self.chosen(ids, rng)
        fate = rng.random(len(ids))
        seen = np.where(fate < 0.8, self.mask_id, np.where(fate < 0.9, self._others(rng, len(ids)), ids))
        return example | {"text": np.where(hidden, seen, ids).astype(np.int32), "original": ids, "hidden": hidden}

    def chosen(self, ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """bool [L]: the pieces of the words drawn."""
        numbers = self.words(ids)
        count = int(numbers.max()) + 1
        hidden = np.zeros(len(ids), bool)
        if not count:
            return hidden
        wanted = max(1, round(self.rate * int((numbers >= 0).sum())))
        for word in np.argsort(rng.random(count), kind="stable"):
            pieces = numbers == word
            if not hidden.any() or hidden.sum() + pieces.sum() <= wanted:
                hidden |= pieces
            if hidden.sum() >= wanted:
                break
        return hidden

    def words(self, ids: np.ndarray) -> np.ndarray:
        """i32 [L]: the number of the word each piece belongs to, -1 for start, end and padding."""
        tokenizer = self.tokenizer
        plain = ~np.isin(ids, (tokenizer.start, tokenizer.end, tokenizer.pad))
        starts = self._starts(ids) & plain
        numbers = np.where(plain, np.cumsum(starts) - 1, -1)
        long = np.isin(numbers, np.flatnonzero(np.bincount(numbers[plain], minlength=1) > self.longest)) & plain
        return np.where(plain, np.cumsum(starts | long) - 1, -1).astype(np.int32)

    @functools.cached_property
    def mask_id(self) -> int:
        """[MASK]; where a vocabulary of bytes has none, the byte FF, which no text in UTF-8 holds."""
        backend = self.tokenizer.backend
        found = backend.token_to_id("[MASK]")
        found = backend.token_to_id("ÿ") if found is None else found
        if found is None:
            raise DataError("the vocabulary has neither [MASK] nor single bytes: nothing can stand for a hidden word")
        return int(found)

    @functools.cached_property
    def _pieces(self) -> tuple[np.ndarray, bool]:
        """bool [V] of a piece's mark, and whether the mark says that a word ends (bytes) or that it goes on (BERT)."""
        vocabulary = self.tokenizer.backend.get_vocab()
        ends = any(token.endswith(WORD_END) for token in vocabulary)
        marked = np.zeros(self.tokenizer.vocab_size, bool)
        for token, index in vocabulary.items():
            marked[index] = token.endswith(WORD_END) if ends else token.startswith(CONTINUED)
        return marked, ends

    def _starts(self, ids: np.ndarray) -> np.ndarray:
        marked, ends = self._pieces
        if not ends:
            return ~marked[ids]
        before = np.concatenate([[True], marked[ids[:-1]]])  # a word begins behind the end of another
        return before | np.concatenate([[True], ids[:-1] == self.tokenizer.start])

    def _others(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Pieces drawn from the whole vocabulary, as BERT draws them, but never one with a meaning of its own."""
        drawn = rng.integers(0, self.tokenizer.vocab_size, count)
        special = (self.tokenizer.start, self.tokenizer.end, self.tokenizer.pad, self.mask_id)
        return np.where(np.isin(drawn, special), self._ordinary(special), drawn)

    def _ordinary(self, special: tuple[int, ...]) -> int:
        return next(index for index in range(self.tokenizer.vocab_size) if index not in special)
