"""Warnings that would otherwise be repeated for every image."""

from __future__ import annotations

import logging
from collections.abc import Hashable

_given: set[Hashable] = set()


def warn_once(log: logging.Logger, key: Hashable, message: str, *words: object) -> None:
    """Log a warning unless this process has already logged one with the same key."""
    if key not in _given:
        _given.add(key)
        log.warning(message, *words)


def warn_line(log: logging.Logger, message: str, *words: Hashable) -> None:
    """Log a warning unless this process has already logged the same line, as when a table is read twice."""
    warn_once(log, (log.name, message, *words), message, *words)
