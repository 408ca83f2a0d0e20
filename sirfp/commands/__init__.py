"""The subcommands of `sirfp`, one file each: `add` describes its arguments, `run` does the work.

These files are read before the command line is understood, so they import what is slow inside functions.
"""
