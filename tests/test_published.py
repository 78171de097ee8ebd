"""Published checkpoints load completely or not at all, from every form that people have them in."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.golden.places import EXTRAS
from tests.published_folder import published_tensors, random_model, write_folder, write_weights
from tests.published_random import VISION
from tests.tiny_random import noise

from lisaseg import load
from lisaseg.errors import ModelLoadError, UsageError
from lisaseg.model.assemble import load_model, load_published
from lisaseg.model.convert import convert_checkpoint, tensor_sha256
from lisaseg.model.lisa import LisaModel
from lisaseg.model.memory import CLIP_L14, PUBLIC, Setting, bytes_of, empty_public
from lisaseg.model.published import COMPUTED, published_key, read_config
from lisaseg.model.streaming import empty_model, stored_checksums
from lisaseg.prompts import MASK_MODES, TASKS
from lisaseg.types import Mode

CPU = torch.device("cpu")
ONE_OF_EACH = (
    "lm_head.weight", "model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", "model.mm_projector.bias", "model.text_hidden_fcs.0.2.weight",
    "model.visual_model.image_encoder.blocks.1.attn.rel_pos_h", "model.visual_model.image_encoder.pos_embed",
    "model.visual_model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", "model.visual_model.prompt_encoder.mask_downscaling.4.bias",
    "model.visual_model.mask_decoder.output_hypernetworks_mlps.3.layers.1.weight", "model.visual_model.mask_decoder.iou_token.weight",
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> LisaModel:
    return random_model()


@pytest.fixture(scope="module")
def folder(model: LisaModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("checkpoint") / "LISA", model)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "LISA")


def equal(first: LisaModel, second: LisaModel) -> None:
    a, b = first.state_dict(), second.state_dict()
    assert set(a) == set(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("form", "shards"), [("bin", 1), ("bin", 3), ("safetensors", 1), ("safetensors", 2)])
@pytest.mark.parametrize("projector", ["linear", "mlp2x_gelu"])
def test_every_form_loads_and_is_equal(tmp_path: Path, form: str, shards: int, projector: str) -> None:
    made = random_model(projector)
    loaded, tokenizer = load_model(write_folder(tmp_path / "LISA", made, projector, form, shards), torch.float32, offline=True)
    equal(made, loaded)
    assert tokenizer.seg_id == loaded.vlm.seg_token_id == 384 and loaded.vlm.n_image_tokens == 4
    assert not any(p.requires_grad or p.is_meta for p in loaded.parameters())
    assert not any(b.is_meta for b in loaded.buffers()), "what no file holds is computed"


def test_old_pickles_load_too(copy: Path, model: LisaModel) -> None:
    for file in copy.glob("*.bin"):
        torch.save(torch.load(file, weights_only=True), file, _use_new_zipfile_serialization=False)
    equal(model, load_published(copy, torch.float32, CPU, True)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_by_part(folder: Path, dtype: torch.dtype) -> None:
    loaded, _ = load_published(folder, dtype, CPU, True)
    sam = loaded.mask_decoder.sam  # type: ignore[union-attr]
    assert {p.dtype for p in loaded.vlm.parameters()} == {dtype}
    assert {p.dtype for p in sam.vision_encoder.parameters()} == {torch.bfloat16 if dtype == torch.bfloat16 else torch.float32}
    rest = [p for name, p in loaded.named_parameters() if not name.startswith(("vlm.", "mask_decoder.sam.vision_encoder."))]
    assert {p.dtype for p in rest} == {torch.float32}, "the positional encoding of the masks among them"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_one_load_and_one_question(folder: Path, dtype: str) -> None:
    predictor = load(folder, device="cpu", dtype=dtype, offline=True)
    answer = predictor.ask(noise(1, 50, 70), "Where is the bus?", mode="segment", max_new_tokens=4)
    assert len(answer.masks) >= 1 and answer.masks.shape[1:] == (50, 70)
    assert not predictor.ask(noise(1, 50, 70), "Where is the bus?", mode="text", max_new_tokens=4).segments
    assert predictor.counters == {"image_encodings": 1, "mask_encodings": 1}


def spoilt(tensor: torch.Tensor, value: float) -> torch.Tensor:
    out = tensor.clone()
    out.view(-1)[-1] = value
    return out


@pytest.mark.parametrize("harm", ["drop", "rename", "reshape", "add", "integers", "nan", "infinite"])
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_any_harm_is_named_with_its_file(copy: Path, model: LisaModel, name: str, harm: str) -> None:
    tensors = published_tensors(model)
    places = json.loads((copy / "pytorch_model.bin.index.json").read_text())["weight_map"]
    tensor = tensors[name] if harm == "add" else tensors.pop(name)
    wrong = {"drop": {}, "rename": {f"{name}_": tensor}, "reshape": {name: tensor[None]}, "add": {f"{name}.extra": tensor},
             "integers": {name: tensor.int()}, "nan": {name: spoilt(tensor, float("nan"))}, "infinite": {name: spoilt(tensor, -float("inf"))},
             }[harm]  # fmt: skip
    file = places[name]
    part = {key: value for key, value in tensors.items() if places[key] == file} | wrong
    torch.save(part, copy / file)
    with pytest.raises(ModelLoadError) as caught:
        load_published(copy, torch.float32, CPU, True)
    assert caught.value.exit_code == 3 and all(text in str(caught.value) for text in (name, file, *wrong))


@pytest.mark.parametrize("harm", ["drop", "rename", "reshape", "nan"])
@pytest.mark.parametrize("name", ["encoder.layers.1.mlp.fc1.weight", "embeddings.class_embedding", "embeddings.position_embedding.weight"])
def test_a_tower_that_does_not_fit_is_named(copy: Path, name: str, harm: str) -> None:
    file = copy / "clip" / "model.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if key.endswith(name))
    tensor = tensors.pop(key)
    wrong = {"drop": {}, "rename": {f"{key}_": tensor}, "reshape": {key: tensor[None].clone()}, "nan": {key: spoilt(tensor, float("nan"))}}[harm]
    save_file(tensors | wrong, file, metadata={"format": "pt"})
    with pytest.raises(ModelLoadError) as caught:
        load_published(copy, torch.float32, CPU, True)
    assert caught.value.exit_code == 3 and name in str(caught.value) and str(copy / "clip") in str(caught.value)


def test_a_tower_inside_a_whole_clip_loads(copy: Path, model: LisaModel) -> None:
    """As the hub has it: with a text side, and with buffers that newer versions compute."""
    from transformers import CLIPConfig, CLIPModel

    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 50, "bos_token_id": 1}
    whole = CLIPModel(CLIPConfig(vision_config=VISION, text_config=text | {"eos_token_id": 2}, projection_dim=16))
    whole.vision_model.load_state_dict(model.vlm.vision.state_dict())  # type: ignore[union-attr]
    shutil.rmtree(copy / "clip")
    whole.save_pretrained(copy / "clip")
    file = copy / "clip" / "model.safetensors"
    old = {f"{side}.embeddings.position_ids": torch.arange(5)[None].clone() for side in ("vision_model", "text_model")}
    save_file(load_file(file) | old, file, metadata={"format": "pt"})
    equal(model, load_published(copy, torch.float32, CPU, True)[0])


def test_a_tower_that_is_half_there_is_named(copy: Path) -> None:
    cut("clip/model.safetensors")(copy)
    with pytest.raises(ModelLoadError, match=r"vision tower .*clip"):
        load_published(copy, torch.float32, CPU, True)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_one_changed_bit_in_a_pickle_is_named(copy: Path, name: str) -> None:
    """The zip of a `.bin` file keeps the CRC of each tensor's memory; torch does not look at it."""
    file = copy / json.loads((copy / "pytorch_model.bin.index.json").read_text())["weight_map"][name]
    tensors = torch.load(file, weights_only=True)
    tensors[name] = torch.rand(tensors[name].shape)  # bytes that stand in one place only
    torch.save(tensors, file)
    data, memory = bytearray(file.read_bytes()), tensors[name].numpy().tobytes()
    data[data.index(memory) + len(memory) - 4] ^= 1  # the lowest bit of the last number: nothing but a checksum can tell
    file.write_bytes(data)
    with pytest.raises(ModelLoadError, match=re.escape(f"damaged: {name} in {file.name}")) as caught:
        load_published(copy, torch.float32, CPU, True)
    assert caught.value.exit_code == 3 and str(caught.value).count("damaged") == 1


