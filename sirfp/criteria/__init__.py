"""Criteria: how much each channel of a group is worth keeping. One file each, one registry.

Adding one is one file and one decorator: subclass `Criterion`, register it with `@CRITERIA.register("name")`,
and import the file here.
"""

from . import dcfp, depgraph, fpgm, joint, magnitude, random, sirfp, slimming, taylor  # noqa: F401  (they fill the registry)
from .registry import CRITERIA, Criterion, build_criterion

__all__ = ["CRITERIA", "Criterion", "build_criterion"]
