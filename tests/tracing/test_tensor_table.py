"""A table of tensors holds none of them, and knows a tensor by its identity."""

from __future__ import annotations

import gc
import weakref

import torch

from sirfp.tracing.tensor_table import TensorTable


def test_values_are_found_by_identity_and_go_with_their_tensor():
    table, first, alike = TensorTable(), torch.ones(3), torch.ones(3)
    table[first] = "first"
    assert first in table and alike not in table and table.get(alike, 0) == 0
    assert table.setdefault(alike, "alike") == "alike" and table.setdefault(alike, "other") == "alike"
    del first
    assert len(table) == 1 and table.pop(alike) == "alike" and table.pop(alike) is None and len(table) == 0


def test_a_new_value_takes_the_place_of_the_old_one():
    table, tensor = TensorTable(), torch.ones(3)
    table[tensor], table[tensor] = 1, 2
    assert table.get(tensor) == 2 and len(table) == 1
    del table[tensor]
    assert tensor not in table


def test_a_tensor_that_only_a_graph_holds_keeps_its_value():
    table, weight = TensorTable(), torch.ones(3, requires_grad=True)
    middle = weight * 2
    table[middle] = "middle"
    last = middle.sin()
    del middle
    assert table.get(last.grad_fn._saved_self) == "middle"
    del last
    assert len(table) == 0


def test_values_are_free_without_the_garbage_collector_once_the_table_is():
    table, tensor, value = TensorTable(), torch.ones(3), torch.ones(2)
    table[tensor] = value
    freed = weakref.ref(value)
    gc.disable()
    try:
        del table, value
        assert freed() is None
    finally:
        gc.enable()
