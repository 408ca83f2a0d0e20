"""Finds the channels of a network that must be cut together, by tracing one pass and by cutting copies on trial."""

from .find import find_again, find_groups

__all__ = ["find_again", "find_groups"]
