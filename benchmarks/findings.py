"""Measure precision and recall of the findings extracted from reports, on hand-labelled sentences.

    python benchmarks/findings.py
    python benchmarks/findings.py --sentences my_reports.tsv
    python benchmarks/findings.py --reports csdi/labels.csv --column text_en     # unlabelled reports: counts only

A file of sentences has the columns present (findings, separated by "; ") and text, separated by tabs.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from record import Table, record

sys.path.insert(0, str(Path(__file__).parent.parent))

from data_pipelines.language.findings import vocabulary
from data_pipelines.records import DataError

MARKED = Path(__file__).resolve().parent.parent / "tests" / "data_pipelines" / "language"
LANGUAGES = {"English": MARKED / "marked_en.tsv", "Chinese": MARKED / "marked_zh.tsv"}
Sentence = tuple[str, frozenset[str]]


def read(path: Path) -> list[Sentence]:
    """Read sentences with the findings that they state to be present. Raises DataError naming an invalid line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    out = []
    for number, line in enumerate(lines[1:], start=2):
        present, tab, text = line.partition("\t")
        if not tab or not text:
            raise DataError(f"{path} line {number}: {line[:60]!r}; expected findings, a tab and a text")
        out.append((text, frozenset(name.strip() for name in present.split(";") if name.strip())))
    return out


def count(sentences: Iterable[Sentence]) -> dict[str, tuple[int, int, int]]:
    """The numbers of sentences in which each finding was extracted correctly, extracted wrongly, and missed."""
    extract, counts = vocabulary(), Counter()
    for text, labelled in sentences:
        extracted = extract(text)
        for kind, names in enumerate((extracted & labelled, extracted - labelled, labelled - extracted)):
            counts.update((name, kind) for name in names)
    names = sorted({name for name, _ in counts})
    return {name: (counts[name, 0], counts[name, 1], counts[name, 2]) for name in names}


def table(title: str, sentences: Sequence[Sentence]) -> Table:
    """Precision and recall of each finding and of all findings."""
    counts = count(sentences)
    total = tuple(sum(column) for column in zip(*counts.values(), strict=True)) if counts else (0, 0, 0)
    rows = [_row(name, counts[name]) for name in counts] + [_row("all", total)]
    return Table(
        f"{title}: {len(sentences)} sentences", ("finding", "right", "wrong", "missed", "precision", "recall"), rows
    )


def counted(path: Path, column: str) -> Table:
    """The number of reports in a column of a CSV file from which each finding is extracted. Raises DataError without it."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or column not in rows[0]:
        raise DataError(f"{path}: no column {column!r}; the columns are {', '.join(rows[0] if rows else ())}")
    extract = vocabulary()
    found = Counter(name for row in rows if row[column] for name in extract(row[column]))
    total = sum(bool(row[column]) for row in rows)
    return Table(
        f"{path.name}, {column}: {total} reports", ("finding", "reports"), [(k, str(n)) for k, n in found.most_common()]
    )


def _row(name: str, counts: Sequence[int]) -> tuple[str, ...]:
    right, wrong, missed = counts
    shares = [f"{right / total:.3f}" if total else "–" for total in (right + wrong, right + missed)]
    return (name, *map(str, counts), *shares)


def main() -> None:
    """Score the bundled sentences or a file, or count findings in reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--sentences", type=Path, help="tab-separated file with the columns present and text (default: bundled files)"
    )
    parser.add_argument("--reports", type=Path, help="CSV file with reports; counts the findings extracted from them")
    parser.add_argument("--column", default="text", help="column of the reports")
    options = parser.parse_args()
    given = options.sentences
    if options.reports:
        record("findings", [counted(options.reports, options.column)], keep=False)
        return
    files = {given.name: given} if given else LANGUAGES
    record("findings", [table(name, read(path)) for name, path in files.items()], keep=given is None)


if __name__ == "__main__":
    main()
