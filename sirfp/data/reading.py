"""Tells a missing data set from an augmentation that cannot be built or does not fit its images."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sirfp.data.descriptions import advice
from sirfp.errors import InputError, one_line

READERS = ("detectron2.data.catalog", "detectron2.data.datasets", "sirfp.data.registration")
"""Modules whose errors are about the files of a data set."""
CHECK_OF_RECORDS = "get_detection_dataset_dicts"
"""Detectron2's function that reads data sets and asserts that they are not empty."""


@contextmanager
def reading_data(names: Sequence[str]) -> Iterator[None]:
    """Turns errors of Detectron2's loaders into an InputError.

    A missing file, and an assertion while a data set is read, are about the data sets `names`. Other assertions are
    about the augmentation that the config describes.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, AssertionError) as error:
        if isinstance(error, AssertionError) and not _is_about_data(error):
            raise InputError(
                f"training images cannot be augmented as the config says ({_reason(error)}); correct the keys of INPUT"
            ) from error
        raise InputError(
            f"data set {' or '.join(map(repr, names))} cannot be read: {_reason(error)}; it must be in the folder "
            f"that the environment variable DETECTRON2_DATASETS names{advice(names)}"
        ) from error


def does_not_fit(file: str, error: Exception) -> InputError:
    """The error for an image, or its labels, that the augmentation or the model's input cannot take."""
    return InputError(
        f"{file}: the image or its labels do not fit the config ({_reason(error)}); correct the keys of INPUT "
        "or the file"
    )


def _is_about_data(error: AssertionError) -> bool:
    """True if an assertion was raised while a data set was read."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][1:]
    modules = [frame.f_globals.get("__name__", "") for frame in frames]
    read = any(module == name or module.startswith(f"{name}.") for module in modules for name in READERS)
    return read or any(frame.f_code.co_name == CHECK_OF_RECORDS for frame in frames)


def _reason(error: Exception) -> str:
    """The text of an error; for an assertion without text, the function that asserts."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    return one_line(error, 200) or f"an assertion of {last[0].name} fails: {last[0].line}"