def test_tensors_that_share_memory_and_files_without_checksums_load(copy: Path, model: LisaModel) -> None:
    tensors = published_tensors(model)
    name = "model.text_hidden_fcs.0.0.weight"
    tensors[name] = torch.cat([tensors[name], tensors[name]])[: len(tensors[name])]  # a window into a larger memory
    for file in copy.glob("pytorch_model*"):
        file.unlink()
    write_weights(copy, {key: value if key == name else value.clone() for key, value in tensors.items()}, "bin", 1)
    equal(model, load_published(copy, torch.float32, CPU, True)[0])
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(torch.load(copy / "pytorch_model.bin", weights_only=True), copy / "pytorch_model.bin")
    finally:
        torch.serialization.set_crc32_options(True)
    assert not stored_checksums(copy / "pytorch_model.bin")
    equal(model, load_published(copy, torch.float32, CPU, True)[0])


def cut(name: str, keep: float = 0.5) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[: int((folder / name).stat().st_size * keep)]) and None


def change(**values: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | values))

    return apply


@pytest.mark.parametrize(("harm", "told"), [
    (lambda folder: (folder / "pytorch_model-00002-of-00002.bin").unlink(), "pytorch_model-00002-of-00002.bin"),
    (cut("pytorch_model-00001-of-00002.bin"), "pytorch_model-00001-of-00002.bin"),
    (cut("pytorch_model.bin.index.json"), "pytorch_model.bin.index.json"),
    (cut("config.json"), "config.json"),
    (cut("sam_config.json"), "sam_config.json"),
    (cut("tokenizer.model", 0.01), "tokenizer.model"),
    (lambda folder: (folder / "tokenizer.model").unlink(), "tokenizer.model"),
    (lambda folder: (folder / "added_tokens.json").unlink(), "added_tokens.json"),
    (lambda folder: shutil.rmtree(folder / "clip"), "vision tower"),
    (change(vision_tower=None, mm_vision_tower=None), "vision_tower"),
    (lambda folder: (folder / "added_tokens.json").write_text('{"[SEG]": 384}') and None, "<im_start>"),
    (change(vocab_size=384), "vocabulary"),
    (change(out_dim=64), "out_dim"),
    (change(mm_projector_type="resampler"), "resampler"),
    (change(hidden_size="wide"), "config.json"),
    (change(num_attention_heads=0), "config.json"),
    (change(num_hidden_layers="two"), "config.json"),
    (change(prompt_style="lisa++"), "prompt_style"),
    (change(conv_type="vicuna_v0"), "vicuna_v0"),
])  # fmt: skip
def test_every_wrong_folder_has_its_message(copy: Path, harm: Callable[[Path], None], told: str) -> None:
    harm(copy)
    with pytest.raises(ModelLoadError) as caught:
        load(copy, device="cpu", dtype="float32", offline=True)
    assert told in str(caught.value) and caught.value.exit_code == 3


