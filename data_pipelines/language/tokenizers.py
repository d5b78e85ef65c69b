"""Tokenizers: CLIP's byte pairs, BERT's word pieces, and a small bundled English and Chinese vocabulary.

Tokenizers run in data workers on clinical text, so they can be pickled, start no threads and accept any character. Their
ids equal those of the original implementations, which published checkpoints depend on.
"""

from __future__ import annotations

import gzip
import html
import json
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordPiece

from data_pipelines.files.json_files import checked, read_json
from data_pipelines.records import DataError

# CLIP uses only the first merges of OpenAI's file: 49,408 ids = 2 * 256 bytes + merges + start and end.
CLIP_MERGES = 49_408 - 2 * 256 - 2

CLIP_WORDS = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
START, END, PAD = "<|startoftext|>", "<|endoftext|>", "<|pad|>"
Merges = list[tuple[str, str]]
_CHINESE = "[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]"  # characters and full-width signs
_LARGEST_MERGES = 2**26  # letters; OpenAI's file has 3 million
_SURROGATE = re.compile("[\ud800-\udfff]")
BERT_MAX_CONTEXT = 512  # default for folders that do not define it
LARGEST_CONTEXT = 2**20
_LETTERS = 200  # letters per token of the context that are read of a text; BERT's longest words have 100


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Converts texts to ids i32 [N L]: start, tokens (truncated to L - 2), end, then padding.

    A special token that is written in a text ("[SEP]", "<|endoftext|>") is treated as ordinary text.
    """

    backend: tokenizers.Tokenizer = field(repr=False)
    clean: Callable[[str], str] = field(repr=False)
    special: Mapping[str, str]  # transformers' names (pad_token, ...) of the tokens that enclose a text
    context: int
    config: Mapping[str, Any]  # the rest of tokenizer_config.json

    def __post_init__(self) -> None:
        if self.context < 2:
            raise DataError(f"context {self.context}: expected at least 2, for the start and the end token")

    @property
    def vocab_size(self) -> int:
        """The number of rows of the embedding table: the highest id + 1."""
        return 1 + max(self.backend.get_vocab().values())

    @property
    def start(self) -> int:
        """The id of the first token of every text."""
        return self._id("cls_token" if "cls_token" in self.special else "bos_token")

    @property
    def end(self) -> int:
        """The id of the last token of every text. It is CLIP's highest id, by which its text encoder locates it."""
        return self._id("sep_token" if "sep_token" in self.special else "eos_token")

    @property
    def pad(self) -> int:
        """The padding id. CLIP pads with 0, regardless of its transformers files, and masks by the end token."""
        return 0 if self._is_clip else self._id("pad_token")

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Token ids i32 [N L] of N texts. Raises DataError for values that are not texts, such as None, NaN and bytes."""
        if isinstance(texts, str):
            raise DataError("a tokenizer takes a list of texts, not one text: write [text]")
        ids = np.full((len(texts), self.context), self.pad, np.int32)  # [N L]
        start, end = self.start, self.end
        for row, text in zip(ids, texts, strict=True):
            # encode_batch would start threads, but a worker is already one of many processes.
            words = self.clean(readable(text)[: _LETTERS * self.context])
            pieces = self.backend.encode(words, add_special_tokens=False).ids[: self.context - 2]
            row[: len(pieces) + 2] = [start, *pieces, end]
        return ids

    def decode(self, ids: np.ndarray) -> list[str]:
        """Convert ids i [N L] to N texts, up to the first end or padding token, without special tokens.

        Capital letters are lost if the tokenizer lower-cases. Spaces are set as in printed text.
        """
        return [self._words(row) for row in np.atleast_2d(np.asarray(ids)).tolist()]

    def _words(self, row: list[int]) -> str:
        row = row[1:] if row[:1] == [self.start] else row
        stops = [at for at, k in enumerate(row) if k in (self.end, self.pad)]
        tokens = [self.backend.id_to_token(k) or "" for k in row[: stops[0] if stops else len(row)]]
        if isinstance(self.backend.model, WordPiece):
            text = " ".join(tokens).replace(" ##", "")
        else:
            letters = "".join(tokens).replace("</w>", "\u0120")  # ByteLevel's sign for a space
            text = decoders.ByteLevel().decode([letters])
        return set_spaces(text)

    def save(self, folder: str | Path) -> None:
        """Write files that load() and transformers.AutoTokenizer can read."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        full = tokenizers.Tokenizer.from_str(self.backend.to_str())
        full.add_special_tokens(sorted(set(self.special.values()), key=lambda token: full.token_to_id(token) or 0))
        first, last = full.id_to_token(self.start), full.id_to_token(self.end)
        full.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}", special_tokens=[(first, self.start), (last, self.end)]
        )
        if self._is_clip:  # transformers' CLIP tokenizer supports only this part of the cleaning
            spaces = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
            full.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
        full.save(str(folder / "tokenizer.json"))
        self.backend.model.save(str(folder))
        config = {**self.special, "model_max_length": self.context, **self.config}
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @property
    def _is_clip(self) -> bool:
        return self.config["tokenizer_class"] == "CLIPTokenizer"

    def _id(self, role: str) -> int:
        token = self.backend.token_to_id(self.special[role])
        if token is None:
            raise DataError(f"the tokenizer has no token {self.special[role]!r} for its {role}")
        return token


