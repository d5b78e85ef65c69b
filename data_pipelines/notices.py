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
