"""Logging: console progress, metrics.jsonl, TensorBoard and Weights & Biases."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fundax.types import UserError

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Writer(Protocol):
    """Another destination of the rows of metrics.jsonl."""

    def write(self, step: int, row: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class Log:
    """Writes rows of named floats with their step. Only process 0 writes.

    A run that resumes from `step` writes the later rows again, so these are removed first. A run that was not `restored`
    starts an empty file. If training is complete (`step` >= `steps`), rows are only appended.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        step: int,
        steps: int,
        batch: int,
        restored: bool = False,
        writers: Sequence[str] = (),
    ) -> None:
        self._leads = jax.process_index() == 0
        self._batch, self._steps = batch, steps
        self._since: tuple[int, float, float] | None = None  # step, time, seconds waited for data
        self.waited: Callable[[], float] = lambda: 0.0  # seconds waited for data so far
        self.speed: Callable[[float], Mapping[str, float]] = lambda seconds: {}  # results by the seconds of a step
        self._writers: list[Writer] = []
        self.console = console(quiet=not self._leads)
        if not self._leads:
            return
        folder = Path(workdir)
        self._path = folder / "metrics.jsonl"
        self._writers = [_writer(name, folder, step) for name in writers]
        if not restored or step < steps:
            _keep_rows(self._path, lambda row: restored and row["step"] <= step)
        self._file = self._path.open("a", encoding="utf-8")
        self._bar = _progress(self.console) if self.console.is_terminal and steps else None
        if self._bar:
            self._task = self._bar.add_task("train", total=steps, completed=step, loss="-", speed="-", wait="-")
            self._bar.start()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self._leads:
            if self._bar:
                self._bar.stop()
            self._file.close()
            for writer in self._writers:
                writer.close()

    def info(self, text: str) -> None:
        """Print one line to the console."""
        self.console.print(text, highlight=False)

    def start_clock(self, step: int) -> None:
        """Start measuring images/s at this step; call it after a pause such as compilation, evaluation or saving."""
        self._since = (step, time.monotonic(), self.waited())

    def train(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write training metrics, with images/s, speed and the share of time spent waiting for data; show progress."""
        row = {f"train/{name}": float(value) for name, value in metrics.items()}
        before = self._since
        self.start_clock(step)
        if before and self._since and step > before[0]:
            seconds = self._since[1] - before[1]
            row["train/images_per_second"] = self._batch * (step - before[0]) / seconds
            row["train/data_wait"] = min((self._since[2] - before[2]) / seconds, 1.0)
            row |= {f"train/{name}": value for name, value in self.speed(seconds / (step - before[0])).items()}
        self.row(step, row)
        self._show(step, row)

    def row(self, step: int, row: Mapping[str, float]) -> None:
        """Append one line to metrics.jsonl and flush it."""
        if not self._leads:
            return
        flat = {"step": step, "time": round(time.time(), 3), **{k: float(v) for k, v in row.items()}}
        self._file.write(json.dumps(flat) + "\n")
        self._file.flush()
        for writer in self._writers:
            writer.write(step, row)

    def evaluation(self, step: int, row: Mapping[str, float]) -> None:
        """Write evaluation results, replacing earlier ones of the same step; print a line, or a table at the end."""
        if self._leads and row:
            self._file.close()
            _keep_rows(self._path, lambda old: old["step"] != step or not (old.keys() & row.keys()))
            self._file = self._path.open("a", encoding="utf-8")
        if row:
            self.row(step, row)
        if row and step >= self._steps:
            self.table(f"step {step}", row)
        elif row:
            self.info(f"step {step}  " + "  ".join(f"{name} {value:.4f}" for name, value in _summary(row).items()))
        if self._since:
            self.start_clock(step)

    def table(self, title: str, row: Mapping[str, float]) -> None:
        """Print a table of metrics."""
        table = Table("metric", "value", title=title, title_justify="left")
        for name, value in _summary(row).items():
            table.add_row(name, f"{value:.4f}")
        self.console.print(table)

    def _show(self, step: int, row: Mapping[str, float]) -> None:
        if not self._leads:
            return
        rate = row.get("train/images_per_second")
        loss, speed = f"{row['train/loss']:.4f}", f"{rate:.0f}" if rate else "-"
        wait = f"{row['train/data_wait']:.0%}" if rate else "-"
        if self._bar:
            self._bar.update(self._task, completed=step, loss=loss, speed=speed, wait=wait)
        else:
            seconds = int((self._steps - step) * self._batch / rate) if rate else 0
            timing = f"  {speed} images/s  data wait {wait}{_of_chip(row)}" if rate else ""
            left = f"  eta {seconds // 60}:{seconds % 60:02d}" if rate else ""
            self.info(f"step {step}/{self._steps}  loss {loss}{timing}{left}")


def _of_chip(row: Mapping[str, float]) -> str:
    return f"  MFU {row['train/mfu']:.0%}" if "train/mfu" in row else ""


def say(text: str) -> None:
    """Print one line to the console, on process 0."""
    console(quiet=bool(jax.process_index())).print(text, highlight=False)


class _PlainConsole(Console):
    """Shows names of classes and files as they are, also where they look like rich's markup or steer a terminal."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


def console(**options: Any) -> Console:
    """A console, by default of stderr; all output with names from files goes through one. `options` are rich's."""
    return _PlainConsole(**{"stderr": True, "soft_wrap": True, "markup": False, "emoji": False, **options})


def printable(text: str) -> str:
    """Escape control characters, bidirectional overrides and lone surrogates in a text."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _summary(row: Mapping[str, float]) -> dict[str, float]:
    """The metrics without those of single classes, which are named eval/metric/class."""
    return {name: value for name, value in row.items() if name.count("/") < 2}


def _keep_rows(path: Path, keep: Callable[[Mapping[str, Any]], bool]) -> None:
    """Rewrite a metrics file with the rows to keep. Incomplete lines, which a crash may leave, are removed."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = [(line, _parsed(line)) for line in lines]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line, row in rows if row and keep(row)), encoding="utf-8")
    os.replace(temporary, path)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int | float) else None


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}  {task.fields[speed]} images/s  data wait {task.fields[wait]}"),
        TimeRemainingColumn(),
        console=console,
    )


def to_console(level: int = logging.INFO) -> None:
    """Show the log messages of both packages on the console, each in one line; for command-line programs."""
    handler = _Lines()
    for name in ("fundax", "data_pipelines"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False  # the root logger would print each message again


class _Lines(logging.Handler):
    """A log handler that prints one line per message. It does not use JAX, which may have to start later."""

    def emit(self, record: logging.LogRecord) -> None:
        warns = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        console().print(warns + " ".join(self.format(record).split()), highlight=False)


def _writer(name: str, folder: Path, step: int) -> Writer:
    if name == "tensorboard":
        return _TensorBoard(folder, step)
    if name == "wandb":
        return _WandB(folder)
    raise UserError(f"writer {name!r} is unknown; expected tensorboard or wandb")


class _TensorBoard:
    def __init__(self, folder: Path, step: int) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise UserError("the writer tensorboard needs tensorboardX: pip install -e '.[tensorboard]'") from None
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, step: int, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, folder: Path) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError("the writer wandb needs wandb: pip install -e '.[wandb]'") from None
        # runs of one name in different folders are different runs
        place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
        self._run: Any = wandb.init(dir=str(folder), name=folder.name, id=f"{folder.name}-{place}", resume="allow")

    def write(self, step: int, row: Mapping[str, float]) -> None:
        self._run.log(dict(row), step=step)

    def close(self) -> None:
        self._run.finish()