def test_a_single_damaged_safetensors_file(copy: Path, model: LisaModel) -> None:
    for file in copy.glob("pytorch_model*"):
        file.unlink()
    with pytest.raises(ModelLoadError, match="holds no weights"):
        load_published(copy, torch.float32, CPU, True)
    write_weights(copy, published_tensors(model), "safetensors", 1)
    cut("model.safetensors")(copy)
    with pytest.raises(ModelLoadError, match=r"model\.safetensors is damaged"):
        load_published(copy, torch.float32, CPU, True)


def test_what_is_not_on_this_machine_is_said_offline(copy: Path) -> None:
    with pytest.raises(ModelLoadError, match="nobody/LISA-0B"):
        load("nobody/LISA-0B", device="cpu", offline=True)
    change(vision_tower="nobody/clip-of-nobody")(copy)
    with pytest.raises(ModelLoadError, match="nobody/clip-of-nobody"):
        load(copy, device="cpu", offline=True)


@pytest.mark.parametrize(("values", "template", "style"), [
    ({}, "llava_v1", "lisa"),
    ({"mm_use_im_start_end": False}, "llava_v1_bare", "lisa_plus"),
    ({"mm_use_im_start_end": False, "prompt_style": "lisa"}, "llava_v1_bare", "lisa"),
    ({"conv_type": "llava_llama_2", "prompt_style": "lisa_plus"}, "llava_llama_2", "lisa_plus"),
])  # fmt: skip
def test_conventions_are_read_from_the_config(copy: Path, values: dict[str, object], template: str, style: str) -> None:
    change(**values)(copy)
    config, _ = read_config(copy, offline=True)
    assert (config.chat_template, config.prompt_style) == (template, style)


