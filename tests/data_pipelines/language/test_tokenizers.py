"""Tokenizers: small vocabularies of our own; the published ones are in golden/test_openclip_tokens.py."""

import gzip
import json
import pickle
import re

import numpy as np
import pytest

from data_pipelines.language import tokenizers
from data_pipelines.records import DataError

MERGES = "#version: 0.2\nd i\ndi s\ndis c</w>\n"
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "disc", "##s", "eye", "Eye", '"', "眼", "e", "é", "a"]
ODD = ["", "  disc\tDISCS ", "眼底 “ok” ＡＭＤ", "[SEP] <|endoftext|> \x00 \ufffd", "😀☃ 甴㐀𠀀", "x" * 300, "Café"]


@pytest.fixture
def merges(tmp_path):
    path = tmp_path / "merges.txt.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write(MERGES)
    return path


@pytest.fixture
def vocab(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(VOCAB) + "\n", encoding="utf-8")
    return path


def test_clip_ids_by_hand(merges):
    tokenizer = tokenizers.clip_bpe(merges, context=8)
    # 512 single bytes, three merges, start, end. "disc" is the third merge; "s" closes a word; "!" is byte 0.
    assert tokenizer.vocab_size == 517
    s_end = 256 + ord("s") - ord("!")
    di, dis, disc, start, end = 512, 513, 514, 515, 516
    np.testing.assert_array_equal(
        tokenizer(["Disc", "dis", "!!"]),
        [
            [start, disc, end, 0, 0, 0, 0, 0],
            [start, di, s_end, end, 0, 0, 0, 0],
            [start, 0, 256, end, 0, 0, 0, 0],
        ],
    )
    assert dis not in tokenizer(["dis"])  # "dis" alone ends a word, the merge does not


def test_clip_cleans_html_spaces_and_width(merges):
    tokenizer = tokenizers.clip_bpe(merges, context=16)
    messy = tokenizer(["  DISC &amp;amp; \n\t ｄｉｓｃ  "])
    np.testing.assert_array_equal(messy, tokenizer(["disc & disc"]))


def test_too_long_is_cut_and_closed(merges, vocab):
    for tokenizer in (tokenizers.clip_bpe(merges, 5), tokenizers.wordpiece(vocab, 5), tokenizers.bundled(5)):
        row = tokenizer(["disc " * 50])[0]
        assert row.shape == (5,)
        assert row[0] == tokenizer.start
        assert row[-1] == tokenizer.end
        assert not (row == tokenizer.pad).any()


def test_wordpiece_ids_by_hand(vocab):
    tokenizer = tokenizers.wordpiece(vocab, context=8)
    np.testing.assert_array_equal(
        tokenizer(["Discs EYE", "眼é", "“eye”", "q", ""]),
        [
            [2, 5, 6, 7, 3, 0, 0, 0],
            [2, 10, 11, 3, 0, 0, 0, 0],  # the accent goes, Chinese stands alone
            [2, 9, 7, 9, 3, 0, 0, 0],
            [2, 1, 3, 0, 0, 0, 0, 0],
            [2, 3, 0, 0, 0, 0, 0, 0],
        ],
    )


def test_wordpiece_word_length_limit(vocab):
    tokenizer = tokenizers.wordpiece(vocab, context=8)
    vocab.write_text(vocab.read_text(encoding="utf-8") + "##a\n", encoding="utf-8")
    tokenizer = tokenizers.wordpiece(vocab, context=300)
    assert (tokenizer(["a" * 200])[0] > 0).sum() == 202
    assert tokenizer(["a" * 201])[0, :3].tolist() == [2, 1, 3]


