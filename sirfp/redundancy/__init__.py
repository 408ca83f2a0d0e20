"""Spatial redundancy: how much channels repeat each other's feature maps (docs/method.md, section 2)."""

from .average import RedundancyAverage, edge_weights, similarity

__all__ = ["RedundancyAverage", "edge_weights", "similarity"]
