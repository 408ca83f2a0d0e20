"""Reads and writes files safely: complete writes, pickles without code, YAML of limited size, locks."""
