"""Criteria score how much each channel of a group is worth keeping. Each is one file; all are in one registry.

To add a criterion: subclass `Criterion` in a new file, register the class with `@CRITERIA.register("name")`, and import
the file here. A file outside sirfp is imported by `--import FILE` instead. Options are keyword-only parameters of the
constructor (`sirfp.criteria.options`). docs/extending.md has an example with its test.
"""

from . import dcfp, depgraph, fpgm, joint, magnitude, random, setwise, sirfp, slimming, taylor  # noqa: F401  (for the registry)
from .registry import CRITERIA, Criterion, build_criterion

__all__ = ["CRITERIA", "Criterion", "build_criterion"]