def readable(text: Any) -> str:
    """Replace lone surrogates, which cannot be encoded, by U+FFFD. Raises DataError if the value is not a text."""
    if not isinstance(text, str):
        raise DataError(f"a tokenizer takes texts, not {type(text).__name__} ({text!r:.40})")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if _SURROGATE.search(text) else text


def load(folder: str | Path, context: int | None = None) -> Tokenizer:
    """Load a tokenizer from a folder written by save(), or from a Hugging Face folder of CLIP or BERT.

    `context` is the number of tokens per text; None uses the folder's setting. Raises DataError for missing files.
    """
    folder = Path(folder)
    config = _json(folder / "tokenizer_config.json", "a tokenizer's folder (tokenizer_config.json)")
    longest = checked(config.get("model_max_length", BERT_MAX_CONTEXT), float, f"{folder}: model_max_length")
    context = context or (
        int(longest) if 2 <= longest < LARGEST_CONTEXT else BERT_MAX_CONTEXT
    )  # transformers writes 1e30 for "no limit"
    if str(config.get("tokenizer_class", "")).startswith("CLIP"):
        return clip_bpe(folder, context)
    if config.get("pad_token") == PAD:  # only the bundled vocabulary uses this name
        return _plain(*_byte_pair_files(folder), context, folder)
    return wordpiece(folder, context, straight_quotes=bool(config.get("straight_quotes", False)))


def bundled(context: int = 64) -> Tokenizer:
    """The default tokenizer: byte pairs trained on this project's English and Chinese (scripts/train_vocabulary.py).

    All bytes are in the vocabulary, so any text in any language can be tokenized. Padding is 0 and the end token has the
    highest id, as CLIP's text encoder expects. transformers gives the same ids, because tokenizer.json has all rules.
    """
    path = Path(__file__).parent / "data" / "merges.txt"
    merges = _merges(path)
    return _plain(_byte_vocabulary(merges, [PAD]), merges, context, path)


def clip_bpe(path: str | Path, context: int = 77) -> Tokenizer:
    """CLIP's byte-pair tokenizer, with the ids of open_clip's SimpleTokenizer and padding with 0.

    `path` is OpenAI's merges file (bpe_simple_vocab_16e6.txt.gz, or plain text) or a Hugging Face folder (tokenizer.json,
    or vocab.json and merges.txt). Texts are repaired with ftfy, unescaped twice and lower-cased, and white space is
    collapsed. Raises DataError if a file is missing or belongs to another kind of tokenizer.

    Source: Radford et al. 2021 (CLIP); open_clip 2.30.0, the behaviour of tokenizer.py.
    """
    path = Path(path)
    if not path.is_dir():
        merges = _merges(path)
        return _clip(_byte_vocabulary(merges), merges, context, path)
    return _clip(*_byte_pair_files(path), context, path)


