"""The objective of visits: CLIP and RET-CLIP are special cases, what is missing drops out, one program on every mesh."""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from fundax.encoders.autoencoder import MaskedDecoder
from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.layers import l2_normalize
from fundax.encoders.levels import image_levels, text_levels
from fundax.encoders.vit import ViT
from fundax.interop.ret_clip import to_fundax
from fundax.objectives.clip import CLIP
from fundax.objectives.visit import CrossReconstruction, Visit
from fundax.objectives.visit_levels import BothEyes
from fundax.params import flatten
from fundax.runtime import accumulate, serialize
from fundax.runtime.mesh import make_mesh, shard_batch
from fundax.types import UserError

TOWER = ViT(image_size=16, patch=8, width=16, depth=1, heads=2)
WORDS = TextTransformer(vocab=40, context=6, width=16, depth=1, heads=2)
NAMES = ("CFP", "OCT")
SMALL = Visit(
    TOWER.clone(kinds=2), WORDS, embed=8, modalities=NAMES, context=6, mean=((0.5,) * 3,) * 2, std=((0.2,) * 3,) * 2,
    most=4, images=3, texts=3,
)  # fmt: skip
B, N = 8, 24
RET_CLIP = (("patient", 1.0), ("left", 1.0), ("right", 1.0))
KEY, STEP = jax.random.key(1), jnp.zeros((), jnp.int32)


