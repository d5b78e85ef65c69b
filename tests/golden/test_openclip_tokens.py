"""Token ids of open_clip's SimpleTokenizer, with its public table."""

import json

import numpy as np
import pytest

from data_pipelines.language import tokenizers

pytestmark = pytest.mark.vectors("openclip")


def _cases(path):
    stored = json.loads(path.read_text(encoding="utf-8"))
    return stored.get("tokenizer", stored)


def test_clip_byte_pairs(golden, shared_data):
    expected = _cases(golden / "openclip" / "tokenizer_and_transform.json")
    path = shared_data / "tokenizers" / "bpe_simple_vocab_16e6.txt.gz"
    tokenizer = tokenizers.clip_bpe(path, expected["context_length"])
    assert tokenizer.vocab_size == expected["vocab_size"]
    assert (tokenizer.start, tokenizer.end, tokenizer.pad) == (expected["sot"], expected["eot"], 0)
    ids = tokenizer([case["text"] for case in expected["cases"]])
    for case, row in zip(expected["cases"], ids, strict=True):
        assert row.tolist() == case["ids"], case["text"]


def test_clip_byte_pairs_from_a_hugging_face_folder(golden, shared_data, tmp_path):
    expected = _cases(golden / "openclip" / "tokenizer_and_transform.json")
    path = shared_data / "tokenizers" / "bpe_simple_vocab_16e6.txt.gz"
    tokenizers.clip_bpe(path, expected["context_length"]).save(tmp_path)
    ids = tokenizers.load(tmp_path)([case["text"] for case in expected["cases"]])
    np.testing.assert_array_equal(ids, [case["ids"] for case in expected["cases"]])
