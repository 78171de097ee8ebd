"""The same checkpoint in less memory: other precisions, 8 and 4 bits, several devices; and what is said when memory runs out."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.published_folder import random_model, write_folder
from tests.tiny_random import noise
from torch import Tensor, nn
from typer.testing import CliRunner

from lisaseg import load
from lisaseg.apps import cli
from lisaseg.chat import Conversation
from lisaseg.errors import LisaSegError, ModelLoadError, UsageError
from lisaseg.eval.run import Asking, head_of
from lisaseg.imaging import open_image
from lisaseg.model import memory
from lisaseg.model.host_memory import free_bytes, peak_bytes
from lisaseg.model.memory import (
    PUBLIC,
    Setting,
    available_bytes,
    bytes_of,
    cache_bytes,
    cheaper,
    empty_public,
    is_out_of_memory,
    memory_limit,
    memory_table,
)
from lisaseg.model.quantize import is_quantized
from lisaseg.predictor import Predictor

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]
PICTURE = noise(1, 50, 70)
LAYERWISE: dict[str, str | int] = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.rotary_emb": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("checkpoint") / "LISA", random_model())


def open_folder(folder: Path, **options: Any) -> Predictor:
    return load(folder, device="cpu", offline=True, **{"dtype": "float32", **options})


def states(predictor: Predictor) -> Tensor:
    """Last-layer states of one question, float32."""
    job = predictor._job(open_image(PICTURE), Conversation(), "Where is the bus?", "auto", 8)
    context = predictor.encode([job.picture])[0].context
    embeds = predictor.model.vlm.embed(torch.tensor([job.ids]), context.tokens, torch.zeros(1, dtype=torch.long))
    with torch.no_grad():
        return predictor.model.vlm.hidden_states(embeds, None, None)[0].float()


@pytest.fixture(scope="module")
def exact(folder: Path) -> Tensor:
    return states(open_folder(folder))


def change(ours: Tensor, exact: Tensor) -> float:
    return float((ours - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("kind", "least", "most"), [("8bit", 1e-3, 0.08), ("4bit", 0.05, 0.5)])
def test_quantised_models_answer(folder: Path, exact: Tensor, kind: str, dtype: str, least: float, most: float) -> None:
    predictor = open_folder(folder, quantize=kind, dtype=dtype)
    assert least < change(states(predictor), exact) < most, "quantised, and not broken"
    answer = predictor.ask(PICTURE, "Where is the bus?", mode="segment", max_new_tokens=4)
    assert len(answer.masks) >= 1 and answer.masks.shape[1:] == PICTURE.shape[:2]
    assert str(predictor.setting) == f"{kind} ({dtype})" == head_of(predictor, Asking())["precision"], "a report says so"


@pytest.mark.parametrize("kind", ["8bit", "4bit"])
def test_only_the_layers_are_quantised(folder: Path, kind: str) -> None:
    model = open_folder(folder, quantize=kind, dtype="bfloat16").model
    small = {name for name, p in model.named_parameters() if is_quantized(p)}
    assert small == {n for n, p in model.named_parameters() if n.startswith("vlm.language_model.model.layers.") and "layernorm" not in n}
    assert len(small) == 2 * 7
    rest = {name: p.dtype for name, p in model.named_parameters() if name not in small}
    assert {dtype for name, dtype in rest.items() if name.startswith("vlm.")} == {torch.bfloat16}
    assert {dtype for name, dtype in rest.items() if not name.startswith(("vlm.", "mask_decoder.sam.vision_encoder."))} == {torch.float32}
    assert not any(p.is_meta for p in model.parameters())


@pytest.mark.parametrize("kind", [None, "8bit", "4bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_foreseen(folder: Path, kind: str | None, dtype: torch.dtype) -> None:
    model = open_folder(folder, quantize=kind, dtype=str(dtype).removeprefix("torch.")).model
    held = sum(p.numel() * p.itemsize for p in model.parameters())
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            held += state.absmax.numel() * state.absmax.itemsize
    foreseen = sum(bytes_of(random_model(), Setting(dtype, kind)).values())
    assert foreseen == pytest.approx(held, rel=0.03)


def test_the_peak_is_told_where_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (peak_bytes() or 0) > 100_000_000, "torch alone takes more"
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_bytes() is None


def test_parameters_and_cache_are_counted() -> None:
    model = random_model()
    assert sum(bytes_of(model, Setting(torch.float32)).values()) == 4 * sum(p.numel() for p in model.parameters()), "every parameter is in a part"
    assert cache_bytes(model, Setting(torch.bfloat16), 100) == 2 * 2 * 64 * 100 * 2  # keys and values, layers, width, tokens, bytes


@pytest.mark.parametrize(("options", "told"), [
    ({"quantize": "2bit"}, "2bit"),
    ({"device_map": "everywhere"}, "everywhere"),
    ({"device_map": {"model.layers": "cpu", "lm_head": "disk"}}, "model.embed_tokens.weight"),
    ({"device_map": {"": "cuda:7"}}, "cuda:7"),
    ({"device_map": {"": "moon"}}, "moon"),
])  # fmt: skip
def test_options_that_mean_nothing(folder: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        open_folder(folder, **options)


@pytest.mark.parametrize("option", [{"quantize": "4bit"}, {"device_map": "auto"}])
def test_lisa_tiny_is_small_already(option: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"small already\. Leave"):
        load("lisa-tiny", device="cpu", offline=True, **option)


def test_bitsandbytes_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'lisaseg\[quant\]'"):
        open_folder(folder, quantize="8bit")


@pytest.mark.parametrize("table", [
    "auto", {"": "cpu"}, {"": "disk"},
    LAYERWISE | {"model.layers.1": "disk", "model.norm": "disk", "lm_head": "cpu"},
    LAYERWISE | {"model.layers.1": "cpu", "model.norm": "cpu", "lm_head": "disk"},
])  # fmt: skip
def test_a_model_that_is_spread_computes_the_same(folder: Path, exact: Tensor, table: Any) -> None:
    predictor = open_folder(folder, device_map=table)
    assert torch.equal(states(predictor), exact)
    answer = predictor.ask(PICTURE, "Where is the bus?", mode="segment", max_new_tokens=4)
    whole = open_folder(folder).ask(PICTURE, "Where is the bus?", mode="segment", max_new_tokens=4)
    assert answer.raw_text == whole.raw_text and (answer.masks == whole.masks).all()
    pinned = [predictor.model.mask_decoder, predictor.model.seg_head, predictor.model.vlm.vision]
    assert not any(p.is_meta for part in pinned for p in part.parameters())  # type: ignore[union-attr]
    away = {n for n, p in predictor.model.vlm.language_model.named_parameters() if p.is_meta}
    assert bool(away) == ("disk" in (table.values() if isinstance(table, dict) else ())), "what is on the disk takes no memory"
    assert predictor.model.device == CPU


def test_the_disk_keeps_the_precision(folder: Path) -> None:
    spread, whole = open_folder(folder, dtype="bfloat16", device_map={"": "disk"}), open_folder(folder, dtype="bfloat16")
    assert torch.equal(states(spread), states(whole)) and spread.model.dtype == torch.bfloat16
    place = Path(spread.model.vlm.language_model.offload_folder.name)
    assert place.is_dir()
    spread.model.vlm.language_model.offload_folder.cleanup()
    assert not place.exists()


def test_auto_fills_what_there_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has room for everything but a layer leaves that one, and what comes after it, on the disk."""
    from accelerate import utils

    model = random_model()
    beside = sum(size for part, size in bytes_of(model, Setting()).items() if part != "language model")
    layer = sum(4 * p.numel() for p in model.vlm.language_model.model.layers[0].parameters())
    room = 3_000_000_000 + beside + 4 * model.vlm.language_model.model.embed_tokens.weight.numel() + int(2.5 * layer)
    monkeypatch.setattr(utils, "get_max_memory", lambda: {"cpu": room})
    language_model = open_folder(folder, device_map="auto").model.vlm.language_model
    assert not any(p.is_meta for p in language_model.model.layers[0].parameters())
    assert all(p.is_meta for p in language_model.lm_head.parameters())
    with pytest.raises(ModelLoadError, match="disk, which bitsandbytes cannot do"):
        monkeypatch.setattr(utils, "get_max_memory", lambda: {"cpu": 3_000_000_000 + beside})
        open_folder(folder, quantize="8bit", device_map="auto")


