"""Models of other libraries with random weights and small inputs, for `prunability_libraries.py`: a module a library.

Each module has `MODELS`, {name: a function without arguments that returns a `Subject`}.
"""

from .subject import Subject

__all__ = ["LIBRARIES", "Subject"]

LIBRARIES = {
    "torchvision": "of_torchvision",
    "segmentation-models-pytorch": "of_smp",
    "ultralytics": "of_ultralytics",
    "transformers": "of_transformers",
    "monai": "of_monai",
    "diffusers": "of_diffusers",
    "open_clip": "of_open_clip",
    "spandrel": "of_spandrel",
    "torchaudio": "of_torchaudio",
}
"""The module of each library here."""