def wordpiece(
    path: str | Path, context: int = 100, *, cased: bool | None = None, straight_quotes: bool = True
) -> Tokenizer:
    """BERT's WordPiece tokenizer: [CLS], tokens, [SEP] and [PAD]. Each Chinese character is a separate word.

    Args:
        path: vocab.txt, or a folder with tokenizer.json or vocab.txt.
        context: tokens per text.
        cased: keep capitals and accents; None uses the folder's setting, or lower-cases if there is none.
        straight_quotes: replace curly double quotes by ", as RET-CLIP does.

    Raises DataError if a file is missing or lacks BERT's special tokens.

    Source: Devlin et al. 2019 (BERT); sStonemason/RET-CLIP, the text half of its data set.
    """
    path = Path(path)
    vocabulary, folder_cased = _bert_files(path)
    cased = folder_cased if cased is None else cased
    special = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    missing = [token for token in special.values() if token not in vocabulary]
    if missing:
        raise DataError(f"{path}: no {' '.join(missing)} among {len(vocabulary)} entries; expected BERT's vocabulary")
    backend = tokenizers.Tokenizer(WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=200))
    quotes = [normalizers.Replace(curly, '"') for curly in "“”"] if straight_quotes else []
    bert = normalizers.BertNormalizer(lowercase=not cased, strip_accents=not cased)
    backend.normalizer = normalizers.Sequence([*quotes, bert])
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # transformers' BertTokenizer would drop the rule for quotes; PreTrainedTokenizerFast keeps the rules of the file
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "do_lower_case": not cased,
        "straight_quotes": straight_quotes,
    }
    return Tokenizer(backend, str if cased else str.lower, special, context, config)


def _clip(vocabulary: dict[str, int], merges: Merges, context: int, where: Path) -> Tokenizer:
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    backend = _byte_pairs(vocabulary, merges, where)
    return Tokenizer(backend, clip_text, special, context, {"tokenizer_class": "CLIPTokenizer"})


def _plain(vocabulary: dict[str, int], merges: Merges, context: int, where: Path) -> Tokenizer:
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": PAD}
    backend = _byte_pairs(vocabulary, merges, where)
    backend.normalizer = plain_text()
    return Tokenizer(backend, str, special, context, {"tokenizer_class": "PreTrainedTokenizerFast"})


def _byte_pairs(vocabulary: dict[str, int], merges: Merges, where: Path) -> tokenizers.Tokenizer:
    if START not in vocabulary or END not in vocabulary:
        raise DataError(f"{where}: no {START} or {END} among {len(vocabulary)} tokens; expected CLIP's vocabulary")
    tokens = (token for pair in merges for token in (*pair, "".join(pair)))
    if (missing := next((token for token in tokens if token not in vocabulary), None)) is not None:
        raise DataError(f"{where}: the merges use {missing!r:.60}, which is not among the {len(vocabulary)} tokens")
    model = BPE(vocabulary, merges, end_of_word_suffix="</w>", continuing_subword_prefix="", unk_token=END)
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = byte_words()
    return backend


def byte_words() -> pre_tokenizers.PreTokenizer:
    """CLIP's pre-tokenizer: words, single digits and runs of punctuation, each as a string of printable bytes."""
    words = pre_tokenizers.Split(tokenizers.Regex(CLIP_WORDS), behavior="removed", invert=True)
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def plain_text() -> normalizers.Normalizer:
    """Cleaning for the bundled vocabulary: full-width forms and Roman numerals to ASCII, straight quotes, lower case."""
    quotes = [normalizers.Replace(curly, straight) for curly, straight in zip("“”‘’", "\"\"''", strict=True)]
    return normalizers.Sequence([normalizers.NFKC(), *quotes, normalizers.Lowercase()])


