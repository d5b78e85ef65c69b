"""A Dinov2Model given smaller photographs than it was trained on computes what transformers computes."""

import numpy as np
import pytest

from data_pipelines.transforms.steps import preprocess
from fundax.interop import load


def test_features_at_the_size_of_the_processor(tmp_path):
    torch = pytest.importorskip("torch", reason="compares with transformers' Dinov2Model")
    from transformers import Dinov2Config, Dinov2Model
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    torch.manual_seed(0)
    sizes = {"image_size": 32, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    program = Dinov2Model(Dinov2Config(**sizes)).eval()
    process = BitImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16})
    program.save_pretrained(tmp_path)
    process.save_pretrained(tmp_path)
    picture = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    with torch.no_grad():
        theirs = program(**process(picture, return_tensors="pt")).pooler_output[0].numpy()
    model = load(tmp_path)
    image = preprocess(picture, model.preprocessing)[None]
    ours = np.asarray(model.objective.forward(model.params, {}, {"image": image})["image_raw"])[0]
    assert model.objective.image.image_size == 16
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
