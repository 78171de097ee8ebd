"""Label Studio: what its own SDK reads out of our predictions is what the model said, and what it sends, good or bad, is answered as it expects.

Its SDK (with OpenCV and pandas behind it) is there in `make test-contracts`; without it our own reader of brush masks, which `tests/formats` holds to
the SDK's code, stands in, and the tests that are about the SDK itself are skipped.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tests.server.running import Server, clean, code_of, picture

from lisaseg.apps.integrations.label_studio import address_of, interface_of, prediction, prompt_of
from lisaseg.apps.integrations.labels import label_for
from lisaseg.errors import UsageError
from lisaseg.formats import rle
from lisaseg.formats.labelstudio import decode_brush

CONFIG = """<View>
  <Image name="img" value="$photo"/>
  <View className="prompt"><TextArea name="prompt" toName="img" editable="true" rows="2" maxSubmissions="1" showSubmitButton="true"/></View>
  <BrushLabels name="things" toName="img"><Label value="cup" background="red"/><Label value="dog"/><Label value="hot dog"/></BrushLabels>
</View>"""
WITH_ANSWER = CONFIG.replace("</View>\n  <Brush", '<TextArea name="answer" toName="img"/></View>\n  <Brush')
FROM_FIELD = CONFIG.replace('name="prompt" toName="img"', 'name="ask" toName="img" value="$question"')
PATH = "/integrations/label-studio"


def data_url(seed: int = 0) -> str:
    return "data:image/png;base64," + base64.b64encode(picture(seed)).decode()


def typed(*texts: str, name: str = "prompt") -> dict[str, Any]:
    """The context that Label Studio sends when something was typed."""
    return {"result": [{"type": "textarea", "from_name": name, "to_name": "img", "value": {"text": [text]}} for text in texts]}


def body(*datas: dict[str, Any], context: Any = None, config: str = CONFIG) -> dict[str, Any]:
    """What `MLApi.make_predictions` sends."""
    tasks = [{"id": 7 + k, "data": data, "project": 1, "meta": {}, "created_at": "2026-01-01"} for k, data in enumerate(datas)]
    return {"tasks": tasks, "project": "1.1700000000", "label_config": config, "params": {"login": None, "password": None, "context": context}}


def mask_of(result: dict[str, Any]) -> np.ndarray:
    """The mask as Label Studio's own converter reads it."""
    size = (result["original_height"], result["original_width"])
    try:
        from label_studio_sdk.converter.brush import decode_rle
    except ImportError:
        return decode_brush(result["value"]["rle"], *size)
    values = decode_rle(result["value"]["rle"]).reshape(*size, 4)
    assert set(np.unique(values)) <= {0, 255} and (values == values[:, :, :1]).all()
    return values[:, :, 3] == 255  # type: ignore[no-any-return]


def answer_with(mask: np.ndarray, **more: Any) -> dict[str, Any]:
    segment = {"index": 0, "phrase": "the dog", "area": int(mask.sum()), "score": 0.75, "mask": rle.encode(mask)}
    image = {"width": mask.shape[1], "height": mask.shape[0]}
    return {
        "id": "ans_0123456789abcdef",
        "model": "m",
        "instruction": "x",
        "text": "It is the dog [mask 1].",
        "image": image,
        "segments": [segment],
        **more,
    }


# --- the setup -----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CONFIG, WITH_ANSWER, FROM_FIELD])
def test_a_setup_is_read_as_the_sdk_reads_it(config: str) -> None:
    sdk = pytest.importorskip("label_studio_sdk.label_interface")
    ours, theirs = interface_of(config), sdk.LabelInterface(config)
    brush = theirs.get_control("things")
    assert (ours.brush, ours.image) == (brush.name, brush.to_name[0])
    assert ours.image_field == theirs.get_object(ours.image).value_name
    assert list(ours.labels) == [*brush.labels]
    assert {*ours.text_areas} | ({"answer"} if ours.has_answer else set()) == {tag.name for tag in theirs.controls if tag.tag == "TextArea"}
    assert ours.mode == ("explain" if config is WITH_ANSWER else "segment")
    assert ours.prompt_field == ("question" if config is FROM_FIELD else "prompt")


