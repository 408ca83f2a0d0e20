"""Configs: sirfp's keys, reading and checking of config files, and the data sets that a config names."""

from .checks import validate
from .data import register_data
from .keys import add_sirfp_config
from .projects import register_config
from .reading import config_file, input_size, load_config, pairs
from .unused import warn_of_unused
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
    "warn_of_unused",
]
