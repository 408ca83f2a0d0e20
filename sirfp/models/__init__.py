"""Builds networks: backbones, heads and detectors that a config selects by name, and their initial weights."""
