"""Files of networks: pruned ones with their plan, without pickles, and dense ones as others write them."""

from .pruned import load, read, read_safetensors, restore, save

__all__ = ["load", "read", "read_safetensors", "restore", "save"]
