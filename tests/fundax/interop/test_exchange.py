"""The verbs export and import: out to each layout and in again, bit for bit, and every mistake as one message."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from data_pipelines.language import tokenizers
from fundax.encoders import layers
from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.vit import ViT
from fundax.interop import exchange, huggingface, keymap, open_clip, weight_files
from fundax.interop.checkpoint import Checkpoint
from fundax.interop.hub import push
from fundax.interop.initial import sized_like
from fundax.interop.read import load, read_objective, read_run
from fundax.interop.weights import read_state, write_safetensors
from fundax.objectives.clip import CLIP, MEAN, STD, clip
from fundax.params import unflatten
from fundax.runtime.checkpoint import Checkpoints
from fundax.runtime.serialize import to_json
from fundax.runtime.workdir import write_json
from fundax.types import UserError

TOKENIZER = tokenizers.bundled(context=6)
OBJECTIVE = CLIP(ViT(8, 4, 8, 1, 2), TextTransformer(TOKENIZER.vocab_size, 6, 8, 1, 2), embed=6)
FACTS = {"image_size": 8, "mean": list(MEAN), "std": list(STD), "resize": "squash", "interpolation": "bicubic"}


def numbers(objective: CLIP, seed=0):
    shapes = keymap.shapes_of(objective)
    rng = np.random.default_rng(seed)
    return unflatten({path: 0.3 * rng.standard_normal(shape, np.float32) for path, shape in shapes.items()})


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run as the trainer leaves it, with two checkpoints."""
    path = tmp_path_factory.mktemp("runs") / "tiny"
    path.mkdir()
    write_json(path / "config.json", {"objective": to_json(OBJECTIVE), "args": {}})
    write_json(path / "preprocessing.json", FACTS)
    TOKENIZER.save(path / "tokenizer")
    with Checkpoints(path) as checkpoints:
        for step in (10, 20):
            items = {"params": numbers(OBJECTIVE, seed=step), "extra": {}, "opt": {}}
            checkpoints.save(step, items, {}, {})
            checkpoints.wait()
    return path


@pytest.mark.parametrize("to", ["huggingface", "open_clip"])  # ret_clip holds another model: test_predict_ret_clip
def test_out_and_in_again_is_the_same_bits(run, to, tmp_path):
    message = exchange.export(run, to, tmp_path / "out", checkpoint=10)
    assert "step 10; parameters read back bit for bit" in message
    params = numbers(OBJECTIVE, seed=10)
    bundle = load(tmp_path / "out")
    same(bundle.params, params)
    assert bundle.objective == OBJECTIVE
    assert dict(bundle.preprocessing) == FACTS
    np.testing.assert_array_equal(bundle.tokenizer(["eye"]), TOKENIZER(["eye"]))
    exchange.import_checkpoint(tmp_path / "out", tmp_path / "again")
    again = read_run(tmp_path / "again")
    same(again.params, params)
    assert again.objective == OBJECTIVE
    assert dict(again.preprocessing) == FACTS
    np.testing.assert_array_equal(again.tokenizer(["eye"]), TOKENIZER(["eye"]))
    # and an import is exported like a run, to the same tensors
    exchange.export(tmp_path / "again", to, tmp_path / "twice")
    records = [json.loads((tmp_path / name / "fundax_export.json").read_text()) for name in ("out", "twice")]
    assert records[0]["tensors_sha256"] == records[1]["tensors_sha256"]
    assert records[0]["source"]["name"] == "tiny"


def test_the_latest_checkpoint_is_the_default(run, tmp_path):
    assert read_run(run).source["step"] == 20
    assert "step 20" in exchange.export(run, "open_clip", tmp_path / "out")


def test_a_scanned_model_is_exported_like_a_plain_one(run, tmp_path):
    from fundax.params import stack_blocks

    scanned = dataclasses.replace(OBJECTIVE, image=dataclasses.replace(OBJECTIVE.image, scan=True))
    params = numbers(OBJECTIVE)
    bundle = Checkpoint(scanned, {**params, "image": stack_blocks(params["image"])}, FACTS, TOKENIZER)
    open_clip.write_folder(bundle, tmp_path / "out")
    same(load(tmp_path / "out").params, params)
    assert "bit for bit" in exchange.compare(open_clip.FORMAT, tmp_path / "out", bundle)


