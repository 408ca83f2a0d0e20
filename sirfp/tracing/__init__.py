"""Follows every channel of a model through one real forward pass.

`labels` holds the union-find over channel labels, `mode` the dispatch mode that sees each ATen
operation, and `pointwise`, `products`, `reductions`, `shapes` and `parts` the rules: one small function for each
operation, in one table. `sirfp.channels` turns what was found into groups.
"""

from . import deformable, parts, pointwise, products, reductions, shapes  # noqa: F401  (they fill the table)
from .labels import Labels, Product, Tap
from .mode import ChannelTrace
from .table import RULES, STATISTICS

__all__ = ["RULES", "STATISTICS", "ChannelTrace", "Labels", "Product", "Tap"]
