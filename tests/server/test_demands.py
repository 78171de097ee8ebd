"""The list of demands names tests that exist."""

from __future__ import annotations

from tests.server.demands import FAULTS, ROWS, missing


def test_every_demand_has_its_tests() -> None:
    named = [test for row in ROWS for test in row.tests]
    assert not list(missing(tuple(named))) and all(row.tests for row in ROWS)
    assert len({row.id for row in ROWS}) == len(ROWS) == 16
    assert list(missing(("server/test_demands.py::test_nothing",))), "a name that leads nowhere is found"


def test_all_faults_are_there() -> None:
    assert len(FAULTS) == 29
