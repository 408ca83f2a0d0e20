"""The subcommands of `sirfp`, one file each: `add` adds the arguments, `run` does the work.

All these files are imported before the command line is parsed. Therefore they import slow modules inside functions.
"""
