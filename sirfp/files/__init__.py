"""Reading and writing files safely: whole writes, no pickled code, bounded YAML, locks."""
