"""Negation and uncertainty: decide whether a finding in a text is present, absent or uncertain.

A cue is a word of negation or doubt. It applies to the findings after it (no, possible, 未见), before it (is not seen,
待排), or on its nearer side (absent, suspected, 排除). Its scope is the clause, continues over the commas of a list, and
ends at words such as "but". This is NegEx (Chapman et al. 2001) with the cues of eye reports in English and Chinese."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import Literal, NamedTuple

from data_pipelines.language.phrases import SEPARATORS, Match, Token

Status = Literal["present", "absent", "uncertain"]


class Cue(NamedTuple):
    """A word that sets the status of the findings in its scope.

    `reach` is the direction of the scope: "after", "before", "nearer" or "both". "stop" ends the scope of other cues, and
    "none" is a phrase that contains a cue but negates nothing.
    """

    status: Status
    reach: str


_SEEN = (
    *("seen", "present", "visible", "found", "detected", "observed", "noted", "identified", "evident", "appreciated"),
    *("demonstrated", "apparent", "visualized", "detectable", "discernible", "recognized", "identifiable", "confirmed"),
)
_NOT = ("not", "not clearly", "not definitely", "not currently", "not be", "never", "no longer", "n't")

_WORDS: dict[tuple[Status, str], tuple[str, ...]] = {
    ("absent", "after"): (
        *("no", "not", "without", "w/o", "free of", "absence of", "lack of", "lacks", "lacking", "devoid of", "nor"),
        *("neither", "never", "negative for", "clear of", "denies", "denied", "rather than", "instead of", "fails to show"),
        *("no evidence of", "not consistent with", "not compatible with", "inconsistent with", "not associated with"),
        *("does not show", "do not show", "did not show", "not show", "not reveal", "not demonstrate", "not exhibit"),
        *("resolution of", "excludes", "family history of", "status post", "s/p"),
        *("unlike", "to prevent", "prevention of"),
        *("未见", "未见明显", "未见到", "未发现", "未发现明显", "未查见", "未查及", "未及", "未显示", "未探及", "未出现"),
        *("未提示", "没有", "无", "无明显", "无明确", "否认", "不伴", "不伴有", "未伴", "未伴有", "未合并", "不合并"),
        *("不存在", "不考虑", "暂不考虑", "除外", "非", "不是", "并非", "不符合", "不支持", "未累及"),
    ),
    ("absent", "before"): (
        *(f"{negation} {verb}" for negation, verb in product(_NOT, _SEEN)),
        *("cannot be seen", "cannot be identified", "cannot be detected", "could not be seen", "nowhere", "is gone"),
        *("could not be detected", "could not be identified", "cannot be found", "could not be found", "undetectable"),
        *("has resolved", "have resolved", "resolved", "has regressed", "have regressed", "disappeared", "reabsorbed"),
        *("has cleared", "have cleared", "no more", "is nil"),
        *("已吸收", "已消退", "已消失", "完全吸收", "完全消退", "吸收", "消退", "消失", "已愈", "不明显", "阴性"),
        *("可能性小", "已复位"),
        *("(-)", "不可见", "未可见", "均未见", "家族史", "手术史", "术后"),
    ),
    ("absent", "nearer"): ("absent", "ruled out", "excluded", "negative", "nil", "none", "unlikely", "no longer", "排除", "已排除"),
    ("uncertain", "after"): (
        *("possibly", "probably", "suspicious for", "suspicion of", "suspicious of", "query", "concern for", "consider"),
        *("concerning for", "may represent", "may be", "may have", "might be", "might represent", "could be"),
        *("could represent", "cannot exclude", "cannot rule out", "can not exclude", "can not rule out", "could not exclude"),
        *("not exclude", "not rule out", "rule out", "to rule out", "r/o", "to exclude", "differential diagnosis"),
        *("differential includes", "screening for", "screened for", "at risk of", "at risk for", "risk of", "risk for"),
        *("risk factor for", "monitor for", "watch for", "check for", "evaluate for", "evaluation for", "look for"),
        *("assess for", "questionable", "equivocal for", "if", "whether", "history of", "past history of", "hx of", "h/o"),
        *("疑", "怀疑", "疑为", "可疑为", "可能为", "可能是", "可能存在", "是否", "鉴别", "警惕", "预防", "筛查", "高危"),
    ),
    ("uncertain", "before"): (
        *(f"{modal} be {verb}" for modal, verb in product(("may", "might", "could"), _SEEN)),
        *("cannot be excluded", "cannot be ruled out", "can not be excluded", "can not be ruled out", "not be excluded"),
        *("could not be excluded", "could not be ruled out", "not ruled out", "not excluded", "to be excluded", "suspect"),
        *("to be ruled out", "be ruled out", "be excluded", "not certain", "is uncertain", "is unclear", "in question"),
        *("待排", "待排除", "待除外", "待查", "待定", "可能性大", "可能性", "可能大", "史", "病史", "既往史"),
    ),
    ("uncertain", "nearer"): (
        *("suspected", "possible", "probable", "likely", "questioned", "可能", "可疑", "疑似", "不除外", "不能除外"),
        *("不排除", "不能排除", "不完全排除", "不能完全排除", "尚不能排除"),
    ),
    ("uncertain", "both"): ("versus", "vs", "抑或"),
    ("present", "stop"): (
        *("but", "with", "except", "apart from", "although", "though", "despite", "however", "yet", "besides", "other than"),
        *("whereas", "while", "there is", "there are", "there was", "there were", "show", "showed", "showing", "reveal"),
        *("revealed", "demonstrate", "exhibit", "exhibited", "presents", "presented", "presenting", "due to", "owing to"),
        *("secondary to", "because of", "caused by"),
        *("因", "由于", "但", "偶见", "除", "仅见", "可见", "另见", "尚可见", "余", "然而"),
    ),
    # phrases that contain a negation but negate nothing
    ("present", "none"): (
        *("not only", "not just", "no change", "no significant change", "no change in", "no increase", "no increase in"),
        *("no significant change in", "no interval change", "no interval change in", "no further", "no progression of"),
        *("without change", "without progression of", "no worsening of", "no improvement", "not resolved", "not changed"),
        *("not yet resolved", "not increased", "not worse", "without treatment", "no treatment", "no doubt", "with no change"),
        *("无变化", "无明显变化", "未见变化", "未见明显变化", "无明显改变", "未见吸收", "未吸收", "未完全吸收", "未见消退"),
        *("未消退", "未见好转", "无好转", "未见加重", "无加重", "未见进展", "较前无变化", "较前无明显变化", "部分吸收"),
        *("未见明显吸收", "吸收不全", "不仅", "不但", "非增殖", "非增生", "吸收期", "逐渐吸收", "无灌注", "无赤光", "较前吸收"),
    ),
}  # fmt: skip
CUES = tuple((word, Cue(status, reach)) for (status, reach), words in _WORDS.items() for word in words)

_LIST_END = frozenset(("or", "nor", "或"))
_LIST_START = frozenset(("and", "or", "nor", "及", "和", "或"))
_LIST_WORDS = _LIST_END | frozenset(("and", "any", "other", "retinal", "further"))
_BEFORE_VERB = frozenset(
    (
        *("is", "are", "was", "were", "been", "be", "also", "now", "all", "both", "still", "as", "being", "remain"),
        *"均已亦也尚仍为被皆都",
    )
)
_NEARBY = 5  # the end of a list is searched for in this many clauses


class _Clause(NamedTuple):
    """The tokens [start, end) before a separator.

    `last_or` is the position of the last "or", or -1. `bare` clauses have only findings or a single word, as the items of
    a list do.
    """

    start: int
    end: int
    separator: str
    matches: tuple[Match, ...]
    findings: tuple[Match, ...]
    last_or: int
    bare: bool


def statuses(text: Sequence[Token], matches: Sequence[Match]) -> dict[int, Status]:
    """The status of each finding in `matches`, by the position of its first token. The value of a cue's match is a Cue."""
    clauses = list(_clauses(text, matches))
    status_of: dict[int, Status] = {m.start: "present" for m in matches if _cue(m) is None}
    ends = {m.end for m in matches if _cue(m) is None}
    _forwards(text, clauses, ends, status_of)
    _backwards(text, clauses, ends, status_of)
    _answers(clauses, status_of)
    _question_marks(text, clauses, status_of)
    return status_of


