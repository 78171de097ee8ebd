"""The Gradio app, really started, asked by Gradio's own client. Gradio is not among the packages of `make setup`: `make test-contracts` has it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image
from tests.server.running import EXAMPLES, ROOT, Server
from tests.tiny_random import GREETING, TWO

from lisaseg.predictor import Predictor

gradio_client = pytest.importorskip("gradio_client")
app = pytest.importorskip("lisaseg.apps.gradio_app")

pytestmark = pytest.mark.serve
CAT = EXAMPLES / "cat.jpg"


@pytest.fixture(scope="module")
def page(taught: tuple[Any, Any]) -> Iterator[str]:
    """A started app; this process cannot reach anything but itself, so neither can the app."""
    started = app.launch(Predictor(*taught, "random"))
    yield started.local_url
    started.close()


def client(url: str) -> Any:
    return gradio_client.Client(url, verbose=False, analytics_enabled=False)


def ask(visitor: Any, image: Path | None, text: str, mode: str = "auto") -> tuple[list[str], Any]:
    """What the conversation says, and the picture with masks."""
    picture = None if image is None else gradio_client.handle_file(str(image))
    talk, masks, *_ = visitor.predict(picture, text, mode, api_name="/ask")
    return words(talk), masks


def words(talk: Any) -> list[str]:
    return [part if isinstance(part := message["content"], str) else part[0]["text"] for message in talk]


def mask_of(annotation: Any) -> np.ndarray:
    """Where the picture of a mask is opaque."""
    return np.asarray(Image.open(annotation["image"]["path"] if isinstance(annotation["image"], dict) else annotation["image"]))[..., 3] > 0


def test_a_conversation_with_masks_to_the_pixel(page: str, predictor: Predictor) -> None:
    visitor = client(page)
    talk, masks = ask(visitor, CAT, TWO)
    expected = predictor.ask(CAT, TWO)
    assert talk == [TWO, expected.text] and len(masks["annotations"]) == 2
    for annotation, mask in zip(masks["annotations"], expected.masks, strict=True):
        assert (mask_of(annotation) == mask).all()
    assert [annotation["label"] for annotation in masks["annotations"]] == ["mask 1", "mask 2"]
    talk, masks = ask(visitor, CAT, GREETING)
    assert talk[:2] == [TWO, expected.text] and len(talk) == 4 and masks["annotations"] == []
    assert words(visitor.predict(api_name="/undo")[0]) == [TWO, expected.text]
    assert visitor.predict(api_name="/new")[0] == []
    assert len(ask(visitor, CAT, TWO)[0]) == 2


def test_visitors_do_not_see_each_other(page: str) -> None:
    one, two = client(page), client(page)
    ask(one, CAT, TWO)
    assert len(ask(two, CAT, GREETING)[0]) == 2 and len(ask(one, CAT, GREETING)[0]) == 4
    assert len(ask(one, EXAMPLES / "coffee.jpg", GREETING)[0]) == 2, "another picture, another conversation"


@pytest.mark.parametrize(
    ("image", "text", "mode", "reason"),
    [
        (None, "x", "auto", "no picture"),
        (CAT, " ", "auto", "instruction"),
        (CAT, "x" * 3000, "auto", "characters|long"),
        (CAT, "x", "loud", "loud|choice|error"),
    ],
)
def test_failures_say_what_to_do(page: str, image: Path | None, text: str, mode: str, reason: str) -> None:
    with pytest.raises(Exception, match=reason) as failed:
        ask(client(page), image, text, mode)
    assert "Traceback" not in str(failed.value)


def test_files_that_are_no_pictures(page: str, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(Exception, match=r"\w") as failed:
        ask(client(page), tmp_path / "x.png", "x")
    assert "site-packages" not in str(failed.value)
    Image.new("1", (30_000, 10)).save(tmp_path / "long.png")
    with pytest.raises(Exception, match=r"(?i)side|aspect|longer"):
        ask(client(page), tmp_path / "long.png", "x")


def test_everything_is_bounded_and_nothing_comes_from_elsewhere(page: str, predictor: Predictor) -> None:
    visitor = client(page)
    for _ in range(app.MAX_TURNS):
        ask(visitor, CAT, GREETING)
    with pytest.raises(Exception, match="new one"):
        ask(visitor, CAT, GREETING)
    blocks = app.build(predictor)
    assert blocks._queue.max_size == app.QUEUE and not blocks.analytics_enabled and app.BOUNDS["state_session_capacity"] <= 100
    html = httpx2.get(page).text
    assert not re.findall(r"<(?:script|link)[^>]+(?:src|href)=[\"']https?://(?!127\.0\.0\.1)[^\"']+\.(?:js|css|woff2?)", html)
    assert page.startswith("http://127.0.0.1:")


def test_large_pictures_are_made_smaller(page: str, tmp_path: Path) -> None:
    Image.new("RGB", (4000, 1000), "red").save(tmp_path / "x.png")
    _, masks = ask(client(page), tmp_path / "x.png", TWO)
    assert mask_of(masks["annotations"][0]).shape == (400, 1600)


def run(*options: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lisaseg", "gradio", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_the_command_before_a_service(stub: Server) -> None:
    process = run("--url", stub.url)
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "lisaseg runs at" in line)
        url = re.search(r"http://\S+", line)
        assert url is not None
        talk, masks = ask(client(url[0]), CAT, "far away")
        assert talk == ["far away", "Turn 1: far away [mask 1]."] and len(masks["annotations"]) == 1
    finally:
        process.kill()
        process.wait(10)


@pytest.mark.parametrize(("options", "reason"), [(("--host", "0.0.0.0"), "--insecure"), (("--share", "--offline"), "Leave out")])
def test_wrong_use(options: tuple[str, ...], reason: str) -> None:
    process = run(*options)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 2 and reason in told
