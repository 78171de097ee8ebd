"""Ask a question about a picture, get the answer in words and in pixels.

    model = lisaseg.load("lisa-tiny")
    answer = model.ask("street.jpg", "Where can the driver see the speed?")

The names below are the stable surface; each is imported when it is first used, so that `import lisaseg` stays fast and free of torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lisaseg.client import Client
    from lisaseg.errors import LisaSegError
    from lisaseg.predictor import Chat, Predictor, load
    from lisaseg.types import Answer, Query, Sample, Segment, Turn

__version__ = "0.1.0"

__all__ = ["load", "Predictor", "Chat", "Client", "Answer", "Segment", "Sample", "Turn", "Query", "LisaSegError", "__version__"]

_HOMES = {
    "load": "lisaseg.predictor",
    "Predictor": "lisaseg.predictor",
    "Chat": "lisaseg.predictor",
    "Client": "lisaseg.client",
    "Answer": "lisaseg.types",
    "Segment": "lisaseg.types",
    "Sample": "lisaseg.types",
    "Turn": "lisaseg.types",
    "Query": "lisaseg.types",
    "LisaSegError": "lisaseg.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lisaseg' has no attribute {name!r}")
    from lisaseg.startup import collector_paused

    with collector_paused():
        value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
