"""sirfp: structured pruning that people who train Detectron2 and timm models can simply switch on.

    plan = sirfp.prune(model, example_inputs, criterion="sirfp", keep_flops=0.4, calibration=batches)
    sirfp.save("small.safetensors", model)
    plan = sirfp.load("small.safetensors", fresh_dense_model)

`import sirfp` imports neither Detectron2 nor timm. The packages, from the top level to the lowest; a module imports
only from its own line or from lines below:

    commands                                 the subcommands of `sirfp`
    engine, hooks, adapters                  training runs with pruning; training loops of other libraries
    exporting                                ONNX files, and networks in onnxruntime
    study, sources, session, config          grids of runs; sources of dense models; prunings of a run; config keys
    prune, pruner, sensitivity               the method on one page: begin here; in a training loop; loss curves
    models, training, channels               builders of networks; parts of a training run; groups of tied channels
    checkpoint, verify, budget               files of pruned models; verification of a cut; number of channels to keep
    reporting, criteria, surgery             tables and figures; scores of channels; cutting
    files, data, structure                   safe reading and writing; data sets; groups, cost and plan as plain data
    clique, redundancy, network, tracing     the mathematics; running any network; tracing channels through a network
    errors, processes                        errors and distributed processes, used by all other modules
"""

import sys as _sys

from . import channels, clique, criteria, redundancy, verify
from .channels.find import find_groups
from .checkpoint import Origin, load, save
from .errors import InputError
from .network import forward as _forward
from .prune import prune
from .pruner import Pruner
from .sensitivity import sensitivity
from .structure.plan import PruningPlan

__version__ = "0.1.0"

_sys.modules[f"{__name__}.calling"] = _forward  # the name of this module in 0.1.0, which programs of users import

__all__ = [
    "InputError",
    "Origin",
    "Pruner",
    "PruningPlan",
    "channels",
    "clique",
    "criteria",
    "find_groups",
    "load",
    "prune",
    "redundancy",
    "save",
    "sensitivity",
    "verify",
]
