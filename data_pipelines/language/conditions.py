"""The names of the conditions, findings and biomarkers of synthetic patients."""

from __future__ import annotations

CONDITIONS = (
    "normal",
    "mild diabetic retinopathy",
    "moderate diabetic retinopathy",
    "severe diabetic retinopathy",
    "proliferative diabetic retinopathy",
    "diabetic macular oedema",
    "dry age-related macular degeneration",
    "neovascular age-related macular degeneration",
    "glaucoma",
    "retinal vein occlusion",
    "retinal detachment",
    "pathologic myopia",
    "macular hole",
    "cataract",
)


PROMPTS = {
    "en": ("normal fundus", *CONDITIONS[1:]),
    "zh": (
        "正常眼底",
        "轻度糖尿病视网膜病变",
        "中度糖尿病视网膜病变",
        "重度糖尿病视网膜病变",
        "增殖期糖尿病视网膜病变",
        "糖尿病性黄斑水肿",
        "干性年龄相关性黄斑变性",
        "新生血管性年龄相关性黄斑变性",
        "青光眼",
        "视网膜静脉阻塞",
        "视网膜脱离",
        "病理性近视",
        "黄斑裂孔",
        "白内障",
    ),
}


# A lesion's index in this tuple, plus four, is its class in a mask; see MASK_CLASSES.
LESIONS = (
    "microaneurysm",
    "haemorrhage",
    "flame haemorrhage",
    "hard exudate",
    "cotton-wool spot",
    "drusen",
    "atrophy",
    "neovascularisation",
    "preretinal haemorrhage",
    "subretinal haemorrhage",
    "choroidal neovascularisation",
    "macular oedema",
    "macular hole",
    "detached retina",
    "nerve fibre defect",
    "peripapillary atrophy",
)


MASK_CLASSES = ("background", "vessel", "disc", "cup", *LESIONS)


LAYERS = (
    "vitreous",
    "nerve fibres",
    "inner retina",
    "outer retina",
    "photoreceptors",
    "pigment epithelium",
    "choroid",
    "sclera",
    "fluid",
)


# Findings in reports. `findings` of records and the columns of multi-label targets use these names.
FINDINGS = (
    *LESIONS[:13],
    "retinal detachment",
    "nerve fibre defect",
    "peripapillary atrophy",
    "enlarged cup",
    "disc pallor",
    "disc swelling",
    "tessellated fundus",
    "media opacity",
    "venous dilation",
)


BIOMARKERS = ("age", "systolic", "hba1c", "axial_length")  # years, mmHg, %, mm


AGES = {
    "normal": (22, 78),
    "mild diabetic retinopathy": (35, 72),
    "moderate diabetic retinopathy": (38, 76),
    "severe diabetic retinopathy": (38, 76),
    "proliferative diabetic retinopathy": (35, 74),
    "diabetic macular oedema": (42, 78),
    "dry age-related macular degeneration": (58, 88),
    "neovascular age-related macular degeneration": (62, 90),
    "glaucoma": (42, 84),
    "retinal vein occlusion": (50, 84),
    "retinal detachment": (28, 72),
    "pathologic myopia": (32, 72),
    "macular hole": (55, 80),
    "cataract": (60, 90),
}


RETINOPATHY = CONDITIONS[1:5]
GRADES = ("none", "mild", "moderate", "severe", "proliferative")


def grade_of(condition: str, load: float) -> int:
    """The grade of an eye: 0 if normal, 1-4 for diabetic retinopathy by name, 1-3 by disease load otherwise."""
    if condition == "normal":
        return 0
    if condition in RETINOPATHY:
        return 1 + RETINOPATHY.index(condition)
    return 1 + min(2, int(load * 3))


def condition_at(condition: str, load: float) -> str:
    """The condition of an eye at a disease load: 1 to 5 for diabetic retinopathy, and 0 or more otherwise."""
    if condition in RETINOPATHY:
        return RETINOPATHY[min(3, max(0, int(load) - 1))]
    if condition == "dry age-related macular degeneration" and load >= 1:
        return "neovascular age-related macular degeneration"
    return condition
