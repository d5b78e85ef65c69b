"""VisionFM's decoders: outputs in evaluation and training, losses, batch-norm buffers, and one step of the original's training."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from fundax import optim
from fundax.encoders.backbone import Backbone
from fundax.encoders.heads import ForecastHead, MLPHead, interval_encoding
from fundax.evals.supervised import regression
from fundax.interop import vit
from fundax.losses.supervised import cross_entropy
from fundax.objectives.classify import Classify, MultiModality
from fundax.objectives.forecast import Forecast
from fundax.objectives.regress import Regress
from fundax.params import flatten

pytestmark = pytest.mark.vectors("visionfm")


@pytest.fixture(autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def golden_decoders(golden):
    folder = golden / "visionfm"
    with np.load(folder / "decoders.npz") as file:
        arrays = dict(file)
    state = load_file(folder / "decoders.safetensors")
    return arrays, state, json.loads((folder / "config.json").read_text())["decoders"]


def close(ours, theirs, tolerance: float = 1e-5, name: str = "") -> None:
    """Every element within `tolerance` of the largest expected magnitude."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, (name, ours.shape, theirs.shape)
    error = np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30)
    assert error <= tolerance, f"{name}: {error:.2e} of the largest magnitude"


def head_of(state, prefix: str) -> tuple[MLPHead, dict, dict]:
    """The head whose tensors are under a prefix, its parameters and its statistics."""
    keys = sorted(
        int(key.split(".")[-2]) for key in state if key.startswith(f"{prefix}classifier.") and key.endswith("bias")
    )
    params = {"norm": {"scale": state[f"{prefix}channel_bn.weight"], "bias": state[f"{prefix}channel_bn.bias"]}}
    for i, key in enumerate(keys):
        params[f"fc{i + 1}"] = {
            "kernel": state[f"{prefix}classifier.{key}.weight"].T,
            "bias": state[f"{prefix}classifier.{key}.bias"],
        }
    names = {"mean": "running_mean", "var": "running_var", "count": "num_batches_tracked"}
    stats = {"norm": {ours: state[f"{prefix}channel_bn.{theirs}"] for ours, theirs in names.items()}}
    stats["norm"]["count"] = stats["norm"]["count"].astype(np.int32)
    outputs = len(state[f"{prefix}classifier.{keys[-1]}.bias"])
    return MLPHead(outputs, len(keys), dropout=0.0), params, stats


def tower_of(state, config, **fields) -> tuple[Backbone, dict]:
    """The frozen backbone."""
    under = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    image = vit.tower_of(under, "backbone", heads=config["backbone"]["num_heads"])
    return Backbone(image, blocks=config["backbone"]["n_last_blocks"], **fields), vit.read(image, under, "backbone")


def pixels(x):
    return x.transpose(0, 2, 3, 1)


def step(objective, params, extra, batch, chain):
    """One update; returns loss, gradients, and the state after it. The encoder and the targets keep still."""

    @jax.jit
    def run(params, extra, batch):
        rng, now = jax.random.key(0), jnp.zeros((), jnp.int32)
        (loss, (extra, _)), grads = jax.value_and_grad(objective.loss, has_aux=True)(params, extra, batch, rng, now)
        updates, _ = chain.update(grads, chain.init(params), params)
        return loss, grads, optax.apply_updates(params, updates), extra

    loss, grads, after, extra = run(params, extra, batch)
    for name in set(params) - {"head"}:
        assert jax.tree.all(
            jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), params[name], after[name])
        )
        assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads[name]))
    return loss, grads["head"], after, extra


def same_state(state, prefix: str, after, extra, grads=None) -> None:
    """Head and buffers after a step; Adam's first step is the gradient's sign, so tiny gradients are not compared."""
    _, theirs, stats = head_of(state, f"{prefix}.after.")
    for path, value in flatten(theirs).items():
        ours, expected = np.asarray(flatten(after["head"])[path]), np.asarray(value)
        if grads is not None:
            chosen = np.abs(np.asarray(flatten(grads)[path])) > 1e-5
            ours, expected = np.where(chosen, ours, 0), np.where(chosen, expected, 0)
        if expected.any():
            close(ours, expected, name=f"{prefix} {path}")
    for name, value in stats["norm"].items():
        close(extra["head"]["norm"][name], value, name=f"{prefix} {name}")


def adamw(lr: float, decay: float):
    return optim.freeze(
        optim.adamw(optim.constant(lr), weight_decay=decay, decay=lambda path, leaf: True), "^(image|target)/"
    )


@pytest.mark.parametrize("layers", [3, 2, 1])
def test_head_outputs_and_buffers(golden_decoders, layers):
    arrays, state, _ = golden_decoders
    head, params, stats = head_of(state, f"cls{layers}.")
    assert head.layers == layers
    x = arrays[f"cls{layers}_x"]
    variables = {"params": params, "batch_stats": stats}
    out = jax.jit(head.apply)(variables, x)
    close(out, arrays[f"cls{layers}_eval"])
    trained, new = jax.jit(lambda v, x: head.apply(v, x, True, mutable=["batch_stats"]))(variables, x)
    close(trained, arrays[f"cls{layers}_train_nodrop"])
    close(new["batch_stats"]["norm"]["mean"], arrays[f"cls{layers}_bn_mean_after"])
    close(new["batch_stats"]["norm"]["var"], arrays[f"cls{layers}_bn_var_after"])
    if layers == 3:
        hot = jax.nn.one_hot(arrays["cls_target"], out.shape[1])
        close(cross_entropy(out, hot), arrays["cls3_eval_ce"])