CHAIN = [(Setting(torch.float32), "bfloat16"), (Setting(torch.bfloat16), "8bit"), (Setting(torch.float16), "8bit"),
         (Setting(torch.bfloat16, "8bit"), "4bit"), (Setting(torch.bfloat16, "4bit"), "lisa-tiny")]  # fmt: skip


@pytest.mark.parametrize(("setting", "step"), CHAIN)
def test_the_next_cheaper_setting_is_cheaper(setting: Setting, step: str) -> None:
    assert step in cheaper(setting, CPU)
    assert ("device_map" in cheaper(setting, torch.device("cuda"))) == (setting.quantize is None)


@pytest.mark.parametrize(("options", "step"), [({}, "bfloat16"), ({"dtype": "bfloat16"}, "8bit"), ({"quantize": "8bit"}, "4bit")])
def test_weights_that_cannot_fit_are_refused_before_they_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], step: str
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: 100_000)
    with pytest.raises(ModelLoadError, match="GB free") as caught:
        open_folder(folder, **options)
    assert caught.value.code == "out_of_memory" and caught.value.exit_code == 3 and step in caught.value.next_step


@pytest.mark.skipif(not Path("/proc/meminfo").is_file(), reason="only Linux says how much memory is free")
def test_free_memory_is_read() -> None:
    total = sum(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith(("MemTotal", "SwapTotal")))
    free = available_bytes(CPU)
    assert free is not None and 10_000_000 < free <= total * 1024


