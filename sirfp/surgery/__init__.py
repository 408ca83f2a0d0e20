"""Cuts a network by a plan, and makes up for what removed channels still gave to the layers that read them."""

from .cut import apply, cuts_for, give_bias, refresh

__all__ = ["apply", "cuts_for", "give_bias", "refresh"]
