"""Verification: a pruned network must compute the same as the dense one with the removed channels set to zero."""

from .proof import Difference, compare, expand, furthest, mask, writable

__all__ = ["Difference", "compare", "expand", "furthest", "mask", "writable"]
