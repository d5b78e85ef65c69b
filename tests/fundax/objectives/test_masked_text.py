"""Masked words: which are hidden, the loss by hand, the names of Hugging Face, the baseline."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.language import knowledge, tokenizers
from data_pipelines.pipeline import train
from data_pipelines.records import DataError, Record
from data_pipelines.sources.texts import Captions, Corpus, TextFiles, Words, descriptions
from data_pipelines.synthetic.sources import Eyes
from data_pipelines.transforms.steps import Select, Tokenize, stream
from data_pipelines.transforms.word_masks import MaskWords
from fundax.encoders.bert import BERT
from fundax.evals.masked_text import masked_words, unigram_loss
from fundax.interop import bert
from fundax.interop.checkpoint import Checkpoint
from fundax.interop.initial import warm_start
from fundax.interop.read import load
from fundax.interop.weights import write_safetensors
from fundax.objectives.masked_text import MaskedText
from fundax.runtime import serialize
from fundax.runtime.mesh import make_mesh, shard_batch
from fundax.types import UserError


@pytest.mark.vectors("flair")
def test_whole_words_of_byte_pairs_and_word_pieces(golden):
    words = tokenizers.bundled(16)
    mask = MaskWords(words)
    ids = words(["tiny bleeding, drusen"])[0]
    pieces = [words.backend.id_to_token(int(i)) for i in ids]
    numbers = mask.words(ids)
    assert numbers[0] == -1 and (numbers[ids == words.pad] == -1).all()
    texts = {n: "".join(p for p, k in zip(pieces, numbers, strict=True) if k == n) for n in range(numbers.max() + 1)}
    assert [w.removesuffix("</w>") for w in texts.values()] == ["tiny", "bleeding", ",", "drusen"]
    tiny = MaskWords(tokenizers.wordpiece(golden / "flair" / "tiny_vocab.txt", 12))
    ids = tiny.tokenizer(["diabetic retinopathy"])[0]
    starts = [not tiny.tokenizer.backend.id_to_token(int(i)).startswith("##") for i in ids[tiny.words(ids) >= 0]]
    assert tiny.words(ids).max() + 1 == sum(starts)
    assert tiny.tokenizer.backend.id_to_token(tiny.mask_id) == "[MASK]"


def test_a_share_is_hidden_and_the_rest_untouched():
    words = tokenizers.bundled(64)
    mask = MaskWords(words)
    ids = words([knowledge.bundled().sentences()[4] + "; " + knowledge.bundled().sentences()[9]])[0]
    hidden_pieces = fates = 0
    count = np.zeros(3)
    for position in range(400):
        out = mask({"text": ids}, stream(0, position, "MaskWords", 0))
        hidden, seen = out["hidden"], out["text"]
        np.testing.assert_array_equal(seen[~hidden], ids[~hidden])
        numbers = mask.words(ids)
        assert all(hidden[numbers == n].all() for n in np.unique(numbers[hidden]))
        hidden_pieces += hidden.sum()
        fates += hidden.sum()
        masked, same = (seen[hidden] == mask.mask_id).sum(), (seen[hidden] == ids[hidden]).sum()
        count += [masked, same, hidden.sum() - masked - same]
    share = hidden_pieces / (400 * (mask.words(ids) >= 0).sum())
    assert 0.1 < share <= 0.16
    np.testing.assert_allclose(count / fates, [0.8, 0.1, 0.1], atol=0.03)
    again = mask({"text": ids}, stream(0, 7, "MaskWords", 0))
    np.testing.assert_array_equal(again["hidden"], mask({"text": ids}, stream(0, 7, "MaskWords", 0))["hidden"])


def test_edges_of_hiding():
    words = tokenizers.bundled(40)
    mask = MaskWords(words)
    empty = mask({"text": words([""])[0]}, stream(0, 0, "MaskWords", 0))
    assert not empty["hidden"].any()
    chinese = words(["眼底未见糖尿病相关病灶各象限无微动脉瘤及出血"])[0]
    assert mask.words(chinese).max() > 8  # a run of Chinese is more than one word
    with pytest.raises(DataError, match="after Tokenize"):
        mask({"text": "words"}, stream(0, 0, "MaskWords", 0))
    with pytest.raises(DataError, match="rate is 0"):
        MaskWords(words, 0)


def test_texts_come_from_files_captions_and_knowledge(tmp_path):
    (tmp_path / "a.txt").write_text("One paragraph\nof two lines.\n\n\nAnother.\n", encoding="utf-8")
    files = TextFiles(tmp_path)
    assert [files[i].report for i in range(len(files))] == ["One paragraph of two lines.", "Another."]
    assert Captions(Eyes(2, size=16))[1].views == ()
    with pytest.raises(DataError, match="no caption"):
        Captions([Record("p", ())])[0]
    with pytest.raises(DataError, match="UTF-8"):
        len(TextFiles(tmp_path / "none.txt"))
    known = knowledge.bundled()
    learn, test = descriptions(known), descriptions(known, evaluate=True)
    assert not set(learn.texts) & set(test.texts)
    held_out = {line.split(": ", 1)[1] for line in test.texts}
    assert held_out and not any(t in line for t in held_out for line in learn.texts)
    texts = {text for finding in known.findings.values() for text in finding.en}
    assert {line.split(": ", 1)[-1] for line in (*learn.texts, *test.texts)} >= texts


@pytest.fixture(scope="module")
def started():
    tower = BERT(vocab=13, context=8, width=8, depth=1, heads=2, hidden=16, dropout=0.0)
    objective = MaskedText(tower, context=6)
    ids = np.array([[1, 5, 6, 7, 2, 0], [1, 8, 9, 2, 0, 0]], np.int32)
    hidden = np.array([[0, 1, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0]], bool)
    batch = {"text": np.where(hidden, 12, ids).astype(np.int32), "original": ids, "hidden": hidden}
    params, extra = jax.jit(objective.init)(jax.random.key(0), batch)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), params)
    return objective, batch, params, extra


def test_the_loss_by_hand(started):
    objective, batch, params, extra = started
    loss_of = jax.jit(objective.loss)
    loss, (_, metrics) = loss_of(params, extra, batch, jax.random.key(0), jnp.zeros((), jnp.int32))
    tokens = np.asarray(jax.jit(objective.forward)(params, extra, batch)["text_tokens"], np.float64)
    head = jax.tree.map(lambda x: np.asarray(x, np.float64), params["masked"])
    x = tokens @ head["dense"]["kernel"] + head["dense"]["bias"]
    from scipy.special import erf, log_softmax

    x = x * 0.5 * (1 + erf(x / np.sqrt(2)))
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
    x = x * head["norm"]["scale"] + head["norm"]["bias"]
    log_p = log_softmax(x @ np.asarray(params["text"]["word"]["embedding"]).T + head["bias"], axis=-1)
    expected = -np.mean([log_p[0, 1, 5], log_p[0, 3, 7], log_p[1, 2, 9]])
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    valid = batch | {"valid": np.array([True, False])}
    loss, _ = loss_of(params, extra, valid, jax.random.key(0), jnp.zeros((), jnp.int32))
    np.testing.assert_allclose(loss, -np.mean([log_p[0, 1, 5], log_p[0, 3, 7]]), rtol=1e-5)
    few = replace(objective, guesses=2)  # the same numbers out of fewer logits
    np.testing.assert_allclose(
        jax.jit(few.loss)(params, extra, batch, jax.random.key(0), jnp.zeros((), jnp.int32))[0], expected, rtol=1e-5
    )
    np.testing.assert_allclose(
        jax.jit(few.forward)(params, extra, batch)["word_log_p"],
        np.where(batch["hidden"], np.take_along_axis(log_p, batch["original"][..., None], 2)[..., 0], 0),
        atol=1e-5,
    )
    one = jax.jit(replace(objective, guesses=1).forward)(params, extra, batch)
    assert np.isnan(one["word_log_p"]).sum() == 1
    assert metrics["word_right"].shape == () and serialize.from_json(serialize.to_json(objective)) == objective


def test_sharded_equals_unsharded(started):
    objective, batch, params, extra = started
    step = jax.jit(replace(objective, guesses=2).loss)
    rest = (jax.random.key(0), jnp.zeros((), jnp.int32))
    mesh = make_mesh((2, 1))
    with jax.set_mesh(mesh):
        there = step(params, extra, shard_batch(batch, mesh), *rest)[0]
    np.testing.assert_allclose(there, step(params, extra, batch, *rest)[0], rtol=1e-5)


def test_names_of_hugging_face_both_ways(started, tmp_path):
    objective, _, params, _ = started
    state = bert.from_fundax(objective, params)
    layer = [f"{a}.{k}" for a in ("attention.self.query", "attention.self.key", "attention.self.value",
                                  "attention.output.dense", "attention.output.LayerNorm", "intermediate.dense",
                                  "output.dense", "output.LayerNorm") for k in ("weight", "bias")]  # fmt: skip
    assert set(state) == {
        *(f"bert.embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type")),
        *(f"bert.embeddings.LayerNorm.{k}" for k in ("weight", "bias")),
        *(f"bert.encoder.layer.0.{name}" for name in layer),
        *(f"cls.predictions.transform.{a}.{k}" for a in ("dense", "LayerNorm") for k in ("weight", "bias")),
        *("cls.predictions.bias", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"),
    }
    assert bert.detect(state)
    bert.write_folder(Checkpoint(objective, params, {}, tokenizers.bundled(8)), tmp_path / "out")
    again = load(tmp_path / "out")
    assert again.objective.text == objective.text.clone(context=8)
    jax.tree.map(np.testing.assert_array_equal, again.params, jax.tree.map(np.asarray, params))
    with pytest.raises(UserError, match="model_type 'clip'"):
        bert.to_fundax(state, {"model_type": "clip"})


def test_transformers_computes_the_same(started, tmp_path):
    pytest.importorskip("torch", reason="transformers' BERT needs torch")
    objective, _, params, _ = started
    bundle = Checkpoint(objective, params, {}, tokenizers.bundled(8))
    bert.write_folder(bundle, tmp_path / "out")
    assert (bert.difference(tmp_path / "out", bundle) or 0.0) < 1e-5


def test_a_tower_starts_from_a_bert(started, tmp_path):
    objective, _, params, _ = started
    write_safetensors(bert.from_fundax(objective, params), tmp_path / "bert.safetensors")
    fresh = jax.tree.map(jnp.zeros_like, params) | {"image": jnp.ones(2)}
    filled = warm_start(tmp_path / "bert.safetensors", objective, ("text",)).init_from[0](fresh)
    jax.tree.map(np.testing.assert_array_equal, filled["text"], params["text"])
    assert filled["image"] is fresh["image"]
    with pytest.raises(UserError, match="shape"):
        warm_start(tmp_path / "bert.safetensors", MaskedText(objective.text.clone(width=4), 6), ("text",)).init_from[0](
            fresh
        )
    write_safetensors({"a": np.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"the keys are not those of .*BertForMaskedLM.*; it has a"):
        warm_start(tmp_path / "other.safetensors", objective).init_from[0](fresh)


def test_the_eval_and_its_baseline(started):
    objective, batch, params, extra = started
    counts = np.zeros(13, np.int64)
    counts[[5, 7, 9]] = 2, 1, 1
    evaluate = masked_words(lambda: iter([batch]), lambda: counts)
    forward = jax.jit(objective.forward)
    out = evaluate(lambda p, e, b: jax.device_get(forward(p, e, b)), params, extra)
    assert out["words"] == 3 and out["below_unigram"] == pytest.approx(out["unigram"] - out["loss"])
    assert unigram_loss(np.array([5, 5, 7, 9]), counts) == pytest.approx(1.5 * np.log(2), abs=0.05)
    nothing = batch | {"hidden": np.zeros_like(batch["hidden"])}
    with pytest.raises(UserError, match="no masked word"):
        masked_words(lambda: iter([nothing]), lambda: counts)(
            lambda p, e, b: jax.device_get(forward(p, e, b)), params, extra
        )


def test_the_stream_hides_by_position_alone():
    words = tokenizers.bundled(16)
    steps = (Words(), Tokenize(words), MaskWords(words), Select(("text", "original", "hidden")))
    data = train(Corpus(("hard exudates", "soft drusen", "macular hole")), steps, batch=3, seed=3)
    first, later = data(), data()
    next(first)
    expected = next(first)
    later.set_state({"step": 1})
    found = next(later)
    for key in ("text", "original", "hidden"):
        np.testing.assert_array_equal(found[key], expected[key])
    first.close()
    later.close()
