"""sirfp: structured pruning that people who train Detectron2 and timm models can simply switch on.

    plan = sirfp.prune(model, example_inputs, criterion="sirfp", keep_flops=0.4, calibration=batches)
    sirfp.save("small.safetensors", model, plan)
    plan = sirfp.load("small.safetensors", fresh_dense_model)

Neither Detectron2 nor timm is imported here. A map of the code, from what a user runs down to the ground; a module
imports from its own line or from lines below:

    commands                                 the subcommands of `sirfp`
    engine, hooks, exporting                 how pruning joins a training run; ONNX files
    study, sources, session, config          grids of runs; where dense models come from; a run's prunings; keys
    prune                                    the method on one page: begin here
    models, training, channels               builders of networks; what a run needs; which channels belong together
    checkpoint, verify, budget               files of pruned models; the proof of a cut; how many channels stay where
    reporting, criteria, surgery             tables and figures; what a channel is worth; cutting
    files, data, structure                   safe reading and writing; data sets; groups, cost and plan as plain data
    clique, redundancy, network, tracing     the mathematics; running any network; following channels through it
    errors, processes                        what everything may import
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
