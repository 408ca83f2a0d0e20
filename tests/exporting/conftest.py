"""Has the exporter look up what each operator becomes once: it reads the source of 500 functions for every file."""

import functools

import pytest

from sirfp.exporting import missing_packages


@pytest.fixture(autouse=True, scope="session")
def operators():
    """Keeps onnxscript's list of functions, which does not change; each export would build it anew in half a second."""
    if missing_packages():
        yield
        return
    from torch.onnx._internal.exporter._registration import onnxscript_apis

    with pytest.MonkeyPatch.context() as patch:
        build = getattr(onnxscript_apis, "get_torchlib_ops", None)
        if build is not None:
            patch.setattr(onnxscript_apis, "get_torchlib_ops", functools.cache(build))
        yield
