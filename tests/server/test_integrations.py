"""Doors for tools are closed until they are named, and then as well guarded as all others."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from tests.server.running import KEYS, Server, code_of, picture
from typer.testing import CliRunner

from lisaseg.apps.cli import app
from lisaseg.apps.server.integrations import INTEGRATIONS, IntegrationName, basic_password, names_in
from lisaseg.apps.server.settings import Settings
from lisaseg.errors import UsageError

LABEL_STUDIO, ANYLABELING = "/integrations/label-studio/health", "/integrations/x-anylabeling/v1/models"
POSTS = ["/integrations/label-studio/predict", "/integrations/label-studio/setup", "/integrations/x-anylabeling/v1/predict"]


def basic(password: str, user: str = "anybody") -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_a_closed_door_is_no_door(stub: Server, tools: Server) -> None:
    nowhere = stub.http.get("/integrations/nothing").json()["error"]
    for path in (LABEL_STUDIO, ANYLABELING):
        assert tools.http.get(path).status_code == 200
        refused = stub.http.get(path)
        assert refused.status_code == 404 and {**refused.json()["error"], "request_id": ""} == {**nowhere, "request_id": ""}
    for path in POSTS:
        assert code_of(stub.http.post(path, json={})) == "not_found" and code_of(tools.http.post(path, json={})) in ("invalid_request", "")
    assert not any("integrations" in path for path in stub.http.get("/openapi.json").json()["paths"])


def test_open_doors_are_in_the_contract(tools: Server) -> None:
    document = tools.http.get("/openapi.json").json()
    assert {*POSTS, LABEL_STUDIO, ANYLABELING} <= set(document["paths"])
    named = set(json.dumps(document).split('"#/components/schemas/')[1:])
    assert {name.partition('"')[0] for name in named} <= set(document["components"]["schemas"]), "every reference leads somewhere"
    assert tools.http.get("/docs").status_code == 200


def test_limits_tell_which_doors_are_open(stub: Server, tools: Server) -> None:
    assert get_args(IntegrationName) == tuple(INTEGRATIONS)
    assert stub.http.get("/v1/limits").json()["integrations"] == []
    assert tools.http.get("/v1/limits").json()["integrations"] == ["label-studio", "x-anylabeling"]
    document = stub.http.get("/openapi.json").json()
    response = document["paths"]["/v1/limits"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    schema = document["components"]["schemas"][response["$ref"].rpartition("/")[2]]
    assert schema["properties"]["integrations"]["items"]["enum"] == list(INTEGRATIONS)
    assert set(schema["properties"]) == set(schema["required"]) == set(stub.http.get("/v1/limits").json())


@pytest.mark.parametrize(("text", "names"), [("", ()), (" , ", ()), ("a", ("a",)), ("b, A,b", ("b", "a"))])
def test_names_are_read_from_one_option(text: str, names: tuple[str, ...]) -> None:
    assert names_in(text) == names


def test_a_misspelled_name_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="label-studio, x-anylabeling"):
        Settings(state=tmp_path, integrations=("labelstudio",))
    run = CliRunner().invoke(app, ["serve", "--state", str(tmp_path), "--integrations", "cvat"])
    assert run.exit_code != 0 and isinstance(run.exception, UsageError | SystemExit)
    for tool in INTEGRATIONS.values():
        assert tool.load().router.prefix.startswith("/") and tool.prefix.endswith("/")


@pytest.mark.parametrize("value", ["", "Basic", "Basic !!!", "Basic /w==", "Basic YQ==", "Bearer YTpi", "basic", "Basic " + "A" * 4001])
def test_strange_passwords_are_none(value: str) -> None:
    assert basic_password({"authorization": value}) == ""


def test_a_password_may_hold_colons_and_letters() -> None:
    assert basic_password({"authorization": basic("a:b:é")["Authorization"]}) == "a:b:é"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = ("--stub-seconds", "0", "--integrations", "label-studio,x-anylabeling", "--limit", "requests_per_minute=6000")
    server = Server(tmp_path_factory.mktemp("guarded"), *options, keys=KEYS)
    yield server
    assert server.stop() == 0


@pytest.mark.serve
def test_each_tool_brings_its_key_in_its_own_way_and_only_on_its_own_paths(guarded: Server) -> None:
    nobody = guarded.client()
    ways: list[tuple[dict[str, str], set[str]]] = [
        ({"Authorization": f"Bearer {KEYS[1]}"}, {LABEL_STUDIO, ANYLABELING, "/v1/limits"}),
        (basic(KEYS[1]), {LABEL_STUDIO}),
        ({"Token": KEYS[1]}, {ANYLABELING}),
        (basic("wrong-key-0123456789"), set()),
        (basic("", KEYS[1]), set()),
        ({"Token": "wrong-key-0123456789"}, set()),
        ({"Token": KEYS[1], "Authorization": "Bearer wrong-key-0123456789"}, set()),
        ({"Authorization": f"Token {KEYS[1]}"}, set()),
        ({}, set()),
    ]
    for headers, opened in ways:
        for path in (LABEL_STUDIO, ANYLABELING, "/v1/limits", LABEL_STUDIO.upper(), f"/{LABEL_STUDIO}"):
            response = nobody.get(path, headers=headers)
            if path in opened:
                assert response.status_code == 200, (headers, path)
            elif path in (LABEL_STUDIO, ANYLABELING, "/v1/limits") or not opened:
                assert response.status_code == 401 and code_of(response) == "unauthorized", (headers, path)
            else:
                assert response.status_code in (401, 404)
    for path in POSTS:
        assert code_of(nobody.post(path, json={})) == "unauthorized"


@pytest.mark.serve
def test_what_a_tool_sends_belongs_to_its_key(guarded: Server) -> None:
    image = "data:image/png;base64," + base64.b64encode(picture(3)).decode()
    body = {"model": "lisa-tiny", "image": image, "params": {"text_prompt": "cup"}}
    assert guarded.client().post(POSTS[2], json=body, headers={"Token": KEYS[2]}).status_code == 200
    mine, other = guarded.client(KEYS[2]), guarded.client(KEYS[3])
    image_id = guarded.upload(picture(3), mine)
    assert code_of(other.get(f"/v1/images/{image_id}")) == "not_found"


@pytest.mark.serve
def test_limits_hold_for_tools(tmp_path: Path) -> None:
    server = Server(tmp_path, "--integrations", "label-studio", "--limit", "requests_per_minute=60", "--limit", "max_body_bytes=2000", keys=KEYS)
    try:
        config = '<View><Image name="i" value="$i"/><BrushLabels name="b" toName="i"/></View>'
        tasks: list[dict[str, Any]] = [{"id": 1, "data": {"i": "x"}}]
        http = server.client(KEYS[0])
        assert code_of(http.post(POSTS[0], json={"tasks": tasks, "label_config": config + " " * 2000})) == "body_too_large"
        answers = [http.post(POSTS[0], json={"tasks": tasks, "label_config": config}) for _ in range(15)]
        assert {answer.status_code for answer in answers} == {200, 429}
        assert server.client(KEYS[1]).get(LABEL_STUDIO).status_code == 200
    finally:
        server.kill()
