"""KeepFIT's numbers: attention, every variant of the loss with its gradients, and the report decoder."""

import json
import re
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from fundax.encoders.report_decoder import beam_search, greedy, sinusoid, token_loss
from fundax.interop.captioner import decoder_from_fundax, decoder_to_fundax
from fundax.interop.flair import attention_state, read_attention
from fundax.objectives.flair import FLAIR
from fundax.objectives.keepfit import KeepFIT
from fundax.objectives.keepfit_reference import V1, V2, Attention, Reference

pytestmark = pytest.mark.vectors("keepfit")

README = 1.4e-6  # of losses and gradients; 1e-5 of attention
VARIANTS = ("ek_ref", "mixed", "keepfit", "keepfit_catKD", "keepfit_fusion")
# the original's parameter, our batch key, the array of the vectors
FEATURES = (
    ("vision_model.a", "image", "img"),
    ("text_model.a", "text", "txt"),
    ("vision_model.b", "elite/image", "kd_img"),
    ("text_model.b", "elite/text", "kd_txt"),
)


@pytest.fixture(scope="module")
def config(golden):
    return json.loads((golden / "keepfit" / "config.json").read_text())


@pytest.fixture(scope="module")
def arrays(golden):
    return dict(np.load(golden / "keepfit" / "losses.npz"))


@dataclass(frozen=True)
class Given:
    """A base whose features are the batch's own arrays: the vectors begin behind the towers."""

    embed: int
    compare = FLAIR.compare
    targets: object = FLAIR.targets
    negatives: str = "global"
    repeats: str = "negatives"  # its texts are features, which have no tokens to compare

    def features(self, params, extra, batch, rng):
        return {"image_features": batch["image"], "text_features": batch["text"]}, extra


def variant(name, config):
    """The objective of one of the original training functions; dropout off as in the vectors."""
    heads = config["losses_heads"]
    guided = replace(V1, attention=Attention(heads["attention"], "heads", 0.0), weight=config["mse_weight"])
    fusion = Attention(heads["atte_TD2KD"], "heads", 0.0)
    fields = {
        "ek_ref": {"reference": replace(guided, weight=1.0), "elite_weight": 0.0},
        "mixed": {"reference": None},
        "keepfit": {"reference": guided},
        "keepfit_catKD": {"reference": guided},
        "keepfit_fusion": {"reference": guided, "fusion": fusion},
    }
    return KeepFIT(Given(config["D"]), **fields[name])


@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_every_gradient(arrays, config, name):
    objective = variant(name, config)
    attention = jax.tree.map(jnp.asarray, read_attention(arrays))
    params = {"log_scale": jnp.asarray(arrays["logit_scale"])} | attention
    features = {theirs: jnp.asarray(arrays[key]) for theirs, _, key in FEATURES}
    given = {"category": jnp.asarray(arrays["cat"], jnp.int32)}
    if name == "keepfit_catKD":
        given["elite/category"] = jnp.asarray(arrays["kd_cat_flair"], jnp.int32)

    def loss(params, features):
        batch = given | {ours: features[theirs] for theirs, ours, _ in FEATURES}
        value, (_, metrics) = objective.loss(params, {}, batch, jax.random.key(0), jnp.zeros((), jnp.int32))
        return value, metrics

    (value, metrics), (by_param, by_feature) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, features)
    close(value, arrays[f"{name}_loss"], 2e-6 * max(1, arrays[f"{name}_loss"]))
    ours = attention_state(by_param) | by_feature | {"logit_scale": by_param["log_scale"]}
    expected = {key.split(":")[1]: x for key, x in arrays.items() if key.startswith(f"{name}_grad:")}
    for key, gradient in expected.items():
        close(ours[key], gradient, 2e-6 * max(1, np.abs(gradient).max()), key)
    for key in set(ours) - set(expected):  # the original implementation has no gradient there
        assert not np.asarray(ours[key]).any(), key
    if name == "keepfit":
        parts = [metrics[f"loss_{part}"] for part in ("public", "elite", "reference")]
        close(np.array(parts), arrays["parts_keepfit"], 2e-6 * np.abs(arrays["parts_keepfit"]).max())


def test_the_second_version_reduced_to_the_first_is_the_published_loss(arrays, config):
    """lam 1, no captions, softmax over heads, weight 100: nothing of V2 is left, whatever else a batch holds."""
    heads = config["losses_heads"]["attention"]
    first = replace(
        V2, similarity="attention", attention=Attention(heads, "heads", 0.0), lam=1.0, loss="mse", weight=100.0
    )
    assert replace(first, attention=V1.attention) == V1
    objective = KeepFIT(Given(config["D"]), first, caption=None)
    batch = {ours: jnp.asarray(arrays[key]) for _, ours, key in FEATURES}
    batch |= {
        "category": jnp.asarray(arrays["cat"], jnp.int32),
        "appearance": jnp.eye(len(arrays["cat"])),
        "elite/appearance": jnp.eye(len(arrays["cat"])),
    }
    params = {"log_scale": jnp.asarray(arrays["logit_scale"])} | jax.tree.map(jnp.asarray, read_attention(arrays))
    value, _ = jax.jit(objective.loss)(params, {}, batch, jax.random.key(0), jnp.zeros((), jnp.int32))
    close(value, arrays["keepfit_loss"], README * max(1, arrays["keepfit_loss"]))


