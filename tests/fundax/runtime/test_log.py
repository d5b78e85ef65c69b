import json
import logging

import pytest
from rich.table import Table

from fundax.runtime.log import Log, console, to_console
from fundax.types import UserError


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def opened(workdir, step=0, steps=10, **fields):
    return Log(workdir, step=step, steps=steps, batch=4, **fields)


def test_rows_are_flat_and_images_per_second_counts_the_steps_between(tmp_path, monkeypatch, capsys):
    clock, waited = iter([100.0, 104.0, 105.0]), iter([7.0, 8.0, 8.0])
    monkeypatch.setattr("fundax.runtime.log.time.monotonic", lambda: next(clock))
    with opened(tmp_path) as log:
        log.waited = lambda: next(waited)
        log.start_clock(1)
        log.train(3, {"loss": 2.0})
        log.evaluation(3, {"zero_shot/macro_auc": 0.5, "zero_shot/auc/normal": 0.25})
    first, second = rows(tmp_path)
    assert (
        first.items() >= {"step": 3, "train/loss": 2.0, "train/images_per_second": 2.0, "train/data_wait": 0.25}.items()
    )
    assert second.items() >= {"step": 3, "zero_shot/macro_auc": 0.5, "zero_shot/auc/normal": 0.25}.items()
    printed = capsys.readouterr().err
    assert "step 3/10  loss 2.0000  2 images/s  data wait 25%  eta 0:14" in printed
    assert "zero_shot/macro_auc 0.5000" in printed and "normal" not in printed


def test_a_resumed_run_drops_later_rows_and_a_torn_line(tmp_path):
    with opened(tmp_path) as log:
        for step in (2, 4, 6):
            log.row(step, {"train/loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'[2]\n{"train/loss": 1}\n{"step": "2"}\n\xff\n{"step": 7, "trai')
    with opened(tmp_path, step=4, restored=True) as log:
        log.row(6, {"train/loss": 2.0})
    assert [(row["step"], row["train/loss"]) for row in rows(tmp_path)] == [(2, 1.0), (4, 1.0), (6, 2.0)]


def test_a_fresh_run_starts_an_empty_file(tmp_path):
    with opened(tmp_path) as log:
        log.row(0, {"train/loss": 1.0})
    with opened(tmp_path):
        assert rows(tmp_path) == []


def test_a_repeated_evaluation_replaces_its_own_row_only(tmp_path):
    with opened(tmp_path) as log:
        log.row(5, {"train/loss": 1.0})
        log.evaluation(5, {"e/auc": 0.1})
        log.row(10, {"train/loss": 0.5})
    with opened(tmp_path, step=5, steps=0, restored=True) as log:
        log.evaluation(5, {"e/auc": 0.9})
    assert [row["step"] for row in rows(tmp_path)] == [5, 10, 5]
    assert rows(tmp_path)[-1]["e/auc"] == 0.9 and rows(tmp_path)[0]["train/loss"] == 1.0


def test_names_are_text_and_no_markup(tmp_path, capsys):
    with opened(tmp_path, step=9) as log:
        log.evaluation(9, {"e/drusen [small]": 0.5})
        log.evaluation(10, {"e/drusen [small]": 0.5, "e/[bold]": 1.0, "e/:eye:": 0.0})
    printed = capsys.readouterr().err
    assert printed.count("drusen [small]") == 2 and "[bold]" in printed and ":eye:" in printed


def test_a_message_is_one_line_of_the_console(capsys):
    loggers = [logging.getLogger(name) for name in ("fundax", "data_pipelines")]
    before = [(one.handlers[:], one.level, one.propagate) for one in loggers]
    to_console()
    logging.getLogger("data_pipelines.sources").warning("a [table] of %d words%s", 40, " word" * 40)
    loggers[0].info("an assumption")
    for one, (handlers, level, propagate) in zip(loggers, before, strict=True):
        one.handlers[:], one.level, one.propagate = handlers, level, propagate
    printed = capsys.readouterr().err.splitlines()
    assert printed == ["warning: a [table] of 40 words" + " word" * 40, "an assumption"]


def test_tensorboard_gets_the_rows(tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra fundax[tensorboard] is not installed")
    with opened(tmp_path, writers=("tensorboard",)) as log:
        log.row(1, {"train/loss": 1.0})
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes()


def test_an_unknown_writer_is_refused(tmp_path):
    with pytest.raises(UserError, match="expected tensorboard or wandb"):
        opened(tmp_path, writers=("tensorbord",))


def test_control_characters_of_names_do_not_reach_the_terminal():
    with (shown := console(width=100)).capture() as kept:
        table = Table("class \x1b[2J", title="[red]x")
        table.add_row("a\x1b]0;title\x07 \u202eb :eye: \ud800")
        shown.print(table)
        shown.print("plain [bold] \x9b31m")
    text = kept.get()
    assert (
        "\\u001b]0;title\\u0007 \\u202eb :eye: \\ud800" in text
        and "[red]x" in text
        and "plain [bold] \\u009b31m" in text
    )
    text.encode()
    assert not any(sign in text for sign in "\x07\x9b\u202e") and "\x1b[2J" not in text and "\x1b]0" not in text


def test_lines_that_are_no_rows_do_not_stop_a_resume(tmp_path):
    lines = [
        '{"step": 1, "train/loss": 1}',
        "[1]",
        "5",
        '{"loss": 1}',
        '{"step": "x"}',
        "\udcff{",
        '{"step": 2, "train/loss": 1}',
        '{"st',
    ]
    (tmp_path / "metrics.jsonl").write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    with Log(tmp_path, step=1, steps=3, batch=1, restored=True):
        pass
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == lines[:1]
