"""Errors travel between processes whole: data workers, batch runs."""

from __future__ import annotations

import pickle

import pytest

from lisaseg import errors
from lisaseg.errors import LisaSegError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LisaSegError)]


class Stricter(errors.DataError):
    """An error with arguments of its own, as some parts have."""

    def __init__(self, place: str) -> None:
        super().__init__(f"{place} is wrong.", next_step="Mend it.", code="mine")
        self.place = place


@pytest.mark.parametrize("error", [*(kind("What.", next_step="Do.", code="c") for kind in KINDS), Stricter("x")])
def test_a_pickled_error_is_the_same(error: LisaSegError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error) and vars(again) == vars(error)
    assert (again.message, again.next_step, again.code, again.exit_code) == (error.message, error.next_step, error.code, error.exit_code)
