"""Cuts a network by a plan, and corrects the layers that read removed channels for the constants of these channels."""

from .cut import apply, cuts_for, give_bias
from .module_sizes import refresh

__all__ = ["apply", "cuts_for", "give_bias", "refresh"]
