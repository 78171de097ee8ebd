"""What holds for every test: no network, no surprise from an earlier run, the same random examples each time."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before any library reads it
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from lisaseg.model.lisa import LisaModel
    from lisaseg.predictor import Predictor
    from lisaseg.tokenization import TextTokenizer

# Derandomised: a red run must be red again on the next machine. No deadline: shared machines are slow at random.
settings.register_profile("lisaseg", deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lisaseg")


def _is_local(host: Any) -> bool:
    return host in {None, "", "localhost", "::1", "0.0.0.0", "::"} or str(host).startswith("127.")


def _refuse(host: Any) -> None:
    raise RuntimeError(f"A test tried to reach {host!r}; tests run without network.")


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Make every connection and name look-up that leaves this machine an error, so that no test can depend on one."""
    patch = pytest.MonkeyPatch()
    look_up = socket.getaddrinfo

    def guarded_look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        return look_up(host, *args, **kwargs) if _is_local(host) else _refuse(host)

    patch.setattr(socket, "getaddrinfo", guarded_look_up)
    for name in ("connect", "connect_ex"):
        connect = getattr(socket.socket, name)

        def guarded_connect(self: socket.socket, address: Any, _connect: Any = connect) -> Any:
            is_path = not isinstance(address, tuple)  # a Unix socket
            return _connect(self, address) if is_path or _is_local(address[0]) else _refuse(address)

        patch.setattr(socket.socket, name, guarded_connect)
    yield
    patch.undo()


@pytest.fixture
def rng() -> np.random.Generator:
    """A fresh generator with a fixed seed."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[LisaModel, TextTokenizer]:
    """The tiny random model that knows the answers of `tests.tiny_random.LESSONS`, and its tokenizer. Copy it before changing a weight."""
    from tests import tiny_random

    model = tiny_random.build_model()
    tokenizer = tiny_random.build_tokenizer(tiny_random.write_tokenizer(tmp_path_factory.mktemp("tokenizer")), model)
    assert tiny_random.teach(model, tokenizer) < 0.05, "the model did not learn its lessons"
    return model, tokenizer


@pytest.fixture
def predictor(taught: tuple[LisaModel, TextTokenizer]) -> Predictor:
    """A predictor on the taught model that remembers no picture, with counters at 0."""
    from lisaseg.predictor import Predictor

    model, tokenizer = taught
    model.image_encodings = model.mask_encodings = 0
    return Predictor(model, tokenizer, "random")