def _forwards(text: Sequence[Token], clauses: Sequence[_Clause], ends: set[int], status_of: dict[int, Status]) -> None:
    status: Status = "present"
    left = 0  # number of further clauses that a list reaches over
    for k, clause in enumerate(clauses):
        status, left = (status, left - 1) if left > 0 else ("present", 0)
        for match in clause.matches:
            cue = _cue(match)
            if cue is None:
                _set(status_of, match, status)
            elif cue.reach == "stop":
                status, left = "present", 0
            elif cue.reach in ("after", "both") or (cue.reach == "nearer" and not _follows(text, clause, match, ends)):
                status = cue.status if status != "absent" else status
                left = _list_length(clauses, k, match.end)


def _backwards(text: Sequence[Token], clauses: Sequence[_Clause], ends: set[int], status_of: dict[int, Status]) -> None:
    status: Status = "present"
    listed = False  # the clause after this one is the end or an item of a list: "A, B, and C are not seen"
    for clause in reversed(clauses):
        if not (listed and clause.separator == ","):
            status = "present"
        for match in reversed(clause.matches):
            cue = _cue(match)
            if cue is None:
                _set(status_of, match, status)
            elif cue.reach == "stop":
                status = "present"
            elif (
                cue.reach in ("before", "both")
                or (cue.reach == "after" and cue.status != "present" and match.end == clause.end)
                or (cue.reach == "nearer" and _follows(text, clause, match, ends))
            ):
                status = cue.status
        starts_list = clause.start < len(text) and text[clause.start].text in _LIST_START
        listed = status != "present" and (starts_list or (listed and clause.bare))