@pytest.mark.parametrize("name", ["single_mc", "single_bin", "single_avg"])
def test_a_step_of_a_single_modality_decoder(golden_decoders, name):
    arrays, state, config = golden_decoders
    head, params, stats = head_of(state, f"{name}.before.")
    tower, image = tower_of(state, config, feature="mean" if name == "single_avg" else "token")
    objective = Classify(tower, head)
    images = pixels(arrays["single_images"])
    batch = {"image": images, "label": arrays[f"{name}_target"].astype(np.int32)}
    params, extra = {"image": image, "head": params}, {"head": stats}
    fresh = jax.eval_shape(objective.init, jax.random.key(0), batch)
    assert jax.tree.map(np.shape, fresh) == jax.tree.map(np.shape, (params, extra))
    close(jax.jit(objective.forward)(params, extra, batch)["feature"], arrays[f"{name}_features"])
    chain = adamw(float(arrays[f"{name}_lr"]), config["adamw_weight_decay"])
    loss, grads, after, extra = step(objective, params, extra, batch, chain)
    close(loss, arrays[f"{name}_train_loss"])
    same_state(state, name, after, extra, grads)
    close(jax.jit(objective.forward)(after, extra, batch)["logits"], arrays[f"{name}_logits_after_step_eval"], 2e-5)


def test_a_step_of_the_multi_modality_decoder(golden_decoders):
    arrays, state, config = golden_decoders
    head, params, stats = head_of(state, "multi.before.")
    objective = MultiModality(tower_of(state, config)[0], head, given="feature")
    assert head.outputs == config["multi_outputs"] == len(objective.names)
    feature = arrays["multi_feats"].reshape(len(arrays["multi_feats"]), -1)
    batch = {"feature": feature, "label": arrays["multi_labels"]}
    chain = optim.freeze(optax.sgd(float(arrays["multi_lr"]), momentum=config["sgd_momentum"]), "^image/")
    loss, _, after, extra = step(
        objective, {"image": {"x": np.zeros(1)}, "head": params}, {"head": stats}, batch, chain
    )
    close(loss, arrays["multi_train_loss"])
    same_state(state, "multi", after, extra)
    close(jax.jit(objective.forward)(after, extra, batch)["logits"], arrays["multi_logits_after_step_eval"], 2e-5)


def test_a_step_of_the_regression_decoder(golden_decoders):
    arrays, state, config = golden_decoders
    head, params, stats = head_of(state, "reg.before.")
    assert head.outputs == config["reg_outputs"]
    objective = Regress(tower_of(state, config)[0], head, given="feature")
    feature = arrays["multi_feats"].reshape(len(arrays["multi_feats"]), -1)
    batch = {"feature": feature, "value": arrays["reg_targets"]}
    k = head.outputs
    params = {"head": params, "target": {"mean": np.zeros(k, np.float32), "std": np.ones(k, np.float32)}}
    loss, grads, after, extra = step(
        objective,
        params | {"image": {"x": np.zeros(1)}},
        {"head": stats},
        batch,
        adamw(config["reg_lr"], config["adamw_weight_decay"]),
    )
    close(loss, arrays["reg_train_loss"])
    same_state(state, "reg", after, extra, grads)
    out = np.asarray(jax.jit(objective.forward)(after, extra, batch)["value"])
    close(out, arrays["reg_out_after_step_eval"], 2e-5)
    relative = np.abs(out - arrays["reg_targets"]).mean(0) / arrays["reg_targets"].mean(0)
    close(relative, arrays["reg_percent_error"], 2e-5)
    close(regression(arrays["reg_targets"], out)["relative_error"], arrays["reg_mae_metric"])


def test_forecasting(golden_decoders):
    arrays, state, config = golden_decoders
    params = {"fc1": {"kernel": state["forecast.fc_1.weight"].T, "bias": state["forecast.fc_1.bias"]}}
    table = state["forecast.pe"][:, 0]
    assert len(table) == config["forecast"]["max_len"]
    encoding = jax.jit(interval_encoding, static_argnums=1)(jnp.arange(len(table)), table.shape[1])
    close(encoding, table, 5e-5)
    x, days = arrays["forecast_x"], arrays["forecast_times"]
    out = jax.jit(ForecastHead().apply)({"params": params}, x[:, None], days[:, None])
    close(out, arrays["forecast_out"][:, 0])
    objective = Forecast(
        tower_of(state, config, feature="mean")[0], ForecastHead(), positive=config["forecast"]["pos_weight"]
    )
    batch = {"feature": x, "days": days.astype(np.float32), "label": arrays["forecast_target"].astype(np.int32)}
    now = jnp.zeros((), jnp.int32)
    loss, (_, metrics) = jax.jit(objective.loss)({"head": params}, {}, batch, jax.random.key(0), now)
    (theirs,) = (name for name in arrays if name.startswith("forecast_bce_posw"))
    close(loss, arrays[theirs])
    right = (arrays["forecast_out"][:, 0] > 0) == (arrays["forecast_target"] > 0)
    assert float(metrics["accuracy"]) == pytest.approx(right.mean())
