"""sirfp: structured pruning that people who train Detectron2 and timm models can simply switch on.

    plan = sirfp.prune(model, example_inputs, criterion="sirfp", keep_flops=0.4, calibration=batches)
    sirfp.save("small.safetensors", model, plan)
    plan = sirfp.load("small.safetensors", fresh_dense_model)

Neither Detectron2 nor timm is imported here.
"""

from . import channels, clique, criteria, redundancy, verify
from .channels.find import find_groups
from .checkpoint import load, save
from .errors import InputError
from .prune import prune
from .structure.plan import PruningPlan

__version__ = "0.1.0"

__all__ = [
    "InputError",
    "PruningPlan",
    "channels",
    "clique",
    "criteria",
    "find_groups",
    "load",
    "prune",
    "redundancy",
    "save",
    "verify",
]
