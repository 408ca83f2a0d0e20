"""The public data sets of the projects' configs, one file each; all files in this folder are imported."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