@pytest.mark.parametrize(
    "config",
    [
        "", "no xml", "<View>", "<View/>", '<View><Image name="i" value="$i"/></View>', '<View><BrushLabels name="b" toName="i"/></View>',
        '<View><Image name="i"/><BrushLabels name="b" toName="i"/></View>',
        '<View><Image name="i" value="http://x/y.png"/><BrushLabels name="b" toName="i"/></View>',
        '<!DOCTYPE a [<!ENTITY b "c">]><View><Image name="i" value="$i"/><BrushLabels name="b" toName="i"/></View>', "\0",
        "<a>" * 5000, "<a>" * 20_000 + "</a>" * 20_000,
        f'<View><Image name="i" value="${"i" * 81}"/><BrushLabels name="b" toName="i"/></View>',
        '<View><Image name="i" value="$i"/><BrushLabels toName="i"/></View>', "\ufffe", '<?xml version="1.0" encoding="utf-7"?><View/>',
    ],
)  # fmt: skip
def test_other_setups_are_refused_with_a_next_step(config: str) -> None:
    with pytest.raises(UsageError) as refused:
        interface_of(config)
    assert refused.value.next_step.endswith(".")
    clean(str(refused.value))


# --- what is asked -------------------------------------------------------------------------------------------------------------------------------


def test_what_was_typed_last_is_asked_else_what_the_task_says() -> None:
    plain, field = interface_of(CONFIG), interface_of(FROM_FIELD)
    assert prompt_of(plain, {"prompt": "stored"}, typed("one", "two")) == "two"
    assert (
        prompt_of(plain, {"prompt": "stored"}, {"result": [{"type": "textarea", "from_name": "prompt", "value": {"text": ["a", "b", " "]}}]}) == "b"
    )
    assert prompt_of(plain, {"prompt": "stored"}, {"result": [{"type": "textarea", "from_name": "prompt", "value": {"text": "bare"}}]}) == "bare"
    assert prompt_of(plain, {"prompt": "stored"}, typed("elsewhere", name="comment")) == "stored"
    assert prompt_of(plain, {"prompt": "stored"}, None) == prompt_of(plain, {"prompt": "stored"}, {"result": []}) == "stored"
    assert prompt_of(field, {"prompt": "stored", "question": "this"}, None) == "this"
    assert prompt_of(plain, {}, None) == prompt_of(plain, {"prompt": ["x"]}, typed("  ")) == ""


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.sampled_from(["result", "type", "value", "text", "from_name", "x"]), inner, max_size=4), max_leaves=12))  # fmt: skip
def test_no_context_is_too_strange(context: Any) -> None:
    if context is None or isinstance(context, dict):
        assert isinstance(prompt_of(interface_of(CONFIG), {}, context), str)


@pytest.mark.parametrize(
    ("phrase", "instruction", "label"),
    [
        ("the dog", "what barks?", "dog"), ("", "the hot dog", "hot dog"), ("the hot dog", "dog", "hot dog"), ("the hotdog", "lunch", "cup"),
        ("", "Which CUP is it?", "cup"), ("the cat", "what does not bark", "cup"),
    ],
)  # fmt: skip
def test_a_mask_gets_a_label_of_the_setup(phrase: str, instruction: str, label: str) -> None:
    assert label_for(interface_of(CONFIG).labels, phrase, instruction) == label


def test_labels_of_other_scripts_and_no_labels() -> None:
    assert label_for(["cup", "狗"], "", "请分割狗") == "狗"
    assert label_for([], "the dog", "x") == "dog" and label_for([], "", "an old dog") == "old dog" and label_for([], "", "the") == "the"
    assert label_for(["", "!"], "", "cup!") == ""


@pytest.mark.parametrize(
    "address", ["/data/upload/1/ab-cat.jpg", "/data/local-files/?d=a.jpg", "s3://b/c.png", "file:///etc/passwd", "cat.jpg", "/etc/passwd", "gs:x"]
)
def test_pictures_that_only_label_studio_can_read_are_refused(address: str) -> None:
    with pytest.raises(UsageError, match=r"LABEL_STUDIO_API_KEY.*--allow-url-host") as refused:
        address_of(interface_of(CONFIG), {"photo": address})
    assert refused.value.code == "url_not_allowed" and address not in str(refused.value)


# --- predictions ---------------------------------------------------------------------------------------------------------------------------------


