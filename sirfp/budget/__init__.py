"""Chooses how many channels each layer keeps, so that a budget of FLOPs, parameters or latency is met."""