def test_an_export_that_differs_from_the_other_program_is_an_error(run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        exchange, "writer", lambda to, model: dataclasses.replace(huggingface.FORMAT, difference=lambda *_: 0.5)
    )
    with pytest.raises(UserError, match=r"features differ by 0\.5 .*expected < 0\.0001"):
        exchange.export(run, "huggingface", tmp_path / "out")
    monkeypatch.setattr(
        exchange, "writer", lambda to, model: dataclasses.replace(huggingface.FORMAT, difference=lambda *_: None)
    )
    assert "not installed" in exchange.export(run, "huggingface", tmp_path / "two")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_another_dtype_are_rounded_once(run, tmp_path, dtype):
    message = exchange.export(run, "huggingface", tmp_path / "out", dtype=dtype)
    assert "parameters read back bit for bit" in message
    kind = weight_files.DTYPES[dtype]
    assert {value.dtype for value in read_state(tmp_path / "out").values()} == {np.dtype(kind)}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype
    expected = jax.tree.map(lambda x: np.asarray(x, kind).astype(np.float32), numbers(OBJECTIVE, seed=20))
    same(load(tmp_path / "out").params, expected)


def test_large_weights_are_written_in_shards(run, tmp_path):
    exchange.export(run, "huggingface", tmp_path / "out", largest=8000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    names = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(names) > 2 and names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    assert set(index["weight_map"].values()) == set(names)
    for name in names:  # a tensor that is larger is alone
        held = read_state(tmp_path / "out" / name)
        assert len(held) == 1 or sum(value.nbytes for value in held.values()) <= 8000
    same(load(tmp_path / "out").params, numbers(OBJECTIVE, seed=20))
    assert sized_like(tmp_path / "out", OBJECTIVE) == OBJECTIVE
    exchange.export(run, "open_clip", tmp_path / "one", largest=8000)  # open_clip reads one file
    assert (tmp_path / "one" / "open_clip_model.safetensors").is_file()
    (tmp_path / "out" / names[1]).unlink()
    with pytest.raises(UserError, match="no such file or folder"):
        load(tmp_path / "out")


def test_dtypes_that_cannot_be_written_are_named(run, tmp_path):
    with pytest.raises(UserError, match="StableHLO is written in float32 alone, not float16"):
        exchange.export(run, "stablehlo", tmp_path / "out", dtype="float16")
    with pytest.raises(UserError, match="dtype is 'int8'; expected float32, float16, bfloat16"):
        exchange.export(run, "huggingface", tmp_path / "out", dtype="int8")
    large = numbers(OBJECTIVE)
    large["log_scale"] = np.float32(1e6)
    with pytest.raises(UserError, match="float16 does not hold the numbers of params/log_scale"):
        weight_files.rounded(Checkpoint(OBJECTIVE, large, FACTS), "float16")
    assert not (tmp_path / "out").exists()


def test_mistakes_of_export(run, tmp_path):
    with pytest.raises(UserError, match="cannot export to 'tflite'; expected ret_clip, open_clip, huggingface, "):
        exchange.export(run, "tflite", tmp_path / "out")
    with pytest.raises(
        UserError, match="RET-CLIP cannot hold a CLIP: cannot export to 'ret_clip'; expected open_clip, huggingface"
    ):
        exchange.export(run, "ret_clip", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="is not a run of fundax"):
        exchange.export(tmp_path, "open_clip", tmp_path / "out")
    with pytest.raises(UserError, match="has no checkpoint 15"):
        exchange.export(run, "open_clip", tmp_path / "out", checkpoint=15)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="not empty"):
        exchange.export(run, "open_clip", tmp_path / "full")
    exchange.export(run, "open_clip", tmp_path / "full", overwrite=True)
    assert not (tmp_path / "full" / "file").exists()


