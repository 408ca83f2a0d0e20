"""Follows every channel of a model through one real forward pass.

`channel_labels` holds the labels and what ties them, `mode` the dispatch mode that intercepts each ATen operation, and
`pointwise`, `products`, `reductions`, `shapes`, `slicing` and `deformable` the rules: one small function for each
operation, in one table (`table`). `sirfp.structure.atoms` turns the labels into groups.
"""

from . import deformable, pointwise, products, reductions, shapes, slicing  # noqa: F401  (they fill the table)
from .channel_labels import Labels, Product, Tap
from .mode import ChannelTrace
from .table import RULES, STATISTICS

__all__ = ["RULES", "STATISTICS", "ChannelTrace", "Labels", "Product", "Tap"]
