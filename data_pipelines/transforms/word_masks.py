"""Whole-word masking: a step that makes examples for masked-language pretraining."""

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
    """Mask words of `text` i32 [L], and add `original` i32 [L], the unmasked text, and `hidden` bool [L], the targets.

    Words are drawn until a fraction `rate` of the tokens is hidden, at least one word, with all tokens of a word
    together. 80 % of the hidden tokens become the mask token, 10 % a random token, and 10 % stay. In words longer than
    `longest` tokens, each token is drawn separately, because Chinese has no spaces and whole clauses would be hidden.

    Source: arXiv:1810.04805, section 3.1, and whole-word masking of github.com/google-research/bert.
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
            raise DataError("MaskWords masks token ids: put it after Tokenize")
        hidden = self.chosen(ids, rng)
        fate = rng.random(len(ids))
        seen = np.where(fate < 0.8, self.mask_id, np.where(fate < 0.9, self._others(rng, len(ids)), ids))
        return example | {"text": np.where(hidden, seen, ids).astype(np.int32), "original": ids, "hidden": hidden}

    def chosen(self, ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw the words to hide: bool [L], True for their tokens."""
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
        """Index i32 [L] of the word of each token; -1 for start, end and padding."""
        tokenizer = self.tokenizer
        plain = ~np.isin(ids, (tokenizer.start, tokenizer.end, tokenizer.pad))
        starts = self._starts(ids) & plain
        numbers = np.where(plain, np.cumsum(starts) - 1, -1)
        long = np.isin(numbers, np.flatnonzero(np.bincount(numbers[plain], minlength=1) > self.longest)) & plain
        return np.where(plain, np.cumsum(starts | long) - 1, -1).astype(np.int32)

    @functools.cached_property
    def mask_id(self) -> int:
        """The id of [MASK]. A byte-level vocabulary without it uses the byte FF, which UTF-8 never contains."""
        backend = self.tokenizer.backend
        index = backend.token_to_id("[MASK]")
        index = backend.token_to_id("ÿ") if index is None else index
        if index is None:
            raise DataError("the vocabulary has neither [MASK] nor single bytes, so words cannot be masked")
        return int(index)

    @functools.cached_property
    def _pieces(self) -> tuple[np.ndarray, bool]:
        """Mask bool [V] of tokens with a mark, and whether the mark is WORD_END (True) or CONTINUED (False)."""
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
        before = np.concatenate([[True], marked[ids[:-1]]])  # a word begins after the end of another
        return before | np.concatenate([[True], ids[:-1] == self.tokenizer.start])

    def _others(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Random tokens from the whole vocabulary, as in BERT, without special tokens."""
        drawn = rng.integers(0, self.tokenizer.vocab_size, count)
        special = (self.tokenizer.start, self.tokenizer.end, self.tokenizer.pad, self.mask_id)
        return np.where(np.isin(drawn, special), self._ordinary(special), drawn)

    def _ordinary(self, special: tuple[int, ...]) -> int:
        return next(index for index in range(self.tokenizer.vocab_size) if index not in special)
