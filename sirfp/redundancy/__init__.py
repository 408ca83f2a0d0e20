"""Spatial redundancy: how much channels repeat each other's feature maps (Wu et al., AAAI 2025; see `average`)."""

from .average import RedundancyAverage, edge_weights, similarity

__all__ = ["RedundancyAverage", "edge_weights", "similarity"]
