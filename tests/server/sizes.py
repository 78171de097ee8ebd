"""How large the tests of the service are: small enough for every change (`make test-serve`), or large (`make test-long`)."""

from __future__ import annotations

import os

LONG = os.environ.get("LISASEG_TEST_SIZE", "") == "long"


def size(pr: int, long: int) -> int:
    """A number of requests, examples or seconds: `long` if LISASEG_TEST_SIZE=long."""
    return long if LONG else pr


def soak_seconds() -> float:
    """Length of the long soak: LISASEG_SOAK_MINUTES, half an hour unless it says otherwise."""
    return 60 * float(os.environ.get("LISASEG_SOAK_MINUTES", "30"))
