"""Runs any network: calls it, sets its mode, measures its latency, and updates sizes in its attributes after a cut."""
