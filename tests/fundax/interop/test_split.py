"""Models without a class in transformers, as towers and heads; StableHLO and ONNX: out and in again, the same numbers there."""

import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.language import tokenizers
from fundax.encoders.backbone import Backbone
from fundax.encoders.bert import BERT
from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.heads import ForecastHead, MLPHead
from fundax.encoders.report_decoder import ReportDecoder
from fundax.encoders.resnet import ResNet
from fundax.encoders.unetr import UNETR
from fundax.encoders.vit import ViT, dino_vit
from fundax.interop import exchange, export_names, load, split, stablehlo
from fundax.interop import onnx as onnx_format
from fundax.interop.checkpoint import Checkpoint
from fundax.objectives.classify import Classify
from fundax.objectives.clip import CLIP
from fundax.objectives.dense import Segment
from fundax.objectives.flair import FLAIR, POOL_LAYERS
from fundax.objectives.forecast import Forecast
from fundax.objectives.keepfit import KeepFIT
from fundax.objectives.keepfit_reference import V1
from fundax.objectives.regress import Regress
from fundax.objectives.report import Report
from fundax.objectives.ret_clip import RetCLIP
from fundax.params import flatten
from fundax.types import UserError

WORDS = tokenizers.bundled(context=12)
TEXT = BERT(WORDS.vocab_size, 12, 8, 2, 2, 16, pool="unmasked_mean", pool_layers=POOL_LAYERS)
RESNET = ResNet(32, 4, (1, 2))
DINO = dino_vit("B/16").clone(image_size=32, patch=16, width=16, depth=4, heads=2)
DECODER = ReportDecoder(13, context=5, width=8, depth=1, heads=2, hidden=8, bos=1, eos=2)
MODELS = {
    "ret_clip": RetCLIP(ViT(32, 16, 16, 1, 2), replace(TEXT, pool="cls", pool_layers=(-1,)), embed=6, context=12),
    "keepfit": KeepFIT(FLAIR(RESNET, TEXT, embed=4, context=12), V1),
    "classify": Classify(Backbone(DINO, feature="token", blocks=2), MLPHead(3, layers=2)),
    "pooled": Classify(Backbone(DINO.clone(pool="mean", norm_after_pool=True), feature="pooled"), MLPHead(3, layers=1)),
    "regress": Regress(Backbone(RESNET, feature="pooled"), MLPHead(2, layers=2), ("age", "hba1c")),
    "forecast": Forecast(Backbone(DINO, feature="mean"), ForecastHead()),
    "segment": Segment(DINO, UNETR(2, 16, 4), (0, 1, 2, 3), ("disc", "cup"), overlapping=True),
    "report": Report(RESNET, DECODER, findings=3),
}


def a_model(objective, tokenizer=None):
    batch = {key: np.zeros(spec.shape, spec.dtype) for key, spec in objective.batch_spec(1).items()}
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(objective.init, jax.random.key(0), batch)
    draw = lambda x: (0.3 * np.abs(rng.standard_normal(x.shape))).astype(x.dtype)  # noqa: E731
    params, extra = jax.tree.map(draw, shapes)
    size, owner = objective.image.image_size, getattr(objective, "tower", objective)
    facts = {"image_size": size, "mean": owner.mean, "std": owner.std, "resize": "squash", "interpolation": "bicubic"}
    return Checkpoint(objective, params, facts, tokenizer, {"name": "run"}, extra)


@pytest.mark.parametrize("name", MODELS)
def test_towers_and_heads_come_back_bit_for_bit(tmp_path, name):
    model = a_model(MODELS[name], WORDS if name in ("ret_clip", "keepfit") else None)
    split.write_folder(model, tmp_path / "out")
    again = load(tmp_path / "out")
    assert type(again.objective) is type(model.objective)
    for ours, theirs in ((model.params, again.params), (model.extra, again.extra)):
        found = flatten(theirs)
        assert found.keys() == flatten(ours).keys()
        for path, leaf in flatten(ours).items():
            np.testing.assert_array_equal(found[path], leaf, err_msg=path)
    towers = [tmp_path / "out" / part for part in (("image", "text") if name in ("ret_clip", "keepfit") else ("",))]
    assert all((tower / "config.json").exists() for tower in towers)
    assert (again.tokenizer is not None) == (model.tokenizer is not None)


@pytest.mark.parametrize("name", MODELS)
def test_the_code_in_the_folder_computes_the_same(tmp_path, name):
    pytest.importorskip("torch", reason="the folder's code is PyTorch's, which is an extra")
    split.write_folder(a_model(MODELS[name]), tmp_path / "out")
    found = split.difference(tmp_path / "out", a_model(MODELS[name]))
    assert found is not None and found < 1e-5


def test_a_changed_or_cut_folder_is_an_error(tmp_path):
    split.write_folder(a_model(MODELS["regress"]), tmp_path / "out")
    weights = tmp_path / "out" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    with pytest.raises(UserError, match="is not what was written: its SHA-256 differs"):
        load(tmp_path / "out")
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged or not a safetensors file"):
        load(tmp_path / "out")
    several = replace(MODELS["classify"], tower=replace(MODELS["classify"].tower, modalities=(0, 2)))
    with pytest.raises(UserError, match="this Classify has one for each modality"):
        split.write_folder(Checkpoint(several, {"image": {}}, {}), tmp_path / "several")
    assert not (tmp_path / "several").exists()


