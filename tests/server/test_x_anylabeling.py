"""X-AnyLabeling: polygons that give back the mask, controls that its versions know, and errors in words."""

from __future__ import annotations

import base64
from typing import Any

import httpx2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tests.server.running import EXAMPLES, Server, code_of, picture

from lisaseg.apps.integrations.x_anylabeling import outlines, prediction
from lisaseg.formats import rle
from lisaseg.formats.raster import fill_polygon

PATH = "/integrations/x-anylabeling/v1"
# `supported_remote_widgets` of X-AnyLabeling 4.2: of anything else nothing would be seen
KNOWN = {"edit_text", "button_send", "mask_fineness_slider", "mask_fineness_value_label", "toggle_preserve_existing_annotations"}


def sent(seed: int = 0, **params: Any) -> dict[str, Any]:
    """What `RemoteServer.predict_shapes` of X-AnyLabeling sends."""
    image = "data:image/png;base64," + base64.b64encode(picture(seed)).decode()
    known = {"conf_threshold": 0.0, "iou_threshold": 0.0, "epsilon_factor": 0.001, "text_prompt": "the cup", "current_task": "segment"}
    return {"model": "lisa-tiny", "image": image, "params": {**known, **params}}


def predict(server: Server, body: Any) -> httpx2.Response:
    return server.http.post(f"{PATH}/predict", json=body, headers={"Token": ""})


def filled(polygons: list[list[list[float]]], shape: tuple[int, int]) -> np.ndarray:
    """The polygons as X-AnyLabeling's exporters fill them: with OpenCV's fillPoly, which ours equals (`tests/formats`)."""
    canvas = np.zeros(shape, np.uint8)
    for polygon in polygons:
        fill_polygon(canvas, polygon, 1)
    return canvas.astype(bool)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


@given(arrays(bool, st.tuples(st.integers(1, 16), st.integers(1, 16))))
def test_parts_that_are_wide_enough_come_back_to_the_bit(coarse: np.ndarray) -> None:
    mask = np.kron(coarse, np.ones((3, 3), bool))
    polygons = outlines(mask, 0.0)
    assert np.array_equal(filled(polygons, mask.shape), mask)
    for polygon in polygons:
        assert polygon[0] == polygon[-1] and len(polygon) >= 4
        assert polygon[0] not in polygon[1:-1], "X-AnyLabeling takes the second visit of the first point for the end"
    if not coarse.any():
        assert polygons == []


def test_a_polygon_begins_where_it_passes_once() -> None:
    apex = np.zeros((8, 15), bool)  # two legs of one pixel: the outline passes their meeting point, where rings begin, outside and inside
    for k in range(6):
        apex[k, 7 - k] = apex[k, 7 + k] = True
    apex[5:8, 0:3] = apex[5:8, 12:15] = True
    frame = np.ones((12, 12), bool)
    frame[3:9, 3:9] = False
    for mask in (apex, frame):
        (polygon,) = outlines(mask, 0.0)
        assert polygon.count(polygon[0]) == 2 and np.array_equal(filled([polygon], mask.shape), mask)


def test_a_real_outline_gets_few_points_and_keeps_its_form() -> None:
    y, x = np.mgrid[:300, :400]
    mask = ((x - 200) / 150) ** 2 + ((y - 150) / 100) ** 2 < 1
    exact, fine, coarse = (outlines(mask, epsilon) for epsilon in (0.0, 0.001, 0.01))
    assert len(exact[0]) > 3 * len(fine[0]) > 6 * len(coarse[0]) > 12
    assert np.array_equal(filled(exact, mask.shape), mask)
    assert iou(filled(fine, mask.shape), mask) > 0.98 and iou(filled(coarse, mask.shape), mask) > 0.93


