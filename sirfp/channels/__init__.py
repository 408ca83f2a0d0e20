"""Finds the channels of a network that must be cut together: traces one pass, then cuts and runs copies."""

from .find import find_again, find_groups

__all__ = ["find_again", "find_groups"]