@pytest.mark.parametrize("softmax", ["heads", "keys"])
def test_attention_by_heads_and_by_keys(golden, config, softmax):
    given = dict(np.load(golden / "keepfit" / "attention.npz"))
    img, kd_img, kd_txt = (jnp.asarray(given[key]) for key in ("img", "kd_img", "kd_txt"))
    for heads in config["attention_heads"]:
        state = {
            f"attention.{k.removeprefix(f'h{heads}_')}": x for k, x in given.items() if k.startswith(f"h{heads}_W")
        }
        params = jax.tree.map(jnp.asarray, read_attention(state))["reference"]
        attention = Attention(heads, softmax)
        out = attention(params, img, kd_img, kd_txt)
        if softmax == "heads":
            close(attention.weigh(attention.logits(params, img, kd_img)), given[f"h{heads}_weights"], 1e-5)
            close(out, given[f"h{heads}_out"][0], 1e-5)
        else:
            close(out, given[f"h{heads}_ALT_softmax_over_keys_out"], 1e-5)


def test_a_reference_of_attention_is_the_attention(arrays, config):
    params = jax.tree.map(jnp.asarray, read_attention(arrays))["reference"]
    img, kd_img, kd_txt = (jnp.asarray(arrays[key]) for key in ("img", "kd_img", "kd_txt"))
    heads = config["losses_heads"]["attention"]
    guided = Reference("attention", Attention(heads, "heads", 0.0), lam=1.0, loss="mse")
    text = guided.text(params, img, (kd_img, kd_txt))
    close(text, Attention(heads, "heads")(params, img, kd_img, kd_txt), 1e-6)
    close(guided.distance(jnp.asarray(arrays["txt"]), text), arrays["parts_keepfit"][2], README)


@pytest.fixture(scope="module")
def captioner(golden, config):
    state = load_file(golden / "keepfit" / "ffa_encoder_decoder.safetensors")
    decoder, params = decoder_to_fundax(
        state, heads=config["ffa"]["num_heads"], context=config["ffa"]["max_seq_length"]
    )
    again = decoder_from_fundax(decoder, params)
    assert all(again[key].tobytes() == state[key].tobytes() for key in state) and again.keys() == state.keys()
    return decoder, jax.tree.map(jnp.asarray, params)


@pytest.fixture(scope="module")
def report(golden):
    return dict(np.load(golden / "keepfit" / "ffa_report_io.npz"))


def test_decoder_sizes_come_from_the_shapes(captioner, config):
    facts, decoder = config["ffa"], captioner[0]
    assert (decoder.width, decoder.hidden, decoder.depth) == (facts["d_model"], facts["d_ff"], facts["num_layers"])
    assert decoder.vocab == facts["vocab"] + 1
    assert (decoder.bos, decoder.eos, decoder.pad) == (facts["bos"], facts["eos"], facts["pad"])


def test_report_log_probabilities_loss_and_gradients(captioner, report):
    decoder, params = captioner
    ids = jnp.asarray(report["ids"], jnp.int32)

    def loss(params):
        log_p = decoder.apply({"params": params}, jnp.asarray(report["att_feats"]), ids[:, :-1])
        sums, words = token_loss(log_p, ids[:, 1:], jnp.asarray(report["mask"][:, 1:]))
        return sums.sum() / words.sum(), log_p

    (value, log_p), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    # the original implementation is given pooled features as well, and reads none of them: these are not the mean of the others
    assert np.abs(report["fc_feats"] - report["att_feats"].mean(1)).max() > 1e-3
    close(log_p, report["logprobs"], 2e-6 * max(1, np.abs(report["logprobs"]).max() / 8.5))  # 2 units in the last place
    close(value, report["loss"], 1e-6)
    ours = decoder_from_fundax(decoder, jax.tree.map(np.asarray, grads))
    close(ours["logit.weight"], report["grad_logit_w"], 2e-6)
    close(ours["att_embed.0.weight"], report["grad_att_embed_w"], 2e-6)


def test_every_array_of_the_vectors_is_read(golden):
    """losses: see FEATURES and the gradients, all of a variant's; the rest by name. metrics_amd is of the transfer tests."""
    read = {
        "attention.npz": r"(img|txt|kd_img|kd_txt)|h\d+_(out|weights|W_[qkvo]\.weight|ALT_softmax_over_keys_out)",
        "losses.npz": r"(img|txt|kd_img|kd_txt|cat|kd_cat_flair|logit_scale|parts_keepfit)|(attention|atte_\w+)\.W_.*"
        rf"|({'|'.join(VARIANTS)})_(loss|grad:.*)",
        # fc_feats, a mean of att_feats, is handed to the original's decoder, which does not use it
        "ffa_report_io.npz": r"att_feats|fc_feats|ids|mask|logprobs|loss|beam\d+_seq|greedy_seq|grad_\w+|pe_first\d+",
    }
    for file, pattern in read.items():
        names = np.load(golden / "keepfit" / file).files
        assert names and all(re.fullmatch(pattern, name) for name in names), file


def test_positions(report):
    (name,) = (name for name in report if name.startswith("pe_first"))
    expected = report[name][0]
    close(sinusoid(*expected.shape), expected, 1e-6)


def test_greedy_and_beam_sequences(captioner, report, config):
    decoder, params = captioner
    tokens = jnp.asarray(report["att_feats"])
    ids, _ = jax.jit(lambda p, x: greedy(decoder, p, x))(params, tokens)
    assert np.asarray(ids).tolist() == report["greedy_seq"].tolist()
    ids, _ = jax.jit(lambda p, x: beam_search(decoder, p, x, config["ffa"]["beam"]))(params, tokens)
    assert np.asarray(ids).tolist() == report[f"beam{config['ffa']['beam']}_seq"].tolist()


def close(ours, theirs, bound, name=""):
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=bound, equal_nan=False, err_msg=name)