@given(arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_the_sdk_decodes_every_mask_to_the_bit(mask: np.ndarray) -> None:
    said = prediction(interface_of(CONFIG), answer_with(mask))
    assert len(said["result"]) == bool(mask.any())
    for result in said["result"]:
        assert np.array_equal(mask_of(result), mask)


@pytest.mark.parametrize("config", [CONFIG, WITH_ANSWER])
def test_the_sdk_accepts_predictions_for_the_setup(config: str) -> None:
    sdk = pytest.importorskip("label_studio_sdk.label_interface")
    mask = np.eye(5, 7, dtype=bool)
    said = prediction(interface_of(config), answer_with(mask))
    theirs = sdk.LabelInterface(config)
    assert theirs.validate_prediction(said, return_errors=True) == [] or theirs.validate_prediction(said) is True
    wrong = json.loads(json.dumps(said))
    wrong["result"][0]["from_name"] = "other"
    assert theirs.validate_prediction(wrong) is False, "this check can fail"
    assert pytest.importorskip("label_studio_sdk.label_interface.objects").PredictionValue(**said).score == 0.75
    if config is WITH_ANSWER:
        assert said["result"][-1]["value"] == {"text": ["It is the dog [mask 1]."]}
    assert len({result["id"] for result in said["result"]}) == len(said["result"])


# --- the service ---------------------------------------------------------------------------------------------------------------------------------


def predict(server: Server, sent: Any, **more: Any) -> httpx2.Response:
    return server.http.post(f"{PATH}/predict", json=sent, **more)


def test_a_project_is_connected(tools: Server) -> None:
    assert tools.http.get(f"{PATH}/health").json()["status"] == "UP"
    assert tools.http.get(f"{PATH}/versions?project=1.17").json() == {"versions": ["lisa-tiny"]}
    sent = {"project": "1.17", "schema": CONFIG, "hostname": "http://localhost:8080", "access_token": "secret", "extra_params": None}
    assert tools.http.post(f"{PATH}/setup", json=sent).json() == {"model_version": "lisa-tiny"}
    assert tools.http.post(f"{PATH}/setup", json={**sent, "schema": ""}).status_code == 200, "a new project has no setup yet"
    assert code_of(tools.http.post(f"{PATH}/setup", json={**sent, "schema": "<View/>"})) == "invalid_request"


def test_what_is_typed_is_answered_with_masks(tools: Server) -> None:
    response = predict(tools, body({"photo": data_url(1)}, context=typed("the dog"))).json()
    (said,) = response["results"]
    (result,) = said["result"]
    image_id = tools.upload(picture(1))
    truth = tools.ask(image_id, "the dog", mode="segment").json()["segments"][0]
    assert np.array_equal(mask_of(result), rle.decode(truth["mask"]))
    assert (result["from_name"], result["to_name"], result["type"], result["value"]["brushlabels"]) == ("things", "img", "brushlabels", ["dog"])
    assert (result["original_width"], result["original_height"], result["image_rotation"]) == (32, 24, 0)
    assert (said["score"], said["model_version"], response["model_version"]) == (0.5, "lisa-tiny", "lisa-tiny")


def test_tasks_are_answered_in_their_order_and_bad_ones_cost_the_others_nothing(tools: Server) -> None:
    datas: list[dict[str, Any]] = [{"photo": data_url(k), "prompt": f"cup {k}"} for k in range(10)]
    datas[3] = {"photo": "/data/upload/1/x.jpg", "prompt": "cup"}
    datas[5] = {"photo": data_url(5)}
    datas[8] = {"photo": "data:image/png;base64,AAAA", "prompt": "cup"}
    response = predict(tools, body(*datas)).json()
    assert len(response["results"]) == 10 and [response["results"][k] for k in (3, 5, 8)] == [[], [], []]
    assert [(error["task"], error["code"]) for error in response["errors"]] == [(10, "url_not_allowed"), (15, "unsupported_format")]
    for k in (0, 1, 2, 4, 6, 7, 9):
        truth = tools.ask(tools.upload(picture(k)), f"cup {k}", mode="segment").json()["segments"][0]
        assert np.array_equal(mask_of(response["results"][k]["result"][0]), rle.decode(truth["mask"])), k


def test_what_would_hit_every_task_fails_the_request(tools: Server) -> None:
    datas = [{"photo": data_url(k), "prompt": "!oom" if k == 2 else "cup"} for k in range(4)]
    response = predict(tools, body(*datas))
    assert code_of(response) == "out_of_memory" and response.headers["retry-after"], "it may be sent again as it is"


def test_nothing_typed_is_nothing_found(tools: Server) -> None:
    assert predict(tools, body({"photo": data_url()})).json()["results"] == [[]], "nothing is stored"
    assert predict(tools, body({"photo": data_url()}, context={"result": []})).json()["results"][0]["result"] == []


def test_an_answer_has_its_place(tools: Server) -> None:
    said = predict(tools, body({"photo": data_url(2)}, context=typed("cup"), config=WITH_ANSWER)).json()["results"][0]
    assert said["result"][-1]["type"] == "textarea" and said["result"][-1]["value"]["text"] == ["Turn 1: cup [mask 1]."]


BAD: list[tuple[str, Any, int]] = [
    ("invalid_request", {}, 400),
    ("invalid_request", body(), 400),
    ("invalid_request", body(*({} for _ in range(1001))), 400),
    ("invalid_request", {**body({"photo": "x"}), "label_config": None}, 400),
    ("invalid_request", {**body({"photo": "x"}), "label_config": "<View/>"}, 400),
    ("invalid_request", {**body({"photo": "x"}), "label_config": "x" * 200_001}, 400),
    ("invalid_request", {**body({"photo": "x"}), "tasks": [{"data": [1]}]}, 400),
    ("invalid_request", {**body({"photo": "x"}), "params": []}, 400),
    ("missing_image", body({"prompt": "x"}), 400),
    ("missing_image", body({"photo": 5, "prompt": "x"}), 400),
    ("url_not_allowed", body({"photo": "/data/upload/1/a.jpg", "prompt": "x"}), 422),
    ("url_input_disabled", body({"photo": "https://example.org/a.jpg", "prompt": "x"}), 422),
    ("url_input_disabled", body({"photo": "http://127.0.0.1:8080/data/a.jpg", "prompt": "x"}), 422),
    ("invalid_base64", body({"photo": "data:image/png,AAAA", "prompt": "x"}), 400),
    ("invalid_base64", body({"photo": "data:image/png;base64,%%%", "prompt": "x"}), 400),
    ("missing_image", body({"photo": "data:image/png;base64,", "prompt": "x"}), 400),
    ("unsupported_format", body({"photo": "data:image/svg+xml;base64,PHN2Zy8+", "prompt": "x"}), 422),
    ("prompt_too_long", body({"photo": data_url(), "prompt": "x" * 2001}), 422),
    ("prompt_empty", body({"photo": data_url(), "prompt": "\u200b\u0000"}), 422),
    ("internal", body({"photo": data_url(), "prompt": "!raise"}), 500),
]


@pytest.mark.parametrize(("code", "sent", "status"), BAD)
def test_bad_requests_are_refused_in_words(tools: Server, code: str, sent: Any, status: int) -> None:
    response = predict(tools, sent)
    assert (code_of(response), response.status_code) == (code, status)


def test_bodies_that_are_no_json(tools: Server) -> None:
    for content, kind, code in (
        (b"{", "application/json", "invalid_json"),
        (b"[]", "application/json", "invalid_json"),
        (b"a=b", "text/plain", "unsupported_media_type"),
    ):
        assert code_of(tools.http.post(f"{PATH}/predict", content=content, headers={"Content-Type": kind})) == code


def test_what_it_does_not_do_is_not_there(tools: Server) -> None:
    for name in ("train", "webhook", "validate", "delete", ""):
        assert code_of(tools.http.post(f"{PATH}/{name}", json={})) == "not_found", name


@pytest.fixture(scope="module")
def fetching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("fetching"), "--integrations", "label-studio", "--allow-url-host", "*", "--stub-seconds", "0")
    yield server
    server.kill()


