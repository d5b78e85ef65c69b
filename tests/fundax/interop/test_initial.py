"""Starting from a checkpoint: the layout is found out, positions fit, and what would compute something else is refused."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fundax.encoders import layers
from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.vit import ViT
from fundax.interop import huggingface, keymap, open_clip
from fundax.interop.checkpoint import Checkpoint
from fundax.interop.initial import sized_like, warm_start
from fundax.interop.weights import write_safetensors
from fundax.objectives.clip import CLIP, clip
from fundax.objectives.flair import flair
from fundax.objectives.keepfit import KeepFIT
from fundax.objectives.ret_clip import RetCLIP
from fundax.params import stack_blocks, unflatten, unstack_blocks
from fundax.runtime.checkpoint import Checkpoints
from fundax.runtime.serialize import to_json
from fundax.runtime.workdir import write_json
from fundax.types import UserError


def tiny(image_size=8, context=5, act=layers.quick_gelu, **fields) -> CLIP:
    image = ViT(image_size, 4, 8, 1, 2, activation=act, **fields.pop("image", {}))
    text = TextTransformer(11, context, 8, 1, 2, activation=act, **fields.pop("text", {}))
    return CLIP(image, text, embed=6, **fields)


def numbers(objective: CLIP, seed=0):
    shapes = keymap.shapes_of(objective)
    rng = np.random.default_rng(seed)
    return unflatten({path: rng.standard_normal(shape, np.float32) for path, shape in shapes.items()})


def init_from(path, objective):
    return warm_start(path, objective).init_from[0]


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def write(kind, path, objective, params):
    """The model in one of the three forms a checkpoint comes in."""
    if kind == "run":
        path.mkdir()
        write_json(path / "config.json", {"objective": to_json(objective)})
        with Checkpoints(path) as checkpoints:
            checkpoints.save(3, {"params": params, "extra": {}, "opt": {}}, {}, {})
    else:
        {"open_clip": open_clip, "huggingface": huggingface}[kind].write_folder(Checkpoint(objective, params, {}), path)


KINDS = ("open_clip", "huggingface", "run")


@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_gives_the_same_parameters(tmp_path, kind):
    params = numbers(tiny())
    write(kind, tmp_path / "x", tiny(), params)
    same(init_from(tmp_path / "x", tiny())(numbers(tiny(), seed=1)), params)


@pytest.mark.parametrize("kind", KINDS)
def test_positions_move_to_another_image_size_and_a_shorter_text(tmp_path, kind):
    params = numbers(tiny())
    write(kind, tmp_path / "x", tiny(), params)
    larger = tiny(image_size=16, context=3)
    found = init_from(tmp_path / "x", larger)(numbers(larger, seed=1))
    grid = params["image"]["position"][1:].reshape(2, 2, 8)
    expected = jax.image.resize(grid, (4, 4, 8), "cubic", antialias=True).reshape(16, 8)
    np.testing.assert_allclose(found["image"]["position"][1:], expected, atol=1e-5)
    np.testing.assert_array_equal(found["image"]["position"][0], params["image"]["position"][0])
    np.testing.assert_array_equal(found["text"]["position"], params["text"]["position"][:3])
    same(found["image"]["block_0"], params["image"]["block_0"])


def test_layers_are_stacked_where_the_model_scans(tmp_path):
    params = numbers(tiny())
    write("open_clip", tmp_path / "x", tiny(), params)
    scanned = tiny(image={"scan": True})
    fresh = {**numbers(tiny(), seed=1), "image": stack_blocks(numbers(tiny(), seed=1)["image"])}
    found = init_from(tmp_path / "x", scanned)(fresh)
    assert jax.tree.structure(found) == jax.tree.structure(fresh)
    same(unstack_blocks(found), params)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "other, words",
    [
        (tiny(act=layers.gelu_exact), r"image\.activation = quick_gelu, the model gelu_exact"),
        (tiny(image={"epsilon": 1e-6}), r"image\.epsilon = 1e-05, the model 1e-06"),
        (dataclasses.replace(tiny(), text=TextTransformer(11, 5, 8, 1, 4)), r"text\.heads = 2, the model 4"),
    ],
)
def test_a_model_that_computes_something_else_is_refused(tmp_path, kind, other, words):
    write(kind, tmp_path / "x", tiny(), numbers(tiny()))
    with pytest.raises(UserError, match=words):
        init_from(tmp_path / "x", other)(numbers(other))


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_that_do_not_fit_name_the_key(tmp_path, kind):
    write(kind, tmp_path / "x", tiny(), numbers(tiny()))
    other = dataclasses.replace(tiny(), embed=7)
    with pytest.raises(UserError, match=r"proj.* has the shape \(.*\), expected \(.*7.*\)"):
        init_from(tmp_path / "x", other)(numbers(other))
    longer = tiny(context=9)
    with pytest.raises(UserError, match=r"position.* has the shape \(5, 8\), expected \(9, 8\)"):
        init_from(tmp_path / "x", longer)(numbers(longer))


@pytest.mark.parametrize("kind", ["open_clip", "run"])
def test_parameters_the_checkpoint_lacks_are_named(tmp_path, kind):
    write(kind, tmp_path / "x", tiny(), numbers(tiny()))
    other = tiny(text_bias=True)
    with pytest.raises(UserError, match=r"missing .*(text_projection\.bias|project/text/bias)"):
        init_from(tmp_path / "x", other)(numbers(other))


def test_a_bare_file_is_taken_with_a_warning(tmp_path, caplog):
    params = numbers(tiny())
    write_safetensors(open_clip.from_fundax(tiny(), params), tmp_path / "bare.safetensors")
    with caplog.at_level(logging.WARNING, logger="fundax"):
        same(init_from(tmp_path / "bare.safetensors", tiny())(numbers(tiny(), seed=1)), params)
    assert "no open_clip_config.json in the folder of the weights" in caplog.text


def test_a_training_checkpoint_of_open_clip(tmp_path):
    """{epoch, state_dict: {module.…}}, as open_clip's trainer saves it and MM-Fundus-CLIP was released."""
    torch = pytest.importorskip("torch", reason="reading PyTorch files needs torch")
    params = numbers(tiny())
    state = open_clip.from_fundax(tiny(), params)
    tensors = {f"module.{key}": torch.from_numpy(np.array(value)) for key, value in state.items()}
    torch.save({"epoch": 10, "name": "x", "state_dict": tensors}, tmp_path / "epoch_10.pt")
    same(init_from(tmp_path / "epoch_10.pt", tiny())(numbers(tiny(), seed=1)), params)


