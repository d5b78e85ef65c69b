"""Reports and captions from the findings of eyes, in English or Chinese, with varied wording and negations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines.language.conditions import FINDINGS, LESIONS
from data_pipelines.language.wording import (
    ABSENT,
    HEALTHY,
    HEALTHY_BY_MODALITY,
    IMPRESSIONS,
    MODALITY_SIGNS,
    SIGNS,
    UNSEEN,
)
from data_pipelines.synthetic.anatomy import Eye

_EN_SIDE = {"right": ("Right eye", "OD", "In the right eye"), "left": ("Left eye", "OS", "In the left eye")}
_ZH_SIDE = {"right": ("右眼", "右眼（OD）"), "left": ("左眼", "左眼（OS）")}

_EN_VIEW = {
    "CFP": ("fundus photograph", "colour fundus photograph", "retinal photograph"),
    "UWF": ("ultra-wide-field image", "wide-field fundus image"),
    "FFA": ("fluorescein angiogram", "fluorescein angiography"),
    "OCT": ("OCT scan", "optical coherence tomography"),
}


_ZH_VIEW = {
    "CFP": ("眼底彩照", "彩色眼底照相"),
    "UWF": ("超广角眼底像", "广角眼底照相"),
    "FFA": ("荧光素眼底血管造影", "FFA图像"),
    "OCT": ("OCT扫描", "光学相干断层扫描"),
}


def findings_of(eye: Eye) -> tuple[str, ...]:
    """The findings that an examiner would report, in the order of conditions.FINDINGS."""
    present = {k for k in eye.lesions if k in LESIONS}
    if "detached retina" in present:
        present = (present - {"detached retina"}) | {"retinal detachment"}
    extra = {
        "neovascularisation": len(eye.fronds) > 0,
        "enlarged cup": eye.cup >= 0.62,
        "disc pallor": eye.pallor >= 0.4,
        "disc swelling": eye.swelling >= 0.4,
        "tessellated fundus": eye.tessellation >= 0.5,
        "media opacity": eye.haze >= 0.25,
        "venous dilation": eye.traits.get("dilation", 0.0) >= 0.4,
    }
    present |= {k for k, visible in extra.items() if visible}
    return tuple(k for k in FINDINGS if k in present)


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.random() * len(options))]


def _some(items: Sequence[str], most: int, rng: np.random.Generator) -> list[str]:
    """At most `most` random items, in their original order."""
    if len(items) <= most:
        return list(items)
    order = sorted(range(len(items)), key=list(rng.random(len(items))).__getitem__)
    return [items[k] for k in sorted(order[:most])]


def _join(items: Sequence[str], language: str) -> str:
    if language == "zh":
        return "、".join(items)
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def _signs(eye: Eye, modality: str, language: str, rng: np.random.Generator, most: int = 4) -> list[str]:
    """Phrases for at most `most` findings. Angiograms and OCT scans use MODALITY_SIGNS where there are any."""
    findings = findings_of(eye)
    specific = MODALITY_SIGNS.get(modality, {})
    phrases = [specific[k][language == "zh"] for k in findings if k in specific]
    if phrases:
        return _some(phrases, most, rng)
    if modality == "OCT" and findings:
        return [_pick(UNSEEN[language], rng)]
    phrases = [_pick(SIGNS[language][k], rng).format(cup=f"{eye.cup:.1f}") for k in findings]
    return _some(phrases, most, rng)


def _absent(eye: Eye, language: str, rng: np.random.Generator) -> str:
    """A phrase which states that two findings are absent."""
    missing = [k for k in ABSENT[language] if k not in findings_of(eye)]
    # "no haemorrhage" would be wrong with any kind of haemorrhage
    if any("haemorrhage" in k for k in findings_of(eye)) and "haemorrhage" in missing:
        missing.remove("haemorrhage")
    if "choroidal neovascularisation" in findings_of(eye) and "neovascularisation" in missing:
        missing.remove("neovascularisation")
    words = [ABSENT[language][k] for k in _some(missing, 2, rng)]
    if language == "zh":
        return _pick(("未见{}", "无{}", "未发现{}"), rng).format("及".join(words))
    return _pick(("no {}", "without {}", "free of {}", "{} not seen", "no sign of {}"), rng).format(" or ".join(words))


def _statement(eye: Eye, modality: str, language: str, rng: np.random.Generator) -> str:
    """The impression, signs and sometimes a negation for one eye, without naming the side."""
    name = _pick(IMPRESSIONS[language][eye.condition], rng)
    signs = _signs(eye, modality, language, rng)
    if eye.condition == "normal":
        text = _healthy(eye, modality, name, signs, language, rng)
    elif signs:
        text = _pick(_FORMS[language], rng).format(name=name, signs=_join(signs, language))
    else:
        text = name
    if rng.random() < 0.45:
        text += ("，" if language == "zh" else ", ") + _absent(eye, language, rng)
    return text


_FORMS = {
    "en": (
        "{name} with {signs}",
        "{name}, {signs}",
        "{name}; signs are {signs}",
        "{name} marked by {signs}",
        "{signs}, in keeping with {name}",
    ),
    "zh": ("{name}，可见{signs}", "{name}，见{signs}", "{name}，伴{signs}", "{signs}，符合{name}", "{name}：{signs}"),
}


def _healthy(eye: Eye, modality: str, name: str, signs: list[str], language: str, rng: np.random.Generator) -> str:
    detail = _pick(HEALTHY_BY_MODALITY.get(modality, HEALTHY)[language], rng).format(cup=f"{eye.cup:.1f}")
    aside = _join(signs[:2], language) if signs else ""
    if language == "zh":
        return f"{name}，{detail}" + (f"，偶见{aside}" if aside else "")
    return f"{name}, {detail}" + (f", apart from {aside}" if aside else "")


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def caption(eye: Eye, modality: str, language: str, rng: np.random.Generator) -> str:
    """Describe one image of one eye in one or two sentences; `language` is "en" or "zh"."""
    text = _statement(eye, modality, language, rng)
    if language == "zh":
        view, side = _pick(_ZH_VIEW[modality], rng), _pick(_ZH_SIDE[eye.side], rng)
        return _pick(("{t}。", "{s}{v}：{t}。", "{v}，{t}。", "{s}：{t}。"), rng).format(t=text, v=view, s=side)
    view, side = _pick(_EN_VIEW[modality], rng), eye.side
    forms = ("{t}", "{v} of a {s} eye: {t}", "{s} eye, {t}", "{v} showing {t}", "{t}; {v}")
    return _sentence(_pick(forms, rng).format(t=text, v=view, s=side))


def report(eyes: Mapping[str, Eye], modalities: Sequence[str], language: str, rng: np.random.Generator) -> str:
    """Write the report of a patient: a statement for each eye, or a shared one if both have the same condition."""
    sides = ("right", "left") if rng.random() < 0.8 else ("left", "right")
    modality = modalities[int(rng.random() * len(modalities))]
    present = [s for s in sides if s in eyes]
    alike = len(present) == 2 and eyes["left"].condition == eyes["right"].condition
    if alike and rng.random() < 0.25:
        return _both(eyes[present[0]], modality, language, rng)
    style = int(rng.random() * 3)
    out = []
    for side in present:
        text = _statement(eyes[side], modality, language, rng)
        if language == "zh":
            out.append(f"{_ZH_SIDE[side][style % 2]}：{text}。")
        else:
            out.append(_EN_SIDE[side][style] + (", " if style == 2 else ": ") + text + ".")
    return ("" if language == "zh" else " ").join(out)


def _both(eye: Eye, modality: str, language: str, rng: np.random.Generator) -> str:
    text = _statement(eye, modality, language, rng)
    if language == "zh":
        return f"{_pick(('双眼', '双眼均见'), rng)}：{text}。"
    return f"{_pick(('Both eyes', 'OU', 'Bilaterally'), rng)}: {text}."
