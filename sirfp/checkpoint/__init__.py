"""Files of networks: pruned ones with their plan, without pickle, and dense ones in the usual formats."""

from .pruned import load, read, read_safetensors, restore, save

__all__ = ["load", "read", "read_safetensors", "restore", "save"]