@pytest.mark.serve
@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a.png",
        "https://127.0.0.1/a.png",
        "https://[::ffff:169.254.169.254]/latest",
        "https://user@example.org/",
        "https://a:8443/",
    ],
)
def test_fetching_is_the_services_own(fetching: Server, url: str) -> None:
    assert code_of(predict(fetching, body({"photo": url, "prompt": "x"}))) == "url_not_allowed"


def test_the_setup_in_the_guide_works() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text("utf-8")
    config = guide.partition("```xml\n")[2].partition("```")[0]
    read = interface_of(config)
    assert (read.brush, read.image, read.image_field, read.prompt_field) == ("tag", "image", "image", "prompt") and read.labels == ("dog", "cup")
    assert interface_of(config.replace("<BrushLabels", '<TextArea name="answer" toName="image"/><BrushLabels')).has_answer
    pytest.importorskip("label_studio_sdk.label_interface").LabelInterface(config).validate()


def test_the_tasks_of_the_guide_are_answered(tools: Server, tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text("utf-8")
    code = guide.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(picture(1))
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    (task,) = json.loads((tmp_path / "tasks.json").read_text())
    sent = {"tasks": [{"id": 1, **task}], "label_config": guide.partition("```xml\n")[2].partition("```")[0]}
    assert predict(tools, sent).json()["results"][0]["result"][0]["value"]["brushlabels"] == ["dog"]
