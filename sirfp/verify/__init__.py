"""The proof: a pruned network computes what the dense one does with the removed channels set to zero."""

from .proof import Difference, compare, expand, furthest, mask, writable

__all__ = ["Difference", "compare", "expand", "furthest", "mask", "writable"]
