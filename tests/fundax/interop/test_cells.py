"""Every cell of format x objective: which test holds it against the other program, or that export refuses it by name."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.language import tokenizers
from data_pipelines.transforms.steps import preprocess
from fundax.encoders.backbone import Backbone, BackboneWithHead, Encoder
from fundax.encoders.bert import BERT
from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.heads import IBOTHead, MLPHead
from fundax.encoders.report_decoder import ReportDecoder
from fundax.encoders.resnet import ResNet
from fundax.encoders.unetr import UNETR
from fundax.encoders.vit import ViT, dino_vit
from fundax.interop import all_formats, export_names, keymap, open_clip, timm, vit
from fundax.interop.checkpoint import Checkpoint
from fundax.interop.formats import writer
from fundax.objectives.classify import Classify
from fundax.objectives.clip import CLIP
from fundax.objectives.dense import Landmark, Segment
from fundax.objectives.flair import FLAIR
from fundax.objectives.ibot import IBOT
from fundax.objectives.keepfit import KeepFIT
from fundax.objectives.keepfit_reference import V1
from fundax.objectives.masked_text import MaskedText
from fundax.objectives.report import Report
from fundax.objectives.ret_clip import RetCLIP
from fundax.params import unflatten
from fundax.types import UserError

TESTS = Path(__file__).parents[2]
BYTES = "fundax/interop/test_warm_start.py::test_every_form_fills_an_objective_or_says_why_not"
TOWERS = "fundax/interop/test_split.py::test_the_code_in_the_folder_computes_the_same"
HLO = "fundax/interop/test_split.py::test_stablehlo_runs_where_there_is_only_jax"
ONNX = "fundax/interop/test_split.py::test_onnx_computes_the_same_in_onnxruntime"
STOCK = "fundax/interop/test_huggingface.py::test_transformers_finds_every_key_and_the_same_features"
DECODERS = "fundax/interop/test_formats.py::test_out_and_in_again"
KINDS = "fundax/interop/test_vit_kinds.py::test_the_other_program_computes_the_same"
TEACHER = "fundax/interop/test_vit.py::test_a_pretraining_gives_its_teachers_encoder"
EVERY = ("CLIP", "RetCLIP", "FLAIR", "KeepFIT", "IBOT", "Encoder", "Segment", "Landmark", "Report", "BackboneWithHead")
# Format -> objective that is written -> the test that compares it with the format's own program.
WRITTEN = {
    "RET-CLIP": {"RetCLIP": "golden/test_retclip.py::test_features"},
    "open_clip": {"CLIP": "fundax/interop/test_cells.py::test_open_clip_opens_the_folder_by_its_name"},
    "Hugging Face CLIPModel": {"CLIP": STOCK},
    "Hugging Face ChineseCLIPModel": {"CLIP": STOCK},
    "Hugging Face SiglipModel": {"CLIP": STOCK},
    "Hugging Face Dinov2Model": {"Encoder": KINDS, "IBOT": TEACHER},
    "Hugging Face DINOv3ViTModel": {"Encoder": KINDS, "IBOT": KINDS},
    "Hugging Face BertForMaskedLM": {"MaskedText": "fundax/objectives/test_masked_text.py::test_transformers_computes_the_same"},
    "Hugging Face towers with heads": {name: TOWERS for name in EVERY if name not in ("CLIP", "IBOT", "Encoder")},
    "FLAIR": {"FLAIR": "golden/test_flair.py::test_a_written_state_dict_is_the_originals_bit_for_bit", "KeepFIT": DECODERS},
    "KeepFIT": {"KeepFIT": "golden/test_keepfit.py::test_loss_and_every_gradient"},
    "KeepFIT's FFA captioner": {"Report": "golden/test_keepfit.py::test_report_log_probabilities_loss_and_gradients"},
    "VisionFM": {"IBOT": "golden/test_visionfm_pretraining.py::test_checkpoint_round_trip_is_bit_for_bit"},
    "VisionFM's decoder": {"Segment": DECODERS, "Landmark": DECODERS},
    "timm": {
        "Encoder": KINDS, "IBOT": TEACHER,
        "BackboneWithHead": BYTES, "CLIP": "fundax/interop/test_vit_kinds.py::test_the_image_encoder_of_a_clip_goes_to_timm",
        "RetCLIP": "fundax/interop/test_vit_kinds.py::test_the_image_encoder_of_a_clip_goes_to_timm",
    },
    "RETFound": dict.fromkeys(("Encoder", "IBOT", "BackboneWithHead"), "fundax/interop/test_vit.py::test_pth_round_trip"),
    "StableHLO": dict.fromkeys(EVERY, HLO),
    "ONNX": dict.fromkeys(EVERY, ONNX),
}  # fmt: skip
# Formats that are read alone.
READ = {
    "Chinese-CLIP": "fundax/interop/test_ret_clip.py::test_chinese_clip_fills_the_towers_only",
    "ResNet (torchvision, timm)": "golden/test_convolutional.py::test_features_at_every_stage",
    "EfficientNet-Lite": "golden/test_convolutional.py::test_the_real_weights_of_imagenet",
    "ConvNeXt": "golden/test_convolutional.py::test_features_at_every_stage",
}
WORDS = tokenizers.bundled(12)
TEXT = BERT(WORDS.vocab_size, 12, 8, 1, 2, 16)
DINO = dino_vit("B/16").clone(image_size=32, patch=16, width=16, depth=4, heads=2)
RESNET = ResNet(32, 4, (1, 1))
FLAIRS = FLAIR(RESNET, TEXT, embed=4, context=12)
OBJECTIVES = {
    "CLIP": CLIP(ViT(32, 16, 16, 1, 2), TextTransformer(WORDS.vocab_size, 12, 16, 1, 2), embed=6),
    "RetCLIP": RetCLIP(ViT(32, 16, 16, 1, 2), TEXT, embed=6, context=12),
    "FLAIR": FLAIRS, "KeepFIT": KeepFIT(FLAIRS, V1), "MaskedText": MaskedText(TEXT, 6), "Encoder": Encoder(DINO),
    "IBOT": IBOT(DINO.clone(mask_token=True), IBOTHead(6, None, 8, 4), steps=2, epoch_steps=1),
    "Report": Report(RESNET, ReportDecoder(13, context=5, width=8, depth=1, heads=2, hidden=8), findings=3),
    "Segment": Segment(DINO, UNETR(2, 16, 4), (0, 1, 2, 3), ("disc",)),
    "Landmark": Landmark(DINO, UNETR(1, 16, 4), (0, 1, 2, 3), ("disc",)),
    "BackboneWithHead": Classify(Backbone(DINO), MLPHead(3, layers=1)),
}  # fmt: skip


def test_every_cell_is_tested():
    formats = {one.title: one for one in all_formats()}
    assert set(WRITTEN) == {title for title, one in formats.items() if one.write}
    assert set(READ) == {title for title, one in formats.items() if not one.write}
    for title, cells in WRITTEN.items():
        assert set(cells) == {kind.__name__ for kind in formats[title].holds}, title
    for place in {*READ.values(), *(test for cells in WRITTEN.values() for test in cells.values())}:
        file, _, name = place.partition("::")
        assert re.search(rf"^def {name}\(", (TESTS / file).read_text(), re.MULTILINE), place


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_every_other_cell_is_refused_by_name(kind):
    objective = OBJECTIVES[kind]
    held = {one.name for one in all_formats() if one.write and isinstance(objective, one.holds)}
    assert held >= {one.name for one in all_formats() if kind in WRITTEN.get(one.title, {})}
    for name in export_names():
        if name in held:
            assert isinstance(objective, writer(name, Checkpoint(objective, {}, {})).holds)
            continue
        expected = f"cannot hold a {type(objective).__name__}: cannot export to '{name}'; expected .*huggingface|bert"
        with pytest.raises(UserError, match=expected):
            writer(name, Checkpoint(objective, {}, {}))
    assert not isinstance(objective, BackboneWithHead) or kind == "BackboneWithHead"


def a_model(objective, shapes, tokenizer=None):
    rng = np.random.default_rng(0)
    params = unflatten({path: 0.3 * rng.standard_normal(shape, np.float32) for path, shape in shapes.items()})
    facts = {"image_size": 32, "resize": "shortest", "interpolation": "bicubic"}
    return Checkpoint(objective, params, facts, tokenizer)


def test_open_clip_opens_the_folder_by_its_name(tmp_path):
    torch = pytest.importorskip("torch", reason="compares with open_clip, which needs PyTorch")
    package = pytest.importorskip("open_clip", reason="compares with open_clip")
    model = a_model(OBJECTIVES["CLIP"], keymap.shapes_of(OBJECTIVES["CLIP"]), WORDS)
    open_clip.write_folder(model, tmp_path / "out")
    assert open_clip.FORMAT.difference(tmp_path / "out", model) < 1e-5
    _, prepare = package.create_model_from_pretrained(f"local-dir:{tmp_path / 'out'}")
    tokenize = package.get_tokenizer(f"local-dir:{tmp_path / 'out'}")
    np.testing.assert_array_equal(tokenize(["a healthy eye"]).numpy(), WORDS(["a healthy eye"]))
    theirs = prepare(Image.fromarray(photograph())).numpy().transpose(1, 2, 0)
    assert torch.is_grad_enabled() and grey_levels(theirs, model) <= 1.001


def test_timm_prepares_a_wide_photograph_as_fundax(tmp_path):
    pytest.importorskip("torch", reason="compares with timm, which needs PyTorch")
    package = pytest.importorskip("timm", reason="compares with timm")
    shapes = {f"image/{path}": shape for path, shape in vit.shapes_of(DINO).items()}
    model = a_model(OBJECTIVES["Encoder"], shapes)
    timm.write_folder(model, tmp_path / "out")
    program = package.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    facts = package.data.resolve_model_data_config(program)
    theirs = package.data.create_transform(**facts, is_training=False)(Image.fromarray(photograph()))
    assert grey_levels(theirs.numpy().transpose(1, 2, 0), model) <= 1.001


def photograph():
    """Not square, and smooth, as a photograph is, so that an interpolation of another rule would show at its edges."""
    y, x = np.mgrid[:48, :71]
    return np.stack([127 + 120 * np.sin(x / a + y / 9) for a in (5, 7, 11)], -1).astype(np.uint8)


def grey_levels(theirs, model):
    """The largest difference between a normalised image of another program and ours."""
    mean, std = (np.float32(getattr(model.objective, name)).reshape(-1, 3)[0] for name in ("mean", "std"))
    ours = preprocess(photograph(), model.preprocessing).astype(np.float32)
    return float(np.abs((theirs * std + mean) * 255 - ours).max())
