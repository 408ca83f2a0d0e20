"""Configs: the keys sirfp adds to Detectron2's, reading and checking a file, and the data sets it names."""

from .checks import validate
from .data import register_data
from .keys import add_sirfp_config
from .projects import register_config
from .reading import config_file, input_size, load_config, pairs
from .values import leaves

__all__ = [
    "add_sirfp_config",
    "config_file",
    "input_size",
    "leaves",
    "load_config",
    "pairs",
    "register_config",
    "register_data",
    "validate",
]
