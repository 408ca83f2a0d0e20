"""Silences libraries that print, warn or log, so that users see only sirfp's own lines."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator

OWN = "sirfp"
"""Name of the logger above all of sirfp's."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """While active, suppresses standard output, warnings, and log records below CRITICAL."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with _unprinted():
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def quiet_but_own() -> Iterator[None]:
    """Does the same as `quiet`, but prints warnings that sirfp logs on standard error, one line each."""
    usual, logger, handler = logging.Logger.isEnabledFor, logging.getLogger(OWN), logging.StreamHandler(sys.stderr)

    def enabled(self: logging.Logger, level: int) -> bool:  # `logging.disable` makes no exceptions
        own = level >= logging.WARNING and self.name.partition(".")[0] == OWN
        return (own or level >= logging.CRITICAL) and usual(self, level)

    handler.setFormatter(_OneLine("warning: %(message)s"))
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    logging.Logger.isEnabledFor = enabled  # type: ignore[method-assign]
    try:
        with _unprinted():
            yield
    finally:
        logging.Logger.isEnabledFor = usual  # type: ignore[method-assign]
        logger.removeHandler(handler)
        logger.propagate = propagate


@contextlib.contextmanager
def _unprinted() -> Iterator[None]:
    """While active, suppresses standard output and warnings."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return " ".join(super().format(record).split())
