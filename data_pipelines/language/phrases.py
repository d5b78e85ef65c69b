"""Match whole phrases in English and Chinese texts: split a text into tokens and find the longest phrase at each token.

The time is linear in the length of the text."""

from __future__ import annotations

import functools
import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from data_pipelines.notices import warn_once

LONGEST = 100_000  # letters of a text that are read; normalisation can make eighteen of one
NUMBER, END = "{number}", "{end}"  # in a phrase: any number; the end of a clause, which is not consumed
SEPARATORS = frozenset(",;:.!?\n。")

_log = logging.getLogger(__name__)

_TOKEN = re.compile(r"[a-z]+|\d+(?:\.\d+)*|\{\w+\}|\S|\n", re.IGNORECASE)
_HYPHEN = re.compile(r"(?<=\w)[-\u2010\u2011](?=\w)")  # between two words; other dashes separate clauses
_DASH = re.compile(r"(?<=\s)[-\u2010-\u2015]+(?=\s)|[\u2013-\u2015]+")
_PREFIX = re.compile(r"\b(sub|pre|intra|peri|epi|para)-(?=retin|macul|hyal|papill|ret\b)", re.IGNORECASE)
_NON = re.compile(r"\bnon(?=proliferative|neovascular|exudative|perfus|clinical)", re.IGNORECASE)
_SKIPPED = frozenset(("a", "an", "the"))
_SIDES = frozenset(("right", "left"))  # "oedema of the right optic disc"
_CAPITALS = frozenset(("dr", "ma", "rd", "ped"))  # abbreviations that are words, titles or names in lower case
_SPELLING = (("haem", "hem"), ("oedem", "edem"), ("isation", "ization"), ("fibre", "fiber"), ("centre", "center"))
_WORDS = {"disk": "disc", "naevus": "nevus", "tumour": "tumor", "grey": "gray", "visualised": "visualized"}


class Token(NamedTuple):
    """A word in its normalised spelling, a number, a Chinese character or a punctuation mark."""

    text: str
    hyphen: bool  # joined to the token before by a hyphen
    close: bool  # directly follows the token before, without a space


class Match(NamedTuple):
    """A phrase in the tokens [start, end) of a text, with its values."""

    start: int
    end: int
    values: tuple[Any, ...]


def tokens(text: str) -> list[Token]:
    """Split a text into tokens. Full-width characters become ASCII, British spelling becomes American, plurals become
    singular, and articles are removed. Only the first LONGEST letters of a text are read; a longer text causes a warning."""
    plain = unicodedata.normalize("NFKC", text[:LONGEST])
    if max(len(text), len(plain)) > LONGEST:
        warn_once(
            _log, "longest text", "findings are read in the first %d letters of a text; one text is longer", LONGEST
        )
        plain = plain[:LONGEST]
    plain = _HYPHEN.sub("\x00", _NON.sub("non-", _PREFIX.sub(r"\1", plain)))
    plain = _DASH.sub(" : ", plain)
    out, end, hyphen = [], 0, False
    for match in _TOKEN.finditer(plain):
        if match[0] == "\x00":
            hyphen = True
            continue
        word = _word(match[0])
        if word not in _SKIPPED:
            out.append(Token(word, hyphen, match.start() == end))
        end, hyphen = match.end(), False
    return out


@functools.lru_cache(maxsize=65_536)
def _word(raw: str) -> str:
    word = raw.lower()
    if not (word.isascii() and word.isalpha()):
        return word
    if word in _CAPITALS and not raw.isupper():
        return f"{word}~"
    for british, american in _SPELLING:
        word = word.replace(british, american)
    word = _WORDS.get(word, word)
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = f"{word[:-3]}y" if word.endswith("ies") else word[:-1]
    return _WORDS.get(word, word)


class Phrases:
    """Phrases to search for, each with one or more values, stored as a trie of tokens."""

    def __init__(self, pairs: Iterable[tuple[str, Any]]) -> None:
        self._root: dict[str, Any] = {}
        for phrase, value in pairs:
            node = self._root
            for token in tokens(phrase):
                node = node.setdefault(token.text, {})
            if node is not self._root and value not in node.setdefault("", ()):
                node[""] += (value,)

    def matches(self, text: Sequence[Token]) -> list[Match]:
        """Find the phrases of a text from left to right without overlaps, the longest at each position.

        A phrase does not begin or end inside a hyphenated word ("non-X", "X-like"), and does not begin after "non".
        """
        out, at = [], 0
        while at < len(text):
            end, values = self._longest(text, at)
            if values:
                out.append(Match(at, end, values))
            at = max(end, at + 1)
        return out

    def _longest(self, text: Sequence[Token], at: int) -> tuple[int, tuple[Any, ...]]:
        if text[at].hyphen or (at and text[at - 1].text == "non"):
            return at, ()
        node, best, values, place = self._root, at, (), at
        while True:
            closed = place == len(text) or text[place].text in SEPARATORS or text[place].text == ")"
            if closed and END in node and "" in node[END]:
                best, values = place, node[END][""]
            if "" in node and not (place < len(text) and text[place].hyphen):
                best, values = place, node[""]
            if place == len(text):
                return best, values
            token = text[place].text
            child = node.get(token)
            if child is None and token[0].isdigit():
                child = node.get(NUMBER)
            if child is None and place > at and token in _SIDES:
                child = node
            if child is None:
                return best, values
            node, place = child, place + 1