def test_stablehlo_runs_where_there_is_only_jax(tmp_path):
    pytest.importorskip("flatbuffers", reason="jax.export writes with flatbuffers, an extra")
    assert "stablehlo" in export_names()
    model = a_model(MODELS["classify"])
    stablehlo.write_folder(model, tmp_path / "out")
    assert "largest difference of features from StableHLO 0" in exchange.compare(
        stablehlo.FORMAT, tmp_path / "out", model
    )
    image = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    np.save(tmp_path / "image.npy", image)
    code = f"""
import sys, numpy as np
from jax import export
from safetensors.numpy import load_file
program = export.deserialize(open(r"{tmp_path}/out/image.stablehlo", "rb").read())
out = program.call(load_file(r"{tmp_path}/out/stablehlo.safetensors"), np.load(r"{tmp_path}/image.npy"))
np.save(r"{tmp_path}/logits.npy", out["logits"])
assert not any(name.startswith(("fundax", "flax")) for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    program = jax.jit(stablehlo.program_of(model.objective, "image"))
    expected = program(stablehlo._state(model), image)["logits"]
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), expected)
    np.testing.assert_allclose(
        expected, model.objective.forward(model.params, model.extra, {"image": image})["logits"], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ["clip", "ret_clip", "keepfit", "segment"])
def test_onnx_computes_the_same_in_onnxruntime(tmp_path, name):
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason="the extra onnx writes and runs the graphs")
    clip = CLIP(ViT(32, 16, 16, 1, 2), TextTransformer(WORDS.vocab_size, 12, 8, 1, 2, pool="eot", eot_id=3), embed=6)
    model = a_model({"clip": clip, **MODELS}[name])
    if name == "ret_clip":  # layers in a scan, which is unrolled
        scanned = replace(model.objective, image=model.objective.image.clone(depth=2, scan=True))
        model = a_model(scanned)
    onnx_format.write_folder(model, tmp_path / "out")
    line = exchange.compare(onnx_format.FORMAT, tmp_path / "out", model)
    assert "parameters read back bit for bit" in line
    assert float(line.split()[-1]) < 1e-5


def test_onnx_names_what_it_has_no_rule_for():
    onnx = pytest.importorskip("onnx", reason="the extra onnx writes the graphs")
    (inputs,) = [{"image": jax.ShapeDtypeStruct((2, 3), jnp.float32)}]
    with pytest.raises(UserError, match="ONNX: the model computes 'cummax', which has no rule"):
        onnx_format.graph_of(onnx, lambda weights, x: {"out": jax.lax.cummax(x, 1)}, {}, inputs)


def test_onnx_without_its_package_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs onnx: pip install -e '\.\[onnx\]'"):
        onnx_format.write_folder(a_model(MODELS["classify"]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


RULES = {
    "rows by place": (lambda x, at: jnp.take_along_axis(x, at[:, :, None], axis=1), (2, 5, 3), (2, 1)),
    "rows clipped": (lambda x, at: jnp.take(x[0], at, axis=0, mode="clip"), (2, 5, 3), (2, 4)),
    "columns": (lambda x, at: x[:, :, at[0]], (2, 5, 3), (2, 2)),
    "transposed": (lambda x, at: jax.lax.conv_transpose(x, jnp.ones((3, 2, 3, 4)).cumsum(0), (2, 2), "SAME"), (2, 5, 4, 3), (2,)),
    "grouped": (lambda x, at: jax.lax.conv_general_dilated(x, jnp.ones((3, 3, 1, 6)).cumsum(1), (2, 1), ((1, 0), (2, 1)),
                rhs_dilation=(1, 2), dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=3), (2, 7, 8, 3), (2,)),
    "numbers": (lambda x, at: jnp.where(jnp.isfinite(jnp.log1p(x) ** 3), jnp.expm1(-x), x).clip(-0.5, 0.3).cumsum(1), (2, 6), (2,)),
    "flags": (lambda x, at: ((x > 0.5).any(1) | (x < 2).all(1)) != (jnp.argmin(x, 1) % 2 == 0), (2, 6), (2,)),
    "shapes": (lambda x, at: jnp.pad(jnp.flip(x, 1)[:, ::2], ((0, 0), (1, 2))) + jnp.arange(6.0)[None], (2, 6), (2,)),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_onnx_rules(name):
    """Single operations, where the values show what a model's may hide."""
    onnx = pytest.importorskip("onnx", reason="the extra onnx writes the graphs")
    runtime = pytest.importorskip("onnxruntime", reason="the extra onnx runs the graphs")
    function, *sizes = RULES[name]
    rng = np.random.default_rng(0)
    x, at = rng.random(sizes[0], np.float32), rng.integers(0, 3, sizes[1], np.int32)
    specs = {key: jax.ShapeDtypeStruct(one.shape, one.dtype) for key, one in (("x", x), ("at", at))}
    graph = onnx_format.graph_of(onnx, lambda weights, x, at: {"out": function(x, at)}, {}, specs)
    opset = [onnx.helper.make_opsetid("", onnx_format.OPSET)]
    program = onnx.helper.make_model(graph, opset_imports=opset, ir_version=onnx_format.IR)
    session = runtime.InferenceSession(program.SerializeToString(), providers=["CPUExecutionProvider"])
    given = {one.name: {"x": x, "at": at}[one.name] for one in session.get_inputs()}
    np.testing.assert_allclose(session.run(None, given)[0], function(x, at), rtol=1e-5, atol=1e-6)
