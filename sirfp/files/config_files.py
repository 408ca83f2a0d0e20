"""The option `--config-file`, which may be given several times; each later file overrides keys of the earlier ones."""

from __future__ import annotations

import argparse
from typing import Any


class AddConfigFile(argparse.Action):
    """The argparse action of `--config-file`.

    The first file is stored in the option's destination, all later ones in `namespace.layers`.
    """

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        if getattr(namespace, self.dest):
            namespace.layers = [*getattr(namespace, "layers", []), values]
        else:
            setattr(namespace, self.dest, values)


def config_files(args: argparse.Namespace) -> list[str]:
    """Returns all files of `--config-file` in their order; [""] if none was given."""
    return [args.config_file, *getattr(args, "layers", [])]
