"""Follows every channel of a model through one real forward pass.

`channel_labels` holds the labels and their ties, `mode` the dispatch mode that intercepts each ATen operation. The
rules are in `pointwise`, `products`, `reductions`, `shapes`, `slicing`, `scattering`, `diagonals`, `matrices`,
`spectra`, `weight_norms` and `deformable`: one small function for each operation, in one table (`table`).
`sirfp.structure.atoms` makes groups from the labels.
"""

from . import (  # noqa: F401  (for the table)
    deformable,
    diagonals,
    matrices,
    pointwise,
    products,
    reductions,
    scattering,
    shapes,
    slicing,
    spectra,
    weight_norms,
)
from .channel_labels import Labels, Product, Tap
from .mode import ChannelTrace
from .shapes import convolution_weights
from .table import RULES, STATISTICS

__all__ = ["RULES", "STATISTICS", "ChannelTrace", "Labels", "Product", "Tap", "convolution_weights"]
