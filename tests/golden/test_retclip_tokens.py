"""Token ids of RET-CLIP's BERT tokenizer, with the public table of its word pieces."""

import json

import numpy as np
import pytest

from data_pipelines.language import tokenizers

pytestmark = pytest.mark.vectors("retclip")


def _cases(path):
    stored = json.loads(path.read_text(encoding="utf-8"))
    return stored.get("tokenizer", stored)


@pytest.mark.parametrize("folder", [False, True])
def test_chinese_word_pieces(golden, shared_data, tmp_path, folder):
    expected = _cases(golden / "retclip" / "tokenizer.json")
    path = shared_data / "tokenizers" / "chinese_bert_vocab.txt"
    if folder:
        tokenizers.wordpiece(path).save(tmp_path)
        path = tmp_path
    contexts = sorted(int(key[3:]) for key in expected["cases"][0] if key.startswith("ids"))
    assert contexts
    for context in contexts:
        tokenizer = tokenizers.wordpiece(path, context)
        assert tokenizer.vocab_size == expected["vocab_size"]
        assert tokenizer.pad == expected["special"]["[PAD]"]
        assert tokenizer.start == expected["special"]["[CLS]"]
        assert tokenizer.end == expected["special"]["[SEP]"]
        ids = tokenizer([case["text"] for case in expected["cases"]])
        for case, row in zip(expected["cases"], ids, strict=True):
            assert row.tolist() == case[f"ids{context}"], case["text"]


def test_transformers_gives_the_same_ids_from_what_is_saved(golden, shared_data, tmp_path):
    from transformers import AutoTokenizer

    expected = _cases(golden / "retclip" / "tokenizer.json")
    texts = [case["text"] for case in expected["cases"]]
    tokenizer = tokenizers.wordpiece(shared_data / "tokenizers" / "chinese_bert_vocab.txt", 100)
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)(texts, padding="max_length", truncation=True, max_length=100)
    np.testing.assert_array_equal(theirs["input_ids"], tokenizer(texts))
