"""Cuts a network by a plan, and compensates the layers that read removed channels for what these emitted."""

from .cut import apply, cuts_for, give_bias, refresh

__all__ = ["apply", "cuts_for", "give_bias", "refresh"]
