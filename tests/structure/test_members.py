"""The channels that atoms have in the sides of operations are counted as a dense matrix counts them."""

from __future__ import annotations

import numpy as np

from sirfp.structure.members import Members

SIDES, ATOMS = 4, 6


def members() -> tuple[Members, np.ndarray]:
    """Some entries, of which two belong to one side and atom, and none to the second side; and the dense matrix."""
    rows, columns = np.array([0, 0, 0, 2, 2, 3]), np.array([1, 4, 4, 0, 1, 5])
    numbers = np.array([1, 2, 2, 3, 1, 1])
    dense = np.zeros((SIDES, ATOMS))
    np.add.at(dense, (rows, columns), numbers)
    return Members(SIDES, ATOMS, rows, columns, numbers), dense


def test_products_and_parts():
    sparse, dense = members()
    keep = np.array([True, False, True, True, True, False])
    assert (sparse @ keep.astype(float) == dense @ keep).all()
    part = sparse.of(keep)
    assert part.atoms == keep.sum()
    assert (part @ np.arange(4.0) == dense[:, keep] @ np.arange(4)).all()
    sets = np.array([0, 0, 1, 1, 1, 2])
    expected = np.stack([dense[:, sets == each].sum(1) for each in range(3)], 1)
    assert (sparse.summed(sets, 3) == expected).all()


def test_no_atoms_are_left():
    none = members()[0].of(np.zeros(ATOMS, dtype=bool))
    assert none.atoms == 0
    assert (none @ np.zeros(0) == np.zeros(SIDES)).all()
    assert none.summed(np.zeros(0, dtype=int), 0).shape == (SIDES, 0)