def test_a_file_without_configuration_needs_a_size(tmp_path):
    params = numbers(OBJECTIVE)
    write_safetensors(open_clip.from_fundax(OBJECTIVE, params), tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"no open_clip_config\.json in the folder .*or a size: .*H/14-378"):
        exchange.import_checkpoint(tmp_path / "x.safetensors", tmp_path / "run")
    with pytest.raises(UserError, match="size is 'B/15'"):
        exchange.import_checkpoint(tmp_path / "x.safetensors", tmp_path / "run", like="B/15")
    with pytest.raises(UserError, match="B/32: the keys do not fit"):
        exchange.import_checkpoint(tmp_path / "x.safetensors", tmp_path / "run", like="B/32", activation="gelu")
    assert not (tmp_path / "run").exists()


def test_the_activation_of_a_file_without_configuration_is_asked_for(tmp_path):
    theirs = clip("Ti/16", activation=layers.gelu_exact)
    params = numbers(theirs)
    published = {
        "visual.decoder.weight": np.zeros(2, np.float32),
        "input_resolution": np.array(224),
    }  # as EyeCLIP's file
    write_safetensors(open_clip.from_fundax(theirs, params) | published, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"give --activation quick_gelu or gelu"):
        exchange.import_checkpoint(tmp_path / "x.safetensors", tmp_path / "run", like="Ti/16")
    for name, used in (("gelu", layers.gelu_exact), ("quick_gelu", layers.quick_gelu)):
        message = exchange.import_checkpoint(tmp_path / "x.safetensors", tmp_path / name, like="Ti/16", activation=name)
        assert f"{name} in its MLPs, as given" in message
        found = read_objective(tmp_path / name)
        assert found.image.activation is used and found.text.activation is used


def test_the_file_that_was_named_is_the_one_that_is_read(run, tmp_path):
    exchange.export(run, "open_clip", tmp_path / "out")
    other = numbers(OBJECTIVE, seed=5)
    write_safetensors(open_clip.from_fundax(OBJECTIVE, other), tmp_path / "out" / "epoch_5.safetensors")
    same(load(tmp_path / "out" / "epoch_5.safetensors").params, other)


def test_an_import_without_tokenizer_says_so(tmp_path):
    open_clip.write_folder(Checkpoint(OBJECTIVE, numbers(OBJECTIVE), FACTS), tmp_path / "out")
    message = exchange.import_checkpoint(tmp_path / "out", tmp_path / "run")
    assert "no tokenizer there" in message
    count = sum(np.prod(shape, dtype=int) for shape in keymap.shapes_of(OBJECTIVE).values())
    assert f"{count:,} parameters" in message


def test_a_folder_is_uploaded_or_an_error_gives_the_reason(run, tmp_path, monkeypatch):
    import huggingface_hub

    exchange.export(run, "open_clip", tmp_path / "none")
    with pytest.raises(UserError, match=r"README\.md says no license; export again with --license"):
        push(tmp_path / "none", "owner/name")
    exchange.export(run, "open_clip", tmp_path / "out", license="apache-2.0", base_model="openai/clip")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "\nlicense: apache-2.0\n" in card and "\nbase_model: openai/clip\n" in card
    with pytest.raises(UserError, match="is 'name'; expected OWNER/NAME"):
        push(tmp_path / "out", "name")
    with pytest.raises(UserError, match="is not an exported folder"):
        push(run, "owner/name")
    with pytest.raises(UserError, match=r"owner/name: the Hugging Face hub cannot be reached .*hf upload owner/name"):
        push(tmp_path / "out", "owner/name")  # HF_HUB_OFFLINE
    called = {}
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, *a, **k: called.update(made=(a, k)))
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", lambda self, **k: called.update(sent=k))
    assert "https://huggingface.co/owner/name" in push(tmp_path / "out", "owner/name")
    assert called["made"] == (("owner/name",), {"private": True, "exist_ok": True})
    assert called["sent"]["folder_path"] == str(tmp_path / "out")