def clip_text(text: str) -> str:
    """CLIP's cleaning: repair, unescape twice, collapse white space, lower-case."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def set_spaces(words: str) -> str:
    """Set the spaces around punctuation as in printed text: "c / d 0 . 6 , oedema" becomes "c/d 0.6, oedema"."""
    words = re.sub(r"(?<=\d) ?\. ?(?=\d)", ".", " ".join(words.split()))
    words = re.sub(r"(?<=\w) ?([/-]) ?(?=\w)", r"\1", words)
    words = re.sub(r" (?=[.,;:!?%)\]])|(?<=[(\[]) ", "", words)
    return re.sub(rf"(?<={_CHINESE}) | (?={_CHINESE})", "", words)


def _byte_vocabulary(merges: Merges, first: Sequence[str] = ()) -> dict[str, int]:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())  # the 256 bytes, printable ones first
    ends = [letter + "</w>" for letter in letters]
    tokens = [*first, *letters, *ends, *(left + right for left, right in merges), START, END]
    return {token: index for index, token in enumerate(tokens)}


def _merges(path: Path) -> Merges:
    opened = gzip.open if path.suffix == ".gz" else open
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected byte-pair merges (.txt or .txt.gz)")
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            lines = file.read(_LARGEST_MERGES).split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a file of byte-pair merges (.txt or .txt.gz): {error}") from error
    pairs = []
    for number, line in enumerate(lines[1 : 1 + CLIP_MERGES], start=2):  # the first line is a version
        match line.split():
            case [left, right]:
                pairs.append((left, right))
            case []:
                continue
            case _:
                raise DataError(f"{path} line {number}: {line[:40]!r}; expected two tokens to merge")
    return pairs


def _byte_pair_files(path: Path) -> tuple[dict[str, int], Merges]:
    if not (path / "tokenizer.json").exists():
        words = _json(path / "vocab.json", "tokenizer.json, or vocab.json and merges.txt,")
        return _vocabulary(words, path / "vocab.json"), _merges(path / "merges.txt")
    model = _model(path / "tokenizer.json")
    if model.get("type") != "BPE" or model.get("end_of_word_suffix") != "</w>":
        kind = model.get("type")
        raise DataError(f"{path / 'tokenizer.json'}: a {kind} model; expected CLIP's BPE with '</w>'")
    merges = checked(model.get("merges"), list[str | list[str]], f"{path / 'tokenizer.json'}: merges")
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
    if wrong := [pair for pair in pairs if len(pair) != 2]:
        raise DataError(f"{path / 'tokenizer.json'}: {wrong[0]!r:.60} are not two tokens to merge")
    return _vocabulary(model.get("vocab"), path / "tokenizer.json"), [(left, right) for left, right in pairs]


def _bert_files(path: Path) -> tuple[dict[str, int], bool]:
    """The vocabulary, and whether the tokenizer is cased."""
    if path.is_dir() and (path / "tokenizer.json").exists():
        file = path / "tokenizer.json"
        stored, model = _json(file, "tokenizer.json"), _model(file)
        if not isinstance(model.get("vocab"), dict) or model.get("type", "WordPiece") != "WordPiece":
            raise DataError(f"{file}: a {model.get('type')} model; expected BERT's WordPiece")
        rules = checked(stored.get("normalizer") or {}, dict[str, Any], f"{file}: normalizer")
        rules = checked(rules.get("normalizers", [rules]), list[dict[str, Any]], f"{file}: normalizers")
        rules = [rule for rule in rules if rule.get("type") == "BertNormalizer"]
        return _vocabulary(model["vocab"], file), bool(rules) and not rules[0].get("lowercase", True)
    cased = False
    if path.is_dir():
        settings = path / "tokenizer_config.json"
        cased = settings.exists() and not _json(settings, "settings").get("do_lower_case", True)
        path = path / "vocab.txt"
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected BERT's vocab.txt, one token per line")
    try:
        with open(path, encoding="utf-8") as file:
            return {line.rstrip("\n"): index for index, line in enumerate(file)}, cased
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected BERT's vocab.txt, one token per line: {error}") from error


def _json(path: Path, what: str) -> dict[str, Any]:
    return read_json(path, dict[str, Any], what)


def _model(path: Path) -> dict[str, Any]:
    """The model of a tokenizer.json: its type, vocabulary and merges."""
    model = checked(_json(path, "tokenizer.json").get("model"), dict[str, Any], f"{path}: model")
    checked(model.get("type", ""), str, f"{path}: type of the model")
    return model


def _vocabulary(words: Any, path: Path) -> dict[str, int]:
    found = checked(words, dict[str, int], f"{path}: vocabulary")
    if not found or min(found.values()) < 0 or max(found.values()) >= 2**31:
        raise DataError(f"{path}: the ids of a vocabulary must be numbers from 0 up")
    return found
