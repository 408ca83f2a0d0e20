"""Joined ONNX models compute what their parts compute one after the other."""

from __future__ import annotations

import numpy as np
import pytest

from sirfp.exporting.joining import join

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
OPSET = 18


def model(text: str, opset: int = OPSET, functions: str = ""):
    """A model from ONNX's own text form."""
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}, "own" : 1]> {text} {functions}')


def run(made, **given):
    session = runtime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {name: np.asarray(value, np.float32) for name, value in given.items()})


def doubled():
    """x + x, with tensor names that `counted` uses too."""
    return model("first (float[N] images) => (float[N] x) { a = Identity(images) x = Add(a, a) }")


def counted():
    """x + 1 where x adds up to more than the number of images' values, else x - 10; `a` is another thing here."""
    return model(
        """last (float[N] images, float[N] x) => (float[N] y)
        <float[1] a = {1.0}, int64[1] axes = {0}>
        {
            shape = Shape(images)
            length = Cast<to = 1>(shape)
            total = ReduceSum<keepdims = 1>(x, axes)
            more = Greater(total, length)
            one = Squeeze(more)
            y = If (one) <
                then_branch = then () => (float[N] up) { b = Identity(a) up = Add(x, b) },
                else_branch = other () => (float[N] down) <float[1] b = {10.0}> { down = Sub(x, b) }
            >
        }"""
    )


@pytest.mark.parametrize(("images", "wanted"), [([1, 2], [3, 5]), ([0.5, 0, 0], [-9, -10, -10])])
def test_parts_in_order_with_branches_and_names_that_both_use(images, wanted):
    made = join(doubled(), counted())
    onnx.checker.check_model(made, full_check=True)
    assert [value.name for value in made.graph.input] == ["images"]
    assert [value.name for value in made.graph.output] == ["y"]
    assert run(made, images=images)[0].tolist() == wanted


def test_three_parts_of_which_the_last_looks_at_the_images():
    middle = model("middle (float[N] x) => (float[N] y) { a = Neg(x) y = Identity(a) }")
    last = model("last (float[N] images, float[N] y) => (float[N] z) { a = Add(images, y) z = Identity(a) }")
    made = join(doubled(), middle, last)
    onnx.checker.check_model(made, full_check=True)
    assert run(made, images=[1, 2, 3])[0].tolist() == [-1, -2, -3]


def function(body: str) -> str:
    return f'<domain: "own", opset_import: ["" : {OPSET}]> work (v) => (w) {{ w = {body}(v) }}'


def calling(name: str, out: str, body: str):
    text = f"{name} (float[N] {name}) => (float[N] {out}) {{ {out} = own.work({name}) }}"
    return model(text, functions=function(body))


def test_functions_of_the_same_name_and_content_are_one():
    made = join(calling("images", "x", "Neg"), calling("x", "y", "Neg"))
    assert len(made.functions) == 1 and run(made, images=[2])[0].tolist() == [2]


def test_functions_of_the_same_name_that_differ_are_refused():
    with pytest.raises(ValueError, match="own.work"):
        join(calling("images", "x", "Neg"), calling("x", "y", "Abs"))


def test_parts_of_different_opsets_are_refused():
    with pytest.raises(ValueError, match="opset 18 and 17"):
        join(doubled(), model("middle (float[N] x) => (float[N] y) { y = Neg(x) }", opset=17))
