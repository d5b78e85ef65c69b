"""Prompts of classes: experts' descriptions in the template of the modality, or the user's wording."""

import pytest

from data_pipelines.language.prompts import prompts_of
from data_pipelines.records import DataError


def test_the_modality_is_in_every_prompt():
    for modality, word in (("CFP", "fundus photograph"), ("FFA", "fluorescein angiogram"), ("UWF", "ultra-widefield")):
        prompts = prompts_of("glaucoma", modality)
        assert len(prompts) > 2
        assert all(word in sentence for sentence in prompts)
    assert prompts_of("retinal detachment", "CFP")[-1].endswith("retina detachment")  # the name experts know it by
    assert prompts_of("blue haze", "SLIT_LAMP") == ("A slit lamp photograph of blue haze",)
    assert prompts_of("glaucoma", "UWF", "{modality}: {text}") == ("ultra-widefield fundus image: glaucoma",)


def test_a_wording_that_cannot_work_is_named():
    with pytest.raises(DataError, match=r"only fields are \{text\} and \{modality\}"):
        prompts_of("glaucoma", "CFP", "{name}")
    with pytest.raises(DataError, match="the same prompt"):
        prompts_of("glaucoma", "CFP", "an eye")
