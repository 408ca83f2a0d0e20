"""Builders of networks: backbones, heads and classifiers that a config names, and the weights they start from."""