def packed(seed=0, missing=0.4, texts=3):
    """Eight visits of four views, of which some are missing; rows 0 and 1 are of one patient, rows 2 and 3 have one text."""
    rng = np.random.default_rng(seed)
    row, slot, kind, eye = [], [], [], []
    for b in range(B):
        there = [v for v in range(4) if rng.random() > missing][:3] or [0]
        row += [b] * len(there)
        slot += list(range(len(there)))
        kind += [v // 2 for v in there]
        eye += [v % 2 for v in there]
    more = N - len(row)
    of = lambda values, blank: np.array(values + [blank] * more, np.int32)  # noqa: E731
    ids = rng.integers(1, 40, (B * texts, 6), dtype=np.int32)
    ids[3 * texts : 4 * texts] = ids[2 * texts : 3 * texts]
    at = np.arange(B * texts, dtype=np.int32).reshape(B, texts)
    eyes = np.where(rng.random((B, 2)) < 0.7, at[:, 1:3], -1) if texts == 3 else np.full((B, 2), -1)
    return {
        "images": rng.integers(0, 256, (N, 16, 16, 3), dtype=np.uint8),
        "row": of(row, -1), "slot": of(slot, 0), "view_modality": of(kind, 0), "view_eye": of(eye, 0),
        "view_text_at": of([int(at[b, -1]) if b % 2 else -1 for b in row], -1),
        "texts": ids, "text_at": at[:, 0], "eye_text_at": np.asarray(eyes, np.int32),
        "patient": np.array([5, 5, 1, 2, 3, 4, -1, -1], np.int32),
    }  # fmt: skip


@pytest.fixture(scope="module")
def params():
    made = jax.jit(SMALL.init)(jax.random.key(0), packed())[0]
    made["pool"]["out"] = 0.5 * jax.random.normal(jax.random.key(2), made["pool"]["out"].shape)  # zeros hide mistakes
    return made


@partial(jax.jit, static_argnums=0)
def step(objective, params, batch):
    def loss(params):
        value, (_, metrics) = objective.loss(params, {}, batch, KEY, STEP)
        return value, metrics

    return jax.value_and_grad(loss, has_aux=True)(params)


def test_a_visit_of_one_view_is_clip():
    clip = CLIP(TOWER, WORDS, embed=8)
    one = replace(
        SMALL, image=TOWER, mean=(clip.mean,), std=(clip.std,), images=1, texts=1, most=1, weights=(("visit", 1.0),)
    )
    batch = packed()
    rows, images, text = np.arange(B, dtype=np.int32), batch["images"][:B], batch["texts"][::3]
    whole = jax.jit(one.init)(jax.random.key(0), one_spec(one))[0]
    own = {name: whole[name] for name in ("image", "text", "project")} | {"log_scale": whole["log_scale"]["text"]}
    packed_one = {
        "images": images, "row": rows, "slot": 0 * rows, "view_modality": rows % 2, "view_eye": rows % 2,
        "view_text_at": 0 * rows - 1, "texts": text, "text_at": rows, "eye_text_at": np.full((B, 2), -1, np.int32),
        "patient": 0 * rows - 1,
    }  # fmt: skip
    (loss, _), grads = step(one, whole, packed_one)
    (wanted, _), others = step(clip, own, {"image": images, "text": text})
    assert float(loss) == float(wanted)
    for path, grad in flatten({k: others[k] for k in ("image", "text", "project")}).items():
        np.testing.assert_array_equal(flatten(grads)[path], grad, err_msg=path)


def one_spec(objective):
    return {name: np.zeros(s.shape, s.dtype) for name, s in objective.batch_spec(1).items()}


def as_visits(left, right, text):
    """Both eyes of each patient, in RET-CLIP's order, as packed visits."""
    rows = np.arange(len(left), dtype=np.int32)
    return {
        "images": np.stack([left, right], 1).reshape(-1, *left.shape[1:]),
        "row": rows.repeat(2), "slot": np.tile(np.int32([0, 1]), len(left)), "view_modality": 0 * rows.repeat(2),
        "view_eye": np.tile(np.int32([0, 1]), len(left)), "view_text_at": 0 * rows.repeat(2) - 1,
        "texts": np.asarray(text), "text_at": rows, "eye_text_at": np.full((len(rows), 2), -1, np.int32), "patient": rows,
    }  # fmt: skip


@pytest.mark.vectors("retclip")
def test_ret_clip_is_a_special_case(golden):
    """On its golden vectors: the numbers are those of RetCLIP bit for bit, which other tests compare with its authors'."""
    folder = golden / "retclip"
    config = json.loads((folder / "config.json").read_text())
    facts = {"head_width": config["vision_head_width"], "text_heads": config["text_num_attention_heads"]}
    theirs, weights = to_fundax(load_file(folder / "state_dict.safetensors"), **facts)
    theirs = replace(theirs, text=theirs.text.clone(dropout=0.0))
    arrays = load_file(folder / "forward.safetensors")
    eyes = [arrays[f"in.{eye}"].transpose(0, 2, 3, 1) for eye in ("left", "right")]
    batch = {"left": eyes[0], "right": eyes[1], "text": arrays["in.tokens"]}
    ours = Visit(
        theirs.image, theirs.text, theirs.embed, ("CFP",), levels=BothEyes(), context=theirs.context,
        mean=(theirs.mean,), std=(theirs.std,), most=2, images=2, weights=RET_CLIP,
    )  # fmt: skip
    weights = jax.tree.map(jnp.asarray, weights)
    visits = as_visits(*eyes, batch["text"])
    losses = [jax.jit(lambda p, b, o=o: o.loss(p, {}, b, KEY, STEP)[0]) for o in (ours, theirs)]
    # compiled, a sum may be rounded in another order
    np.testing.assert_allclose(losses[0](weights, visits), losses[1](weights, batch), rtol=2e-7)
    # one operation after the other: to the last bit, from the outputs of the encoders on
    encoded = jax.jit(lambda p, b: ours.encode(p, {}, b, KEY, STEP))(weights, visits)
    left, right = encoded["view_raw"][::2], encoded["view_raw"][1::2]
    levels = image_levels(weights["project"], left, right) | text_levels(weights["project"], encoded["text_hidden"])
    features = {name.replace("raw", "features"): l2_normalize(x) for name, x in levels.items()}
    there = {f"{eye}_present": np.ones(len(left), bool) for eye in ("left", "right")}
    loss, metrics = ours.compare(weights, encoded, visits)
    wanted, expected = theirs.compare(weights, features, {"text": batch["text"]} | there)
    assert float(loss) == float(wanted)
    for level, _ in RET_CLIP:
        assert float(metrics[f"loss_{level}"]) == float(expected[f"loss_{level}"])
    assert jax.tree.structure(jax.eval_shape(ours.init, KEY, one_spec(ours))[0]) == jax.tree.structure(weights)


def test_what_is_missing_drops_its_terms(params):
    batch = packed()
    (loss, metrics), grads = step(SMALL, params, batch)
    assert np.isfinite(loss) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert all(np.abs(g).max() > 0 for path, g in flatten(grads).items() if "pool/eye" not in path)
    (_, same), _ = step(SMALL, params, batch | {"images": np.where(_seen(batch), batch["images"], 7)})
    assert same["loss"] == loss  # what is in an empty slot has no influence
    for name, gone in (("eye", "eye_text_at"), ("view", "view_text_at"), ("visit", "text_at")):
        assert metrics[f"pairs_{name}"] > 0
        (_, without), _ = step(SMALL, params, batch | {gone: batch[gone] * 0 - 1})
        assert without[f"loss_{name}"] == without[f"pairs_{name}"] == 0
        np.testing.assert_allclose(without["loss"], loss - metrics[f"loss_{name}"], rtol=1e-5)
    assert (float(metrics["same_patient"]), float(metrics["same_text"])) == (2, 2)


def _seen(batch):
    return (batch["row"] >= 0)[:, None, None, None]


def test_no_program_is_compiled_again_for_another_pattern(params):
    step(SMALL, params, packed())
    before = step._cache_size()
    losses = [
        float(step(SMALL, params, packed(seed, missing))[0][0]) for seed, missing in ((0, 0.4), (1, 0.0), (2, 0.9))
    ]
    assert step._cache_size() == before and len(set(losses)) == 3


@pytest.mark.parametrize(("shape", "negatives"), [((8, 1), "ring"), ((4, 2), "plain")])
def test_sharded_equals_unsharded(params, shape, negatives):
    (loss, metrics), grads = step(SMALL, params, packed())
    objective = replace(SMALL, negatives=negatives)
    with jax.set_mesh(mesh := make_mesh(shape)):
        (ours, more), others = jax.jit(lambda p, b: step(objective, p, b))(params, shard_batch(packed(), mesh))
    np.testing.assert_allclose(ours, loss, rtol=1e-5)
    for name, value in metrics.items():
        np.testing.assert_allclose(more[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    largest = max(float(np.abs(grad).max()) for grad in jax.tree.leaves(grads))
    for path, grad in flatten(grads).items():
        np.testing.assert_allclose(flatten(others)[path], grad, atol=1e-5 * largest, err_msg=path)


def test_accumulated_gradients_are_those_of_the_batch(params):
    (loss, _), grads = step(SMALL, params, packed())
    run = jax.jit(accumulate.value_and_grad(SMALL, 2))
    (ours, _), others = run(params, {}, packed(), KEY, STEP)
    np.testing.assert_allclose(ours, loss, rtol=1e-6)
    for path, grad in flatten(grads).items():
        np.testing.assert_allclose(flatten(others)[path], grad, atol=1e-5 * max(np.abs(grad).max(), 1e-3), err_msg=path)


def test_features_in_every_form_of_a_batch(params):
    """Visits in places, packed visits and computed views give the same features; a photograph is a visit of one view."""
    batch = packed()
    run = jax.jit(lambda b: SMALL.forward(params, {}, b))
    out = run({name: batch[name] for name in ("images", "row", "slot", "view_modality", "view_eye", "patient")})
    again = run(
        {name: batch[name] for name in ("row", "slot", "view_modality", "view_eye", "patient")}
        | {"view_raw": out["view_raw"]}
    )
    np.testing.assert_array_equal(again["image_features"], out["image_features"])
    places = {"views": np.zeros((B, 4, 16, 16, 3), np.uint8), "view_present": np.zeros((B, 4), bool)}
    places |= {name: np.zeros((B, 4), np.int32) for name in ("view_modality", "view_eye")}
    for n, (b, s) in enumerate(zip(batch["row"], batch["slot"], strict=True)):
        if b >= 0:
            places["views"][b, s], places["view_present"][b, s] = batch["images"][n], True
            for name in ("view_modality", "view_eye"):
                places[name][b, s] = batch[name][n]
    np.testing.assert_allclose(run(places)["image_features"], out["image_features"], atol=1e-6)
    single = run({"image": batch["images"][:3], "modality": batch["view_modality"][:3]})
    np.testing.assert_allclose(single["image_features"], out["view_features"][:3], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(out["eye_features"][0], axis=-1), 1, atol=1e-5)


def test_reconstruction_looks_at_the_other_modality(params):
    branch = CrossReconstruction(MaskedDecoder(patch=8, count=4, width=16, depth=1, heads=2), ratio=0.5)
    objective = replace(SMALL, reconstruction=branch, weights=())
    own = jax.jit(objective.init)(jax.random.key(0), packed())[0]
    batch = packed()
    (loss, metrics), grads = step(objective, own, batch)
    assert float(loss) == float(metrics["loss_reconstruction"]) > 0
    assert np.abs(grads["decoder"]["context"]["kernel"]).max() > 0
    alone = batch | {"view_modality": 0 * batch["view_modality"]}  # no other modality: nothing to look at
    assert not np.abs(step(objective, own, alone)[1]["decoder"]["context"]["kernel"]).any()
    with pytest.raises(UserError, match="leave out --accumulate"):
        objective.encode(own, {}, batch, KEY, STEP)


def test_one_encoder_for_each_modality(params):
    objective = replace(SMALL, image=TOWER, separate=True)
    own = jax.jit(objective.init)(jax.random.key(0), packed())[0]
    assert set(own["image"]) == set(NAMES)
    batch = packed()
    out = jax.jit(objective.forward)(own, {}, batch)
    k = int(batch["view_modality"][5])
    one = own | {"image": own["image"][NAMES[k]]}
    alone = jax.jit(replace(SMALL, image=TOWER).forward)(one, {}, batch)
    np.testing.assert_allclose(out["view_features"][5], alone["view_features"][5], atol=1e-6)


def test_it_is_stored_and_checked():
    assert serialize.from_json(serialize.to_json(SMALL)) == SMALL
    with pytest.raises(UserError, match="weights of left; its terms are eye, images, view, visit"):
        replace(SMALL, weights=(("left", 1.0),))
    with pytest.raises(UserError, match="one per modality"):
        replace(SMALL, image=TOWER.clone(kinds=2))
