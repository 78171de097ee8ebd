"""`models verify` finds any damage that can be found, and says which file or tensor it is; a converted checkpoint does not even load with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.published_folder import random_model, write_folder
from tests.test_published import ONE_OF_EACH
from typer.testing import CliRunner

from lisaseg import load
from lisaseg.apps import cli
from lisaseg.errors import ModelLoadError
from lisaseg.model.convert import convert_checkpoint
from lisaseg.model.verify import record_picture, sample_picture, verify_checkpoint
from lisaseg.predictor import Predictor
from lisaseg.store import Check, write_manifest


def opened(folder: Path, dtype: str) -> Predictor:
    return load(folder, device="cpu", dtype=dtype, offline=True)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("original") / "LISA", random_model())


@pytest.fixture(scope="module")
def converted(original: Path) -> Path:
    out = convert_checkpoint(original, original.parent / "converted", offline=True, shard_bytes=200_000)
    record_picture(out, opened(out, "float32"))
    return out


@pytest.fixture
def copy(converted: Path, tmp_path: Path) -> Path:
    return shutil.copytree(converted, tmp_path / "LISA")


def verify(folder: Path) -> list[Check]:
    return verify_checkpoint(folder, offline=True, load=opened)


def failed(checks: list[Check]) -> dict[str, str]:
    assert all(bool(check.next_step) != check.ok for check in checks), "a failed check, and only that, has a next step"
    return {check.name: check.detail for check in checks if not check.ok}


def shard_of(folder: Path, name: str) -> Path:
    return folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][name]


def rewrite(file: Path, **changes: torch.Tensor) -> None:
    save_file(load_file(file) | changes, file, metadata={"format": "pt"})


def test_a_whole_checkpoint_passes(converted: Path, original: Path) -> None:
    checks = verify(converted)
    assert not failed(checks)
    names = [check.name for check in checks]
    assert names[-3:] == ["added tokens", "tensors", "picture"] and "vision_tower/model.safetensors" in names
    assert "[SEG]=384" in checks[-3].detail and "sha256" in checks[-2].detail and "IoU with the stored ones 1.000" in checks[-1].detail
    checks = verify(original)
    assert not failed(checks) and [check.name for check in checks] == ["files", "added tokens", "tensors"]
    assert "their own checksums agree" in checks[0].detail


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_one_changed_number_is_found_by_every_load(copy: Path, name: str) -> None:
    file = shard_of(copy, name)
    with safe_open(file, framework="pt") as tensors:
        tensor = tensors.get_tensor(name)
    tensor.view(-1)[-1] += 1e-3
    rewrite(file, **{name: tensor})
    with pytest.raises(ModelLoadError, match=f"damaged: {name} in {file.name}") as caught:
        opened(copy, "float32")
    assert caught.value.exit_code == 3
    wrong = failed(verify(copy))
    assert name in wrong["tensors"] and f"LISA/{file.name}" in wrong


def test_damage_inside_a_pickle_is_found(original: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(original, tmp_path / "LISA")
    file = folder / "pytorch_model-00001-of-00002.bin"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert file.name in failed(verify(folder))["files"]


def test_other_damage(copy: Path) -> None:
    tower = copy / "vision_tower" / "model.safetensors"
    tensors = load_file(tower)
    rewrite(tower, **{key: value + 1e-3 for key, value in tensors.items() if key.endswith("fc1.bias")})
    (copy / "added_tokens.json").write_text('{"[SEG]": 383, "<im_start>": 385, "<im_end>": 386}')
    wrong = failed(verify(copy))
    assert {"vision_tower/model.safetensors", "LISA/added_tokens.json", "added tokens"} <= set(wrong)
    assert "fc1.bias is not what manifest.json says" in wrong["tensors"], "a load says it too"


def test_another_answer_about_the_picture_is_found(copy: Path) -> None:
    """A checkpoint that is whole by its own hashes but computes something else than when it was converted."""
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["picture"]["answer"] = "It is [SEG] something else."
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert set(failed(verify(copy))) == {"picture"}
    assert not failed(verify_checkpoint(copy, offline=True)), "without load the picture is left out"


def test_another_mask_of_the_picture_is_found(copy: Path) -> None:
    from lisaseg.formats import rle

    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["picture"]["masks"] = [rle.encode(~rle.decode(mask)) for mask in manifest["picture"]["masks"]]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert "IoU [0.0" in failed(verify(copy))["picture"]


def test_the_picture_is_the_same_everywhere() -> None:
    import hashlib

    picture = sample_picture()
    assert picture.shape == (240, 320, 3)
    assert hashlib.sha256(picture.tobytes()).hexdigest() == "34788c2b78cc175b3b0cbaddd36c1168d97db9e050c613b98b40683f95479039"


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelLoadError):
        verify(tmp_path)
    write_manifest(tmp_path)
    with pytest.raises(ModelLoadError, match="manifest"):
        record_picture(tmp_path / "nowhere", None)  # type: ignore[arg-type]


def test_by_the_command_line(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*words: object) -> Any:
        return CliRunner().invoke(cli.app, ["models", *map(str, words), "--offline", "--device", "cpu"])

    out = tmp_path / "converted"
    assert run("convert", original, out, "--picture", "--dtype", "float32").exit_code == 0
    result = run("verify", out)
    assert result.exit_code == 0 and "picture" in result.stdout, result.output
    assert "picture" not in run("verify", out, "--no-picture").stdout
    (out / "tokenizer.model").unlink()
    result = run("verify", out)
    assert result.exit_code == 3 and "tokenizer.model" in result.stdout
    assert run("verify", tmp_path / "nothing").exit_code == 3
    assert run("verify", "nobody/LISA-0B").exit_code == 3