def _answers(clauses: Sequence[_Clause], status_of: dict[int, Status]) -> None:
    """Apply a cue after a colon to the list before it, as in "Drusen, exudates: none"."""
    for k, (clause, answer) in enumerate(pairwise(clauses)):
        if clause.separator == ":" and answer.matches and not answer.findings:
            cue = _cue(answer.matches[0])
            if cue is not None and cue.status != "present" and answer.matches[0].start == answer.start:
                first = k
                while first and k - first < _NEARBY and clauses[first - 1].separator == "," and clauses[first - 1].bare:
                    first -= 1
                for match in (match for item in clauses[first : k + 1] for match in item.findings):
                    _set(status_of, match, cue.status)


def _question_marks(text: Sequence[Token], clauses: Sequence[_Clause], status_of: dict[int, Status]) -> None:
    """Mark a finding as uncertain in "?glaucoma" and "glaucoma?"."""
    for clause, after in pairwise(clauses):
        if clause.separator != "?":
            continue
        sign = clause.end
        joined = clause.end > clause.start and text[sign].close
        if sign + 1 < len(text) and text[sign + 1].close and not joined:
            named = after.findings[:1]
        else:
            named = clause.findings[-1:]
        for match in named:
            _set(status_of, match, "uncertain")


def _set(status_of: dict[int, Status], match: Match, status: Status) -> None:
    if status != "present" and status_of[match.start] != "absent":
        status_of[match.start] = status


def _cue(match: Match) -> Cue | None:
    value = match.values[0]
    return value if isinstance(value, Cue) else None


def _follows(text: Sequence[Token], clause: _Clause, match: Match, ends: set[int]) -> bool:
    """Whether a cue follows a finding or a form of "to be", so that it applies to the words before it."""
    place = match.start - 1
    while place >= max(clause.start, match.start - 4) and _between(text[place].text):
        place -= 1
    return place < match.start - 1 or match.start in ends


def _between(word: str) -> bool:
    return word.endswith("ly") or word in _BEFORE_VERB


def _list_length(clauses: Sequence[_Clause], k: int, at: int) -> int:
    """The number of clauses after the k-th that belong to the same list, as in "no A, B or C" and "no A, B, C"."""
    if clauses[k].last_or >= at:
        return 0
    items, n = 0, 0
    while n < _NEARBY and k + n + 1 < len(clauses) and clauses[k + n].separator == ",":
        n += 1
        if clauses[k + n].last_or >= 0:
            return n
        items = n if items == n - 1 and clauses[k + n].bare else items
    ended = clauses[k + items].separator != ","
    return items if items > 1 and ended else 0


def _clauses(text: Sequence[Token], matches: Sequence[Match]) -> Iterator[_Clause]:
    start, first, last_or = 0, 0, -1
    for place in range(len(text) + 1):
        word = text[place].text if place < len(text) else ""
        last_or = place if word in _LIST_END else last_or
        if word and word not in SEPARATORS:
            continue
        last = first
        while last < len(matches) and matches[last].start < place:
            last += 1
        if first < last and matches[last - 1].end > place:  # the separator is part of a phrase
            continue
        inside = tuple(matches[first:last])
        findings = tuple(match for match in inside if _cue(match) is None)
        yield _Clause(start, place, word, inside, findings, last_or, _bare(text, start, place, inside, findings))
        start, first, last_or = place + 1, last, -1


def _bare(text: Sequence[Token], start: int, end: int, matches: tuple[Match, ...], findings: tuple[Match, ...]) -> bool:
    if not findings:
        return end - start == 1 and not matches
    inside = {place for match in findings for place in range(match.start, match.end)}
    return all(text[place].text in _LIST_WORDS for place in range(start, end) if place not in inside)