MIB = 1 << 20
MEMINFO = "MemTotal: 8388608 kB\nMemFree: 1048576 kB\nMemAvailable:  4194304 kB\nSwapFree: 1024 kB\nHugePages_Total: 0\n"


@pytest.mark.parametrize(
    ("group", "free", "with_swap"),
    [
        ({}, 4096, 4097),
        ({"memory.max": "max", "memory.current": f"{100 * MIB}"}, 4096, 4097),
        ({"memory.max": f"{512 * MIB}", "memory.current": f"{500 * MIB}"}, 12, 13),
        ({"memory.max": f"{512 * MIB}", "memory.current": f"{500 * MIB}", "memory.stat": f"anon 5\ninactive_file {400 * MIB}\n"}, 412, 413),
        ({"memory.max": f"{512 * MIB}", "memory.current": f"{600 * MIB}", "memory.swap.max": "0", "memory.swap.current": "0"}, 0, 0),
        ({"memory.max": "nonsense"}, 4096, 4097),
    ],
)
def test_a_container_has_what_its_limit_leaves(tmp_path: Path, group: dict[str, str], free: int, with_swap: int) -> None:
    """A load that fits the host but not the container would be killed without a word."""
    (tmp_path / "meminfo").write_text(MEMINFO)
    for name, text in group.items():
        (tmp_path / name).write_text(text + "\n")
    assert free_bytes(proc=tmp_path, group=tmp_path) == free * MIB and free_bytes(swap=True, proc=tmp_path, group=tmp_path) == with_swap * MIB
    assert free_bytes(proc=tmp_path / "not linux", group=tmp_path) is None


def test_running_out_while_answering(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The allocator's own error, wherever it comes from."""
    predictor = open_folder(folder, dtype="bfloat16")
    chat = predictor.chat(PICTURE)
    monkeypatch.setattr(predictor.model, "encode_image", lambda inputs: torch.empty(1 << 55))
    with pytest.raises(LisaSegError, match="bfloat16 on cpu needs more memory") as caught:
        chat.ask("Where is the bus?")
    assert caught.value.code == "out_of_memory" and "8bit" in caught.value.next_step
    with pytest.raises(LisaSegError, match="Ask fewer questions at once"):
        predictor.ask_batch([(PICTURE, "One?"), (PICTURE, "Two?")])
    monkeypatch.undo()
    assert chat.turns == [] and chat.ask("Where is the bus?", max_new_tokens=2), "the chat is as it was"


def test_running_out_while_loading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: None)  # a system that does not say
    monkeypatch.setattr(nn.Module, "to", lambda self, device: torch.empty(1 << 55))
    with pytest.raises(ModelLoadError, match="float32 on cpu needs more memory") as caught:
        open_folder(folder)
    assert "bfloat16" in caught.value.next_step


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    MemoryError(),
])  # fmt: skip
def test_all_ways_to_run_out(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), memory_limit("It", "Do."):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def table_after(text: str, heading: str) -> list[list[str]]:
    """Rows of the first table behind a heading, without its head."""
    rows = text.split(heading, 1)[1].splitlines()[1:]
    start = next(k for k, row in enumerate(rows) if row)
    end = next(k for k in range(start, len(rows)) if not rows[k])
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[start + 2 : end]]


def test_the_tables_of_the_docs_are_what_is_computed_and_measured() -> None:
    docs = (ROOT / "docs" / "checkpoints.md").read_text("utf-8")
    counted = []
    for name in PUBLIC:
        for setting, sizes in memory_table(empty_public(name)):
            rest = sizes["vision tower"] + sizes["projector"] + sizes["seg head"]
            shown = (sizes["language model"], sizes["mask decoder"], rest, sizes["weights"], sizes["one question"])
            counted.append([name, setting, *(f"{size / 1e9:.1f}" for size in shown)])
    assert table_after(docs, "it from the config, in GB (10^9 bytes):") == counted
    measured = json.loads((ROOT / "benchmarks" / "results" / "quantized.json").read_text("utf-8"))["results"]
    wanted = [
        [r["fixture"], r["setting"].removeprefix("none, "), f"{100 * r['state_change']:.2f} %", f"{100 * r['same_next_token']:.1f} %",
         f"{r['mask_iou']:.3f}"] for r in measured if r["setting"] != "none, float32"
    ]  # fmt: skip
    assert table_after(docs, "an upper bound):") == wanted


def test_the_command_counts_a_folder_too(folder: Path) -> None:
    result = CliRunner().invoke(cli.app, ["models", "memory", str(folder), "--json"])
    counted = json.loads(result.stdout)["LISA"]
    assert counted["float32"]["weights"] == sum(p.numel() * p.itemsize for p in open_folder(folder).model.parameters())
    assert list(counted) == ["float32", "bfloat16", "8bit (bfloat16)", "4bit (bfloat16)"]
    weights = [row["weights"] for row in counted.values()]
    assert weights == sorted(weights, reverse=True), "each is cheaper than the one before"
