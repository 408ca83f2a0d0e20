"""Config files named on a command line: several, each laid over those before it."""

from __future__ import annotations

import argparse
from typing import Any


class AddConfigFile(argparse.Action):
    """The action of `--config-file`: the first file is the config, each further one is laid over those before it."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        if getattr(namespace, self.dest):
            namespace.layers = [*getattr(namespace, "layers", []), values]
        else:
            setattr(namespace, self.dest, values)


def config_files(args: argparse.Namespace) -> list[str]:
    """All files of `--config-file`, the last of which wins; [""] where none was given."""
    return [args.config_file, *getattr(args, "layers", [])]
