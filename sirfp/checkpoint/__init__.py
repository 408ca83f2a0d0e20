"""Files of networks: safetensors files of pruned models with their plan, and usual formats of dense models."""

from .origin import Origin, read_origin
from .pruned import load, read, read_safetensors, restore, save

__all__ = ["Origin", "load", "read", "read_origin", "read_safetensors", "restore", "save"]
