"""Files of networks: safetensors files of pruned models with their plan, and usual formats of dense models."""

from .pruned import load, read, read_safetensors, restore, save

__all__ = ["load", "read", "read_safetensors", "restore", "save"]
