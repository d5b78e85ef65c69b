"""Train the bundled vocabulary.

    python scripts/train_vocabulary.py

Reads the sentences of this project (data_pipelines/language/data/english.txt and chinese.txt) and reports of synthetic
patients, and writes data_pipelines/language/data/merges.txt. The same text gives the same file. Runs keep a copy of their
tokenizer, so retraining does not affect checkpoints, but it changes the result of `bundled()`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "data_pipelines" / "language" / "data"
SEED_WEIGHT = 20  # the lists contain each term once or twice, but reports repeat a few terms thousands of times


def corpus(patients: int) -> Iterator[str]:
    """Sentences and single characters of the two lists, then the reports of synthetic patients."""
    import re

    for name in ("english.txt", "chinese.txt"):
        text = (FOLDER / name).read_text(encoding="utf-8")
        yield from text.splitlines() * SEED_WEIGHT
        # Make each Chinese character and punctuation mark a token, both at the end of a word and elsewhere.
        signs = sorted(set(re.findall(r"[\u3001-\u9fff]", text)))
        for k, sign in enumerate(signs):
            yield from [sign] * SEED_WEIGHT
            yield from (sign + signs[(k + 37 * step) % len(signs)] for step in range(SEED_WEIGHT))
    if patients:
        from data_pipelines.synthetic.sources import Patients

        for language in ("en", "zh"):
            source = Patients(patients, seed=0, language=language, size=16)  # the images are not used
            for index in range(patients):
                yield source[index].report


def train(texts: Iterator[str], size: int) -> list[tuple[str, str]]:
    """Byte-pair merges for a vocabulary of `size` ids, most frequent first."""
    import json

    import tokenizers
    from tokenizers import pre_tokenizers, trainers
    from tokenizers.models import BPE

    from data_pipelines.language.tokenizers import byte_words, plain_text

    trained = tokenizers.Tokenizer(BPE(end_of_word_suffix="</w>"))
    trained.normalizer = plain_text()
    trained.pre_tokenizer = byte_words()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = size - 2 * 256 - 3  # pad, start, end
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(letters) + merges,
        min_frequency=2,
        end_of_word_suffix="</w>",
        # Name all single tokens in order; otherwise the trainer adds them in random order.
        special_tokens=[letter + "</w>" for letter in letters],
        initial_alphabet=letters,
        max_token_length=16,  # otherwise whole Chinese sentences, which have no spaces, could become tokens
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    pairs = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    assert len(pairs) == merges, f"the text has only {len(pairs)} merges, but {merges} are needed"
    return pairs


def main() -> None:
    """Write merges.txt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4608, help="vocabulary size")
    parser.add_argument("--patients", type=int, default=500, help="number of synthetic reports per language")
    parser.add_argument("--out", type=Path, default=FOLDER / "merges.txt", help="file to write")
    args = parser.parse_args()
    pairs = train(corpus(args.patients), args.size)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs)]
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{args.out}: {len(pairs)} merges, {args.size} ids")


if __name__ == "__main__":
    main()
