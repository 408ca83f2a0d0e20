"""Follows every channel of a model through one real forward pass.

`labels` holds the union-find over channel labels, `mode` the dispatch mode that sees each ATen
operation, and `pointwise`, `products`, `reductions`, `shapes` and `parts` the rules: one small function for each
operation, in one table. `sirfp.channels` turns what was found into groups.
"""

from .labels import Labels, Product, Tap
from .mode import ChannelTrace
from .reductions import STATISTICS
from .rules import RULES

__all__ = ["RULES", "STATISTICS", "ChannelTrace", "Labels", "Product", "Tap"]
