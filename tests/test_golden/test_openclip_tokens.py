"""Token ids of open_clip's SimpleTokenizer and of RET-CLIP's BERT tokenizer, with their public tables."""

import json

import numpy as np
import pytest

from data_pipelines import text


def _cases(path):
    stored = json.loads(path.read_text(encoding="utf-8"))
    return stored.get("tokenizer", stored)


def test_clip_byte_pairs(golden, shared_data):
    expected = _cases(golden / "openclip" / "tokenizer_and_transform.json")
    path = shared_data / "tokenizers" / "bpe_simple_vocab_16e6.txt.gz"
    tokenizer = text.clip_bpe(path, expected["context_length"])
    assert tokenizer.vocab_size == expected["vocab_size"]
    assert (tokenizer.start, tokenizer.end, tokenizer.pad) == (expected["sot"], expected["eot"], 0)
    ids = tokenizer([case["text"] for case in expected["cases"]])
    for case, row in zip(expected["cases"], ids, strict=True):
        assert row.tolist() == case["ids"], case["text"]


def test_clip_byte_pairs_from_a_hugging_face_folder(golden, shared_data, tmp_path):
    expected = _cases(golden / "openclip" / "tokenizer_and_transform.json")
    path = shared_data / "tokenizers" / "bpe_simple_vocab_16e6.txt.gz"
    text.clip_bpe(path, expected["context_length"]).save(tmp_path)
    ids = text.load(tmp_path)([case["text"] for case in expected["cases"]])
    np.testing.assert_array_equal(ids, [case["ids"] for case in expected["cases"]])


@pytest.mark.parametrize("folder", [False, True])
def test_chinese_word_pieces(golden, shared_data, tmp_path, folder):
    expected = _cases(golden / "retclip" / "tokenizer.json")
    path = shared_data / "tokenizers" / "chinese_bert_vocab.txt"
    if folder:
        text.wordpiece(path).save(tmp_path)
        path = tmp_path
    contexts = sorted(int(key[3:]) for key in expected["cases"][0] if key.startswith("ids"))
    assert contexts
    for context in contexts:
        tokenizer = text.wordpiece(path, context)
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
    tokenizer = text.wordpiece(shared_data / "tokenizers" / "chinese_bert_vocab.txt", 100)
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)(texts, padding="max_length", truncation=True, max_length=100)
    np.testing.assert_array_equal(theirs["input_ids"], tokenizer(texts))