@pytest.mark.parametrize("kind", ["file", "open_clip", "huggingface"])
def test_a_ret_clip_starts_in_english_from_clips_encoders(tmp_path, kind):
    """OpenAI's file, EyeCLIP's (with its decoder and a configuration of sizes), or a folder of CLIP's."""
    theirs = numbers(tiny())
    if kind == "file":
        state = open_clip.from_fundax(tiny(), theirs) | {"visual.decoder.weight": np.zeros(2, np.float32)}
        state |= {name: np.array(8) for name in ("context_length", "input_resolution", "vocab_size")}
        write_safetensors(state, tmp_path / "x.safetensors")
    else:
        write(kind, tmp_path / "x.safetensors", tiny(), theirs)
    objective = RetCLIP(tiny().image, tiny().text, embed=6, context=5)
    fresh = numbers(objective, seed=1)
    filled = init_from(tmp_path / "x.safetensors", objective)(fresh)
    same({name: filled[name] for name in ("image", "text")}, {name: theirs[name] for name in ("image", "text")})
    same(filled["project"]["text_left"], fresh["project"]["text_left"])
    out = jax.eval_shape(objective.forward, filled, {}, objective.batch_spec(2))
    assert out["text_features_left"].shape == (2, 6)


def test_unknown_keys_and_missing_files(tmp_path):
    np.savez(tmp_path / "x.npz", weight=np.zeros(2))
    with pytest.raises(UserError, match=r"x\.npz: the keys are not those of .*open_clip or .*it has weight"):
        init_from(tmp_path / "x.npz", tiny())({})
    with pytest.raises(UserError, match="no such file"):
        init_from(tmp_path / "absent", tiny())({})


def test_a_run_without_objective_says_so(tmp_path):
    write("run", tmp_path / "x", tiny(), numbers(tiny()))
    write_json(tmp_path / "x" / "config.json", {"objective": None})
    with pytest.raises(UserError, match="opens only with its config file"):
        init_from(tmp_path / "x", tiny())({})


def test_resized_features_stay_close(tmp_path):
    """A smooth position table sampled twice as finely keeps its values: the rule moves the grid, not the content."""
    params = numbers(tiny(image_size=16))
    ramp = np.linspace(0, 1, 4, dtype=np.float32)
    params["image"]["position"][1:] = np.repeat((ramp[:, None] + ramp[None]).reshape(16, 1), 8, axis=1)
    write("run", tmp_path / "x", tiny(image_size=16), params)
    larger = tiny(image_size=32)
    found = init_from(tmp_path / "x", larger)(numbers(larger))["image"]["position"][1:, 0].reshape(8, 8)
    assert jnp.all(jnp.diff(found, axis=0) > 0)
    np.testing.assert_allclose(found, found.T, atol=1e-6)
    np.testing.assert_allclose(found.mean(), 1.0, atol=1e-6)  # the ramp's mean


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_of_a_small_model_is_read_where_it_lies(tmp_path, kind):
    theirs = tiny(image_size=12, act=layers.gelu_exact, mean=(0.5,) * 3, std=(0.25,) * 3)
    params = numbers(theirs)
    write(kind, tmp_path / "x", theirs, params)
    ours = dataclasses.replace(clip("smoke", vocab=11, context=5, dtype="bfloat16", remat="full"), jitter=(0.2, 0.2))
    found = sized_like(tmp_path / "x", ours)
    assert found.image == theirs.image.clone(dtype="bfloat16", remat="full")
    assert (found.text.vocab, found.text.width, found.embed, found.jitter) == (11, 8, 6, (0.2, 0.2))
    assert found.mean == (0.5,) * 3 and found.std == (0.25,) * 3
    same(init_from(tmp_path / "x", found)(numbers(theirs, seed=1)), params)


def test_what_says_no_size_changes_none(tmp_path):
    write_safetensors(open_clip.from_fundax(tiny(), numbers(tiny())), tmp_path / "x.safetensors")
    write("run", tmp_path / "run", tiny(), numbers(tiny()))
    ours = KeepFIT(flair("smoke", vocab=11))
    for path, objective in (("", tiny(12)), (tmp_path / "x.safetensors", tiny(12)), (tmp_path / "run", ours)):
        assert sized_like(path, objective) is objective


def test_images_normalised_otherwise_are_one_line(tmp_path, caplog):
    write("huggingface", tmp_path / "x", tiny(), numbers(tiny()))
    fill = init_from(tmp_path / "x", tiny(mean=(0.5,) * 3))
    with caplog.at_level(logging.WARNING):
        fill(numbers(tiny(), seed=1))
        fill(numbers(tiny(), seed=1))
    messages = [record.message for record in caplog.records if "its images have mean" in record.message]
    assert len(messages) == 1 and messages[0].endswith("those of this run [0.5, 0.5, 0.5]")