def test_the_modes_of_lisa_plus(copy: Path) -> None:
    with pytest.raises(UsageError, match="Unknown mode 'instances'"):
        load(copy, device="cpu", dtype="float32", offline=True).ask(noise(1), "the cups", mode="instances")
    change(mm_use_im_start_end=False)(copy)
    predictor = load(copy, device="cpu", dtype="float32", offline=True)
    assert set(predictor.modes) == set(get_args(Mode))
    for mode in predictor.modes:
        chat = predictor.chat(noise(1))
        answer = chat.ask("the cups", mode=mode, max_new_tokens=3)
        assert chat.conversation.turns[0].instruction.endswith("the cups" if mode == "auto" else TASKS[mode])
        assert answer.segments or mode not in MASK_MODES, "a mask was asked for"
        assert not (mode == "text" and answer.segments)
    assert predictor.counters["image_encodings"] == 1


def test_conversion_keeps_every_value(copy: Path, model: LisaModel, tmp_path: Path) -> None:
    out = convert_checkpoint(copy, tmp_path / "converted", offline=True, shard_bytes=200_000)
    shutil.rmtree(copy)  # the result stands by itself
    assert not list(out.rglob("*.bin")) and len(list(out.glob("model-*.safetensors"))) > 1
    equal(model, load_published(out, torch.float32, CPU, True)[0])
    tensors = {key: value for file in out.glob("model-*.safetensors") for key, value in load_file(file).items()}
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["tensors"] == {key: tensor_sha256(key, value) for key, value in tensors.items()}
    assert set(tensors) == {key for key in published_tensors(model) if not COMPUTED.match(key)}
    assert {"config.json", "tokenizer.model", "added_tokens.json"} <= set(manifest["files"])


def test_conversion_overwrites_nothing_and_leaves_nothing(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="exists"):
        convert_checkpoint(copy, tmp_path / "there", offline=True)
    cut("pytorch_model-00002-of-00002.bin")(copy)
    with pytest.raises(ModelLoadError, match="00002"):
        convert_checkpoint(copy, tmp_path / "new", offline=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LISA", "there"]


@pytest.mark.parametrize("size", ["7b", "13b"])
def test_keys_and_shapes_at_real_size(tmp_path: Path, size: str) -> None:
    """Without sam_config.json; nothing is allocated."""
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text(json.dumps({"model_type": "clip_vision_model"} | CLIP_L14))
    (tmp_path / "config.json").write_text(json.dumps(PUBLIC[f"LISA-{size.upper()}"] | {"vision_tower": "./clip"}))
    config, _ = read_config(tmp_path, {"[SEG]": 32000, "<im_start>": 32001, "<im_end>": 32002}, offline=True)
    built = empty_model(config)
    ours = {published_key(name): list(p.shape) for name, p in built.state_dict().items() if published_key(name) is not None}
    stored = json.loads((EXTRAS / f"checkpoint_keys_{size}.json").read_text("utf-8"))
    assert ours == {key: shape for key, (shape, _) in stored.items() if not COMPUTED.match(key)}
    assert built.vlm.n_image_tokens == 256 and built.mask_decoder.canvas == 1024
    assert all(p.is_meta for p in built.parameters())
    stored_bytes = sum(
        torch.Size(shape).numel() * getattr(torch, dtype).itemsize for key, (shape, dtype) in stored.items() if not COMPUTED.match(key)
    )
    fp32_encoder = sum(2 * p.numel() for p in built.mask_decoder.sam.vision_encoder.parameters())  # type: ignore[union-attr]
    parts = bytes_of(empty_public(f"LISA-{size.upper()}"), Setting(torch.bfloat16))
    gaussian = built.mask_decoder.sam.shared_image_embedding.positional_embedding.numel() * 4  # type: ignore[union-attr] # held twice
    assert sum(parts.values()) - parts["vision tower"] + fp32_encoder - gaussian == stored_bytes, "what is counted is what the files hold"
