"""`lisaseg annotate` as a process: what the page calls, what others may not, and what is left when it dies."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from tests.server.running import EXAMPLES, ROOT, Server, code_of

from lisaseg.formats import rle
from lisaseg.formats.jsonl import read_jsonl

pytestmark = pytest.mark.serve
Start = Callable[..., Server]
CAT = (300, 451)


@pytest.fixture
def annotate(tmp_path: Path) -> Iterator[Start]:
    servers: list[Server] = []
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("cat.jpg", "coffee.jpg"):
        shutil.copy(EXAMPLES / name, pictures)

    def make(*options: str, state: str = "state", **more: Any) -> Server:
        servers.append(Server(tmp_path / state, *options, command=("annotate", str(pictures), "--port", "0"), **more))
        return servers[-1]

    yield make
    for server in servers:
        server.kill()


def cat(server: Server) -> str:
    return next(str(one["id"]) for one in server.http.get("/v1/annotate").json()["pictures"] if one["name"] == "cat.jpg")


def body(server: Server, **fields: Any) -> dict[str, Any]:
    mask = np.zeros(CAT, bool)
    mask[20:90, 30:200] = True
    return {"picture": cat(server), "revision": None, "text": "what purrs", "masks": [rle.encode(mask)], **fields}


def lisaseg(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "lisaseg", *words], capture_output=True, text=True, timeout=300, cwd=ROOT / "src", check=False)


def test_from_pictures_to_a_file_that_can_be_trained_on(annotate: Start, tmp_path: Path) -> None:
    server = annotate()
    overview = server.http.get("/v1/annotate").json()
    assert [one["name"] for one in overview["pictures"]] == ["cat.jpg", "coffee.jpg"] and overview["model"] == "lisa-tiny"
    found = server.http.get(f"/v1/annotate/pictures/{cat(server)}").json()
    assert (found["height"], found["width"], found["samples"]) == (*CAT, [])
    answer = server.http.post(f"/v1/annotate/pictures/{cat(server)}/propose", json={"prompt": "what purrs", "mode": "segment"}).json()
    proposed = answer["segments"][0]["mask"]
    saved = server.http.put("/v1/annotate/samples/cat-1", json=body(server, masks=[proposed], target=["cat"], rephrasings=["who says meow?"])).json()
    assert saved["masks"] == [proposed]
    server.http.put(f"/v1/annotate/samples/{quote('an odd/id?', safe='')}", json=body(server, text="who barks?", is_sentence=True, masks=None))
    assert server.http.get("/v1/annotate").json()["pictures"][0]["samples"] == 2
    path = tmp_path / "pictures/annotations.jsonl"
    first, second = read_jsonl(path)
    assert first.id == "cat-1" and first.queries[0].name == "cat" and second.id == "an odd/id?" and second.queries[0].masks == ()
    check = lisaseg("data", "check", str(path))
    assert check.returncode == 0 and "2 samples, no faults" in check.stderr
    assert server.http.get("/").text.startswith("<!doctype html>") and "annotate/main.js?v=" in server.http.get("/").text


def test_training_reads_the_file_at_once(annotate: Start, tmp_path: Path) -> None:
    server = annotate("--no-model")
    for k in range(3):
        server.http.put(f"/v1/annotate/samples/s{k}", json=body(server, text=f"what purrs, number {k}", target=["cat"]))
    settings = {"data.jsonl.mine.path": tmp_path / "pictures/annotations.jsonl", "out": tmp_path / "run", "optim.precision": "float32",
                "optim.batch": 1, "optim.accumulation": 1}  # fmt: skip
    options = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    done = lisaseg("train", str(ROOT / "recipes/finetune.toml"), "--dry-run", *options)
    assert done.returncode == 0, done.stderr[-800:]


def test_a_killed_process_loses_nothing_that_was_saved(annotate: Start, tmp_path: Path) -> None:
    server = annotate("--no-model")
    for k in range(20):
        assert server.http.put(f"/v1/annotate/samples/s{k}", json=body(server, text=f"{k}")).status_code == 200
    server.kill()
    path = tmp_path / "pictures/annotations.jsonl"
    assert [sample.queries[0].text for sample in read_jsonl(path)] == [str(k) for k in range(20)]
    again = annotate("--no-model")
    samples = again.http.get(f"/v1/annotate/pictures/{cat(again)}").json()["samples"]
    assert [one["text"] for one in samples] == [str(k) for k in range(20)]


def test_edits_from_two_sides(annotate: Start, tmp_path: Path) -> None:
    server = annotate("--no-model")
    path = tmp_path / "pictures/annotations.jsonl"
    saved = server.http.put("/v1/annotate/samples/s", json=body(server)).json()
    path.write_text(path.read_text().replace("what purrs", "what hunts mice"))
    refused = server.http.put("/v1/annotate/samples/s", json=body(server, revision=saved["revision"], text="mine"))
    assert refused.status_code == 409 and refused.json()["error"]["code"] == "sample_changed"
    now = refused.json()["now"]
    assert now["text"] == "what hunts mice" and "what hunts mice" in path.read_text()
    assert server.http.put("/v1/annotate/samples/s", json=body(server, revision=now["revision"], text="mine")).status_code == 200
    assert server.http.delete("/v1/annotate/samples/s", params={"revision": now["revision"]}).status_code == 409
    latest = server.http.get(f"/v1/annotate/pictures/{cat(server)}").json()["samples"][0]["revision"]
    assert server.http.delete("/v1/annotate/samples/s", params={"revision": latest}).status_code == 204 and path.read_bytes() == b""


def test_one_project_is_open_once(annotate: Start, tmp_path: Path) -> None:
    annotate("--no-model")
    with pytest.raises(RuntimeError, match="is being annotated already"):
        annotate("--no-model")


def test_without_a_model_nothing_is_loaded(annotate: Start) -> None:
    server = annotate("--no-model")
    assert server.engines == [] and server.http.get("/v1/annotate").json()["model"] is None
    refused = server.http.post(f"/v1/annotate/pictures/{cat(server)}/propose", json={"prompt": "a"})
    assert refused.status_code == 404 and "--no-model" in refused.json()["error"]["message"]
    assert (
        code_of(server.http.post("/v1/segment", json={"image_id": server.upload((EXAMPLES / "cat.jpg").read_bytes()), "prompt": "a"}))
        == "model_not_found"
    )


def test_other_pages_and_other_paths_are_refused(annotate: Start, tmp_path: Path) -> None:
    server = annotate("--no-model")
    (tmp_path / "secret.jpg").write_bytes((EXAMPLES / "cat.jpg").read_bytes())
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}):
        for method, path in (
            ("PUT", "/v1/annotate/samples/s"),
            ("DELETE", "/v1/annotate/samples/s"),
            ("GET", f"/v1/annotate/pictures/{cat(server)}/content"),
        ):
            options: dict[str, Any] = {"json": body(server)} if method == "PUT" else {}
            assert server.http.request(method, path, headers=headers, **options).status_code == 403
    assert server.http.put("/v1/annotate/samples/s", content=json.dumps(body(server)), headers={"content-type": "text/plain"}).status_code == 415
    for name in ("../secret.jpg", "%2e%2e%2fsecret.jpg", "/etc/passwd", "0" * 16):
        assert server.http.get(f"/v1/annotate/pictures/{quote(name, safe='')}/content").status_code == 404
    assert not (tmp_path / "pictures/annotations.jsonl").exists()
    assert {one["name"] for one in server.http.get("/v1/annotate").json()["pictures"]} == {"cat.jpg", "coffee.jpg"}


BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"text": "  "}, 422, "sample_refused"), ({"masks": []}, 422, "sample_refused"), ({"picture": "0" * 16}, 404, "not_found"),
    ({"masks": [{"size": [300, 451], "counts": "P"}]}, 422, "sample_refused"), ({"masks": [{"size": [9, 9], "counts": [81]}]}, 422, "sample_refused"),
    ({"masks": [{"size": [300, 451], "counts": [10**40]}]}, 422, "sample_refused"), ({"masks": 3}, 400, "invalid_request"),
    ({"text": 3}, 400, "invalid_request"), ({"folder": "/"}, 400, "invalid_request"), ({"text": "x" * 5000}, 400, "invalid_request"),
]  # fmt: skip


def test_bad_samples_are_refused_in_words(annotate: Start, tmp_path: Path) -> None:
    server = annotate("--no-model")
    for fields, status, code in BAD:
        refused = server.http.put("/v1/annotate/samples/s", json=body(server, **fields))
        assert (refused.status_code, code_of(refused)) == (status, code), fields
    assert not (tmp_path / "pictures/annotations.jsonl").exists()