def test_the_parts_of_a_mask_belong_together() -> None:
    mask = np.zeros((20, 30), bool)
    mask[2:8, 2:8] = mask[10:18, 15:25] = True
    mask[0, 29] = True  # a speck: no polygon
    other = {"index": 1, "phrase": "", "score": None, "mask": rle.encode(mask)}
    first = {"index": 0, "phrase": "the dog", "score": 0.4, "mask": rle.encode(mask)}
    answer = {"text": "It is the dog [mask 1], [mask 2].", "instruction": "what barks?", "segments": [first, other]}
    said = prediction(answer, 0.0, 0.0)
    assert [(s["label"], s["group_id"], s["score"]) for s in said["shapes"]] == [("dog", 1, 0.4)] * 2 + [("what barks?", 2, None)] * 2
    assert said["description"] == answer["text"] and {s["shape_type"] for s in said["shapes"]} == {"polygon"}
    assert np.array_equal(filled([s["points"] for s in said["shapes"][:2]], mask.shape), mask & (np.arange(30) < 29))
    assert [s["group_id"] for s in prediction(answer, 0.0, 0.5)["shapes"]] == [2, 2], "a mask below the threshold is left out"


def test_the_model_is_listed_with_controls_that_exist(tools: Server) -> None:
    listed = tools.http.get(f"{PATH}/models").json()
    (name, model), = listed["data"].items()  # fmt: skip
    assert name == "lisa-tiny" and model["batch_processing_mode"] == "text_prompt"
    assert {widget["name"] for widget in model["widgets"]} == KNOWN
    assert [task["id"] for task in model["available_tasks"]] == ["segment", "explain", "text"]
    assert all(set(task["active_widgets"]) == KNOWN for task in model["available_tasks"])


def test_a_prompt_is_answered_with_shapes_and_words(tools: Server) -> None:
    response = predict(tools, sent(1, marks=[{"type": "point", "data": [1, 2], "label": 1}], filter_classes=[])).json()
    truth = tools.ask(tools.upload(picture(1)), "the cup", mode="segment").json()
    assert response["success"] is True and response["data"]["description"] == truth["text"]
    (shape,) = response["data"]["shapes"]
    assert shape["label"] == "cup"
    assert np.array_equal(filled([shape["points"]], (24, 32)), rle.decode(truth["segments"][0]["mask"]))
    words = predict(tools, sent(1, current_task="text", text_prompt="text please")).json()["data"]
    assert words == {"shapes": [], "description": "Turn 1: text please"}


BAD: list[tuple[str, Any, int]] = [
    ("invalid_request", {}, 400),
    ("invalid_request", {**sent(), "params": None}, 400),
    ("invalid_request", {**sent(), "image": None}, 400),
    ("invalid_request", sent(current_task="dance"), 400),
    ("invalid_request", sent(epsilon_factor=-1), 400),
    ("invalid_request", sent(conf_threshold="high"), 400),
    ("model_not_found", {**sent(), "model": "segment_anything_3"}, 404),
    ("prompt_empty", sent(text_prompt=" "), 422),
    ("prompt_empty", {**sent(), "params": {"marks": [{"type": "rectangle", "data": [0, 0, 5, 5]}]}}, 422),
    ("prompt_too_long", sent(text_prompt="x" * 2001), 422),
    ("missing_image", {**sent(), "image": ""}, 400),
    ("invalid_base64", {**sent(), "image": "https://example.org/a.png"}, 400),
    ("invalid_base64", {**sent(), "image": "/etc/passwd?"}, 400),
    ("unsupported_format", {**sent(), "image": "data:image/png;base64,AAAA"}, 422),
    ("internal", sent(text_prompt="!raise"), 500),
]


@pytest.mark.parametrize(("code", "body", "status"), BAD)
def test_bad_requests_are_refused_in_words(tools: Server, code: str, body: Any, status: int) -> None:
    response = predict(tools, body)
    assert (code_of(response), response.status_code) == (code, status)


@pytest.mark.serve
@pytest.mark.parametrize(
    ("photo", "text"), [("astronaut", "the person"), ("cat", "the cat"), ("coffee", "the cup"), ("photographer", "the person"), ("rocket", "the sky")]
)
def test_a_real_mask_survives(tiny_tools: Server, photo: str, text: str) -> None:
    data = (EXAMPLES / f"{photo}.jpg").read_bytes()
    params = {"text_prompt": text, "epsilon_factor": 0.001}
    said = predict(tiny_tools, {"model": "lisa-tiny", "image": base64.b64encode(data).decode(), "params": params}).json()["data"]
    answer = tiny_tools.ask(tiny_tools.upload(data), text, mode="segment").json()
    mask = rle.decode(answer["segments"][0]["mask"])
    assert iou(filled([shape["points"] for shape in said["shapes"]], mask.shape), mask) >= 0.97
