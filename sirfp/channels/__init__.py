"""Which channels of a network belong together and can be cut: found by following one pass, and tried on copies."""

from .find import find_again, find_groups

__all__ = ["find_again", "find_groups"]