def test_cased_is_an_argument_or_what_the_folder_says(vocab):
    assert tokenizers.wordpiece(vocab, 5, cased=True)(["Eye é"])[0].tolist() == [2, 8, 12, 3, 0]
    assert tokenizers.wordpiece(vocab, 5)(["Eye é"])[0].tolist() == [2, 7, 11, 3, 0]
    (vocab.parent / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert tokenizers.wordpiece(vocab.parent, 5)(["Eye é"])[0].tolist() == [2, 8, 12, 3, 0]
    assert tokenizers.wordpiece(vocab.parent, 5, cased=False)(["Eye é"])[0].tolist() == [2, 7, 11, 3, 0]


def test_curly_quotes_stay_where_asked(vocab):
    assert tokenizers.wordpiece(vocab, 5, straight_quotes=False)(["“eye”"])[0].tolist() == [2, 1, 7, 1, 3]


def test_bundled_pads_with_0_and_ends_with_the_highest_id():
    tokenizer = tokenizers.bundled()
    ids = tokenizer(ODD)
    assert ids.shape == (len(ODD), 64)
    assert ids.dtype == np.int32
    assert tokenizer.context == 64
    assert tokenizer.pad == 0
    assert tokenizer.end == tokenizer.vocab_size - 1
    np.testing.assert_array_equal((ids == tokenizer.end).sum(axis=1), 1)
    ends = ids.argmax(axis=1)  # what CLIP's text tower pools at
    for row, end in zip(ids, ends, strict=True):
        assert row[0] == tokenizer.start
        assert (row[1:end] > 0).all()
        assert (row[end + 1 :] == 0).all()


def test_bundled_knows_our_words():
    tokenizer = tokenizers.bundled()

    def count(words):
        return int((tokenizer([words])[0] > 0).sum()) - 2

    english = "retinopathy glaucoma macular haemorrhages exudates drusen normal left right"
    for word in [*english.split(" "), "视网膜", "黄斑裂孔", "左眼", "右眼", "青光眼"]:
        assert count(word) == 1, word
    assert count("双眼糖尿病视网膜病变，左眼黄斑水肿。") <= 10
    for sign in map(chr, range(33, 127)):
        assert count(sign) == 1, sign
    folder = tokenizers.Path(tokenizers.__file__).parent / "data"
    characters = set(re.findall(r"[\u4e00-\u9fff]", (folder / "chinese.txt").read_text(encoding="utf-8")))
    assert len(characters) > 500
    assert all(count(character) == 1 for character in characters)


def test_bundled_tells_texts_apart_and_forms_together():
    tokenizer = tokenizers.bundled()
    assert len(np.unique(tokenizer(["no drusen", "drusen", "左眼", "右眼", "甴", "㐀"]), axis=0)) == 6
    np.testing.assert_array_equal(tokenizer(["“ＡＭＤ”，Ⅳ"]), tokenizer(['"amd",IV']))


@pytest.mark.parametrize("kind", ["clip", "wordpiece", "cased", "bundled"])
def test_saved_loaded_and_pickled_give_the_same_ids(kind, merges, vocab, tmp_path):
    tokenizer = {
        "clip": lambda: tokenizers.clip_bpe(merges, 20),
        "wordpiece": lambda: tokenizers.wordpiece(vocab, 20),
        "cased": lambda: tokenizers.wordpiece(vocab, 20, cased=True, straight_quotes=False),
        "bundled": lambda: tokenizers.bundled(20),
    }[kind]()
    tokenizer.save(tmp_path / "saved")
    for other in (tokenizers.load(tmp_path / "saved"), pickle.loads(pickle.dumps(tokenizer))):
        np.testing.assert_array_equal(other(ODD), tokenizer(ODD))
        assert (other.context, other.vocab_size, other.pad) == (20, tokenizer.vocab_size, tokenizer.pad)
    assert tokenizers.load(tmp_path / "saved", context=9)(ODD).shape == (len(ODD), 9)


@pytest.mark.parametrize("kind", ["clip", "wordpiece", "bundled"])
def test_transformers_reads_what_is_saved(kind, merges, vocab, tmp_path):
    from transformers import AutoTokenizer

    makers = {
        "clip": lambda: tokenizers.clip_bpe(merges, 20),
        "wordpiece": lambda: tokenizers.wordpiece(vocab, 20),
        "bundled": lambda: tokenizers.bundled(20),
    }
    tokenizer = makers[kind]()
    tokenizer.save(tmp_path / "saved")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    texts = ["Disc  DISCS eye", "normal fundus, C/D 0.4", "眼底 é", ""]
    if kind != "clip":  # transformers' CLIP tokenizer does not repair text, the others have all rules in the file
        texts += ["“eye” ＡＭＤ，", "x" * 300]
    ids = theirs(texts, padding="max_length", truncation=True, max_length=20, return_tensors="np")["input_ids"]
    ours = tokenizer(texts)
    if kind == "clip":
        ids = np.where(np.cumsum(ids == tokenizer.end, axis=1) - (ids == tokenizer.end) > 0, 0, ids)  # its padding
    np.testing.assert_array_equal(ids, ours)
    assert theirs.model_max_length == 20
    assert len(theirs) == tokenizer.vocab_size


def test_folder_of_vocab_and_merges(merges, tmp_path):
    tokenizer = tokenizers.clip_bpe(merges, 12)
    tokenizer.save(tmp_path / "saved")
    (tmp_path / "saved" / "tokenizer.json").unlink()
    np.testing.assert_array_equal(tokenizers.clip_bpe(tmp_path / "saved", 12)(ODD), tokenizer(ODD))


def test_missing_or_foreign_files_are_named(merges, vocab, tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.txt\.gz: no such file; expected byte-pair merges"):
        tokenizers.clip_bpe(tmp_path / "nowhere.txt.gz")
    with pytest.raises(DataError, match=r"nowhere\.txt: no such file; expected BERT's vocab\.txt"):
        tokenizers.wordpiece(tmp_path / "nowhere.txt")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"tokenizer_config\.json: no such file; expected a tokenizer's folder"):
        tokenizers.load(empty)
    with pytest.raises(
        DataError, match=r"vocab\.json: no such file; expected tokenizer\.json, or vocab\.json and merges\.txt"
    ):
        tokenizers.clip_bpe(empty)
    (empty / "vocab.txt").write_text("<s>\nword\n")
    with pytest.raises(DataError, match=r"no \[PAD\] \[UNK\] \[CLS\] \[SEP\] \[MASK\] among 2 entries"):
        tokenizers.wordpiece(empty)
    tokenizers.wordpiece(vocab, 8).save(tmp_path / "bert")
    with pytest.raises(DataError, match="a WordPiece model; expected CLIP's BPE"):
        tokenizers.clip_bpe(tmp_path / "bert")
    tokenizers.clip_bpe(merges, 8).save(tmp_path / "clip")
    with pytest.raises(DataError, match="a BPE model; expected BERT's WordPiece"):
        tokenizers.wordpiece(tmp_path / "clip")
    (tmp_path / "bad.txt").write_text("#version\na b\nthree words here\n")
    with pytest.raises(DataError, match=r"bad\.txt line 3: 'three words here'; expected two tokens"):
        tokenizers.clip_bpe(tmp_path / "bad.txt")


def test_wrong_calls_are_named():
    with pytest.raises(DataError, match="takes a list of texts"):
        tokenizers.bundled()("one text")
    with pytest.raises(DataError, match="context 1: expected at least 2"):
        tokenizers.bundled(context=1)


def test_folder_from_elsewhere_without_a_length_limit(vocab):
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": 1e30, "do_lower_case": True}
    (vocab.parent / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = tokenizers.load(vocab.parent)
    assert tokenizer.context == 512
    assert tokenizer(["Eye “"])[0, :4].tolist() == [2, 7, 1, 3]


def test_ids_back_to_text(merges, vocab):
    sentence = "OD: cotton-wool spots, C/D 0.6 (deep); no drusen."
    for tokenizer in (tokenizers.bundled(64), tokenizers.clip_bpe(merges, 96)):
        assert tokenizer.decode(tokenizer([sentence, "a"])) == [sentence.lower(), "a"]
    zh = "右眼（OD）：黄斑水肿，杯盘比0.6。"
    assert tokenizers.bundled(64).decode(tokenizers.bundled(64)([zh])) == ["右眼(od):黄斑水肿,杯盘比0.6。"]
    pieces = tokenizers.wordpiece(vocab, 8)
    ids = pieces(["Discs eye"])
    assert pieces.decode(ids) == ["discs eye"]
    np.testing.assert_array_equal(ids[0, :2], [2, 5])
    # as a decoder writes them: without the start, and something behind the end
    assert pieces.decode(np.array([[5, 7, 3, 5, 5]])) == ["disc eye"]


@pytest.mark.parametrize("text", [None, float("nan"), b"normal", ["a"], 3])
def test_only_texts_are_tokenised(text):
    with pytest.raises(DataError, match=f"a tokenizer takes texts, not {type(text).__name__}"):
        tokenizers.bundled(8)([text])


def test_lone_surrogates_are_an_unknown_character():
    ids = tokenizers.bundled(16)(["a\ud800b", "a\ufffdb", "\ud83d\ude00", "\U0001f600"])
    assert ids[0].tolist() == ids[1].tolist() and ids[2].tolist() == ids[3].tolist()


def test_merges_of_another_vocabulary_are_refused(tmp_path):
    tokenizers.bundled().save(tmp_path)
    path = tmp_path / "tokenizer.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored["model"]["merges"][5] = ["[/x]", "a"]
    path.write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(DataError, match=r"the merges use '\[/x\]', which is not among"):
        tokenizers.load(tmp_path)
