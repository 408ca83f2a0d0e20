"""How much channels repeat each other in space (docs/method.md, section 2)."""

from .average import RedundancyAverage, edge_weights, similarity

__all__ = ["RedundancyAverage", "edge_weights", "similarity"]
