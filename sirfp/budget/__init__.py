"""How many channels stay where, so that a budget of FLOPs, parameters or latency is met."""
