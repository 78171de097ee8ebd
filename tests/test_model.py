"""The heart: losses, gradients, and weight files that load completely or not at all."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.tiny_random import LESSONS, ONE, TWO, build_config, conversation, encode_pictures, noise
from torch import Tensor

from lisaseg.batching import Batch, Example, pack
from lisaseg.chat import CHATML, render
from lisaseg.errors import ModelLoadError, UsageError
from lisaseg.model import assemble
from lisaseg.model.checkpoint import LANGUAGE, load_strict, merge_lora, trained_tensors
from lisaseg.model.config import LisaConfig
from lisaseg.model.lisa import LisaModel, build_seg_head
from lisaseg.model.losses import answer_loss, mask_bce, mask_dice, mask_iou
from lisaseg.tokenization import TextTokenizer
from lisaseg.types import IGNORE
from lisaseg.vlms.base import ImageContext

Taught = tuple[LisaModel, TextTokenizer]
GOLDEN = Path(__file__).parent / "golden" / "losses.safetensors"
T = torch.tensor


def batch_of(taught: Taught, *rows: list[str]) -> Batch:
    """One row for each list of lessons, with random targets at the decoder's size."""
    model, tokenizer = taught
    examples = []
    for k, row in enumerate(rows):
        chats = [conversation((q, LESSONS[q])) for q in row]
        shape = (sum(c.n_seg for c in chats), 104, 104)
        targets = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(k), dtype=torch.uint8)
        targets[:, 90:] = IGNORE
        examples.append(Example(chats, targets))
    return pack(examples, tokenizer, CHATML, model.vlm.n_image_tokens)


def test_losses_of_a_hand_computed_mask() -> None:
    logits, target = T([[[0.0, 2.0], [-1.0, 5.0]]]), T([[[1, 1], [0, IGNORE]]], dtype=torch.uint8)

    def softplus(x: float) -> float:
        return math.log(1 + math.exp(x))

    p = [0.5, 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(1))]
    assert mask_bce(logits, target).item() == pytest.approx((softplus(0) + softplus(-2) + softplus(-1)) / 3, abs=1e-6)
    assert mask_dice(logits, target).item() == pytest.approx(1 - (2 * (p[0] + p[1]) + 1e-3) / (sum(p) + 2 + 1e-3), abs=1e-6)
    assert mask_iou(logits, target).item() == pytest.approx(1 / 2)  # logit 0 is background


def test_losses_equal_the_reference_implementation() -> None:
    tensors = load_file(GOLDEN)
    with safe_open(GOLDEN, "pt") as f:
        losses, ious = json.loads(f.metadata()["losses"]), json.loads(f.metadata()["iou"])
    for i, wanted in enumerate(losses):
        logits, target = tensors[f"logits_{i}"], tensors[f"target_{i}"]
        assert mask_bce(logits, target).mean().item() == pytest.approx(wanted["bce"], abs=1e-5)
        assert mask_dice(logits, target).mean().item() == pytest.approx(wanted["dice"], abs=1e-5)
    for k, row in enumerate(ious):
        assert mask_iou(tensors[f"iou_logits_{k}"], tensors[f"iou_target_{k}"]).tolist() == pytest.approx(row, abs=1e-6)


def test_ignored_pixels_count_nowhere() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 8, 8, generator=generator, requires_grad=True)
    target = torch.randint(0, 2, (3, 8, 8), generator=generator, dtype=torch.uint8)
    target[0, :4], target[1, :, 5:], target[2] = IGNORE, IGNORE, IGNORE
    changed = torch.where(target == IGNORE, torch.full_like(logits, 30.0), logits)
    for loss in (mask_bce, mask_dice, mask_iou):
        assert torch.equal(loss(logits, target), loss(changed, target)), loss.__name__
    (mask_bce(logits, target) + mask_dice(logits, target)).sum().backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()
    assert not logits.grad[target == IGNORE].any() and logits.grad[:2][target[:2] != IGNORE].all()


@pytest.mark.parametrize("loss", [mask_bce, mask_dice, mask_iou])
def test_mask_losses_of_nothing_are_empty(loss: object) -> None:
    assert loss(torch.zeros(0, 4, 4), torch.zeros(0, 4, 4, dtype=torch.uint8)).shape == (0,)  # type: ignore[operator]


def test_right_masks_cost_little_and_wrong_ones_much() -> None:
    target = torch.zeros(1, 8, 8, dtype=torch.uint8)
    target[:, 2:5] = 1
    right = (target.float() - 0.5) * 40
    assert mask_bce(right, target) < 1e-6 and mask_dice(right, target) < 1e-4 and mask_iou(right, target) == 1
    assert mask_bce(-right, target) > 10 and mask_dice(-right, target) > 0.99 and mask_iou(-right, target) == 0


def test_answer_loss_is_mean_cross_entropy_and_zero_of_nothing() -> None:
    logits = T([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    wanted = (math.log(math.e + math.e**2 + 1) - 2 + math.log(3)) / 2
    assert answer_loss(logits, T([1, 0])).item() == pytest.approx(wanted, abs=1e-6)
    nothing = answer_loss(logits[:0], T([], dtype=torch.long))
    nothing.backward()
    assert nothing.item() == 0 and logits.grad is not None and not logits.grad.any()


@pytest.fixture(scope="module")
def context(taught: Taught) -> ImageContext:
    return encode_pictures(taught[0], [noise(1), noise(2, 30, 90)])


def test_forward_is_finite_and_weighted(taught: Taught, context: ImageContext) -> None:
    model = taught[0]
    batch = batch_of(taught, [ONE, TWO], ["Hello there!", ONE])
    with torch.no_grad():
        out = model(batch, context)
    assert out.mask_logits.shape == (4, 104, 104) and out.prompts.shape == (4, model.config.prompt_width)
    assert out.scores.shape == out.iou.shape == (4,) and out.seg_accuracy == 1.0
    assert set(out.losses) == {"ce", "bce", "dice", "loss"} and all(torch.isfinite(v) for v in out.losses.values())
    targets = torch.cat(batch.targets)
    assert out.losses["bce"].item() == pytest.approx(2 * mask_bce(out.mask_logits, targets).mean().item())
    assert out.losses["dice"].item() == pytest.approx(0.5 * mask_dice(out.mask_logits, targets).mean().item())
    assert out.losses["loss"].item() == pytest.approx(sum(out.losses[k].item() for k in ("ce", "bce", "dice")))


def test_training_and_asking_prompt_the_decoder_alike(taught: Taught, context: ImageContext) -> None:
    model, tokenizer = taught
    with torch.no_grad():
        forward = model(batch_of(taught, [TWO]), context.split()[0])
        ids = tokenizer.encode(render(conversation().ask(TWO), CHATML), model.vlm.n_image_tokens).ids
        row = model.generate_answers([T(ids)], context, [0], stop_id=tokenizer.special(CHATML.end), max_new_tokens=30)[0]
        prompts = model.prompt_embeddings(torch.stack(row.states))
        logits, _ = model.decode_masks(model.encode_mask_features(context), prompts, T([0, 0]))
    torch.testing.assert_close(prompts, forward.prompts, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(logits, forward.mask_logits, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize(("questions", "masks"), [(["Hello there!"], True), ([ONE], False)])
def test_steps_without_masks(taught: Taught, context: ImageContext, questions: list[str], masks: bool) -> None:
    batch = batch_of(taught, questions)
    out = taught[0](batch, ImageContext(context.tokens[:1], context.split()[0].maps if masks else None), masks=masks)
    assert set(out.losses) == {"ce", "loss"} and torch.isfinite(out.losses["loss"])
    assert len(out.mask_logits) == len(out.scores) == len(out.iou) == 0
    assert len(out.prompts) == len(batch.seg_row), "prompts are given even if nothing is decoded"
    out.losses["loss"].backward()
    taught[0].zero_grad(set_to_none=True)


def test_gradients_reach_every_trained_part(taught: Taught) -> None:
    model = taught[0]
    with torch.no_grad():
        ready = [model.vlm.preprocess(noise(k))[0] for k in (1, 2)]
    context = model.encode_image({key: torch.stack([one[key] for one in ready]) for key in ready[0]})
    out = model(batch_of(taught, [ONE, TWO], [ONE]), context)
    (out.losses["loss"] + out.scores.sum()).backward()
    dead = [n for n, p in model.named_parameters() if (p.grad is None or not p.grad.any()) and ".trunk." not in n]
    bad = [n for n, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    trunk = [n for n, p in model.named_parameters() if p.grad is not None and ".trunk." in n]
    model.zero_grad(set_to_none=True)
    # softmax is blind to what all keys share; a bias of attention keys can have no effect
    assert not bad and not trunk and not [n for n in dead if "k_proj.bias" not in n]


def test_no_prompt_is_legal_everywhere(taught: Taught, context: ImageContext) -> None:
    model = taught[0]
    prompts = model.prompt_embeddings(torch.zeros(0, model.vlm.hidden_size))
    logits, scores = model.decode_masks(model.encode_mask_features(context), prompts, torch.zeros(0, dtype=torch.long))
    assert prompts.shape == (0, model.config.prompt_width) and len(logits) == len(scores) == 0


def test_seg_head_shapes() -> None:
    assert [p.shape for p in build_seg_head(6, 0, 4).parameters()] == [(4, 6), (4,)]
    assert build_seg_head(6, 5, 4)(torch.zeros(2, 6)).shape == (2, 4)


# weight files


def write_model(model: LisaModel, folder: Path) -> Path:
    """A model folder as training writes it; the language model is kept elsewhere."""
    config = build_config()
    config.language_model, config.language_config = "smollm2-135m-instruct", None
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_diff_dict()))
    save_file(trained_tensors(model), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def saved(taught: Taught, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(taught[0], tmp_path_factory.mktemp("model"))


@pytest.fixture
def with_language(taught: Taught, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights cache would have to be filled from the network; here the tiny language model stands in for what it returns."""
    taught[1]._tokenizer.save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setattr(
        assemble, "load_language_model", lambda name, dtype, offline: (copy.deepcopy(taught[0].vlm.language_model).to(dtype), tmp_path)
    )


def masks_of(model: LisaModel) -> Tensor:
    context = encode_pictures(model, [noise(5)])
    states = torch.randn(2, model.vlm.hidden_size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model.decode_masks(model.encode_mask_features(context), model.prompt_embeddings(states), T([0, 0]))[0]


def test_a_saved_model_loads_to_the_same_masks(with_language: None, saved: Path, tmp_path: Path) -> None:
    model, tokenizer = assemble.load_model(saved, torch.float32)
    again, _ = assemble.load_model(write_model(model, tmp_path / "again"), torch.float32)
    assert torch.equal(masks_of(model), masks_of(again))
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert tokenizer.seg_id == model.vlm.seg_token_id
    assert model.config.to_dict() == again.config.to_dict()


def test_loaded_weights_are_those_of_the_file(taught: Taught, with_language: None, saved: Path) -> None:
    model, _ = assemble.load_model(saved, torch.float32)
    own = model.state_dict()
    for name, tensor in taught[0].state_dict().items():
        if not name.startswith(LANGUAGE):
            assert torch.equal(own[name], tensor.half().float()), name


PARTS = ("vlm.seg_in", "vlm.vision.trunk.yolo.down.0.weight", "vlm.vision.neck.nouns", "vlm.vision.projector.gain", "seg_head.0.weight",
         "mask_decoder.two_way.layers.0.layer_norm1.bias", "mask_decoder.tokens")  # fmt: skip


@pytest.mark.parametrize("harm", ["drop", "rename", "reshape", "add"])
@pytest.mark.parametrize("name", PARTS)
def test_any_harm_to_the_file_is_named(taught: Taught, saved: Path, harm: str, name: str) -> None:
    tensors = load_file(saved / "model.safetensors")
    tensor = tensors[name] if harm == "add" else tensors.pop(name)
    wrong = {"drop": {}, "rename": {f"{name}_": tensor}, "reshape": {name: tensor[None]}, "add": {f"{name}.extra": tensor}}[harm]
    before = taught[0].seg_head[0].bias.clone()
    with pytest.raises(ModelLoadError) as caught:
        load_strict(taught[0], {**tensors, **wrong}, Path("a.safetensors"))
    assert all(part in str(caught.value) for part in (name, *wrong, "a.safetensors"))
    assert torch.equal(taught[0].seg_head[0].bias, before), "nothing is copied before everything fits"


def test_many_harms_are_counted(taught: Taught) -> None:
    with pytest.raises(ModelLoadError, match=r"and \d+ more"):
        load_strict(taught[0], {}, Path("a.safetensors"))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_incomplete_folders_are_refused(with_language: None, saved: Path, tmp_path: Path, file: str) -> None:
    folder = tmp_path / "part"
    folder.mkdir()
    for name in {"config.json", "model.safetensors"} - {file}:
        (folder / name).write_bytes((saved / name).read_bytes())
    with pytest.raises(ModelLoadError, match=file.replace(".", r"\.")):
        assemble.load_model(folder, torch.float32)
    (folder / file).write_bytes((saved / file).read_bytes()[:-7])
    with pytest.raises(ModelLoadError, match=file.replace(".", r"\.")):
        assemble.load_model(folder, torch.float32)


def test_config_survives_json(tmp_path: Path) -> None:
    config = build_config()
    config.refusal_bias, config.lora, config.seg_state = -0.5, {"rank": 4, "alpha": 8}, "at"
    again = LisaConfig(**{k: v for k, v in json.loads(json.dumps(config.to_diff_dict())).items() if k not in ("model_type", "transformers_version")})
    assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("device", "dtype"), [("abacus", "auto"), ("cpu", "float8"), ("cpu:1", "auto"), ("cuda:99" if not torch.cuda.is_available() else "mps", "auto")]
)
def test_unknown_devices_and_dtypes_are_usage_errors(device: str, dtype: str) -> None:
    with pytest.raises(UsageError):
        assemble.pick_dtype(dtype, assemble.pick_device(device))


# adapters

Q = f"{LANGUAGE}model.layers.0.self_attn.q_proj"


@pytest.fixture
def adapters(taught: Taught) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    out = {}
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        weight = taught[0].vlm.language_model.get_submodule(name).weight
        out[f"{LANGUAGE}{name}.lora_A.weight"] = torch.randn(4, weight.shape[1], generator=generator).half()
        out[f"{LANGUAGE}{name}.lora_B.weight"] = torch.randn(weight.shape[0], 4, generator=generator).half()
    return out


def test_merging_adds_b_times_a(taught: Taught, adapters: dict[str, Tensor]) -> None:
    model = copy.deepcopy(taught[0])
    before = {n: p.clone() for n, p in model.state_dict().items()}
    assert merge_lora(model, {**adapters, "vlm.seg_in": before["vlm.seg_in"]}, rank=4, alpha=8) == set(adapters)
    for name, tensor in model.state_dict().items():
        a, b = (adapters.get(name.removesuffix("weight") + f"lora_{x}.weight") for x in "AB")
        wanted = before[name] if a is None or b is None else before[name] + 2 * b.float() @ a.float()
        torch.testing.assert_close(tensor, wanted)


def test_merged_adapters_equal_attached_ones(taught: Taught, context: ImageContext) -> None:
    from lisaseg.train.run import add_lora

    attached, merged = copy.deepcopy(taught[0]), copy.deepcopy(taught[0])
    add_lora(attached, rank=4, alpha=8)
    with torch.no_grad():
        for name, p in attached.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.05).copy_(p.half().float())
            if "lora_A" in name:
                p.copy_(p.half().float())
    tensors = trained_tensors(attached)
    used = merge_lora(merged, tensors, rank=4, alpha=8)
    assert len(used) == 2 * 2 * 7 and not [n for n in tensors if n.startswith(LANGUAGE) and n not in used]
    with torch.no_grad():
        states = [m.states(batch_of(taught, [ONE]), ImageContext(context.tokens[:1], None)) for m in (attached, merged, taught[0])]
    torch.testing.assert_close(states[0], states[1], atol=1e-4, rtol=1e-3)
    assert not torch.allclose(states[0], states[2], atol=1e-2), "the adapters have an effect"


@pytest.mark.parametrize("harm", ["no-b", "rank", "shape", "stranger", "flat"])
def test_adapters_that_do_not_fit_are_named(taught: Taught, adapters: dict[str, Tensor], harm: str) -> None:
    a, b = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"
    if harm == "no-b":
        del adapters[b]
    elif harm == "stranger":
        adapters = {name.replace("q_proj", "x_proj"): tensor for name, tensor in adapters.items()}
    else:
        adapters[a] = {"rank": adapters[a][:3], "shape": adapters[a][:, :9], "flat": adapters[a][0]}[harm]
    with pytest.raises(ModelLoadError, match="x_proj" if harm == "stranger" else r"q_proj\.lora_"):
        merge_lora(copy.deepcopy(taught[0]), adapters, rank=4, alpha=8)


def test_an_adapter_without_its_first_half_is_refused(with_language: None, saved: Path, adapters: dict[str, Tensor], tmp_path: Path) -> None:
    folder = tmp_path / "half"
    folder.mkdir()
    (folder / "config.json").write_bytes((saved / "config.json").read_bytes())
    del adapters[f"{Q}.lora_A.weight"]
    save_file({**load_file(saved / "model.safetensors"), **adapters}, folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"q_proj\.lora_B"):
        assemble.load_model(folder, torch.float32)


def test_the_language_model_is_the_one_that_transformers_would_load() -> None:
    """It is put together by hand because that is faster; weights, types, tied tables and logits are the same."""
    from transformers import LlamaForCausalLM

    from lisaseg.model.checkpoint import load_language_model

    for dtype in (torch.bfloat16, torch.float32):
        ours, folder = load_language_model("smollm2-135m-instruct", dtype, offline=True)
        theirs = LlamaForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()
        states = ours.state_dict(), theirs.state_dict()
        assert states[0].keys() == states[1].keys() and not ours.training
        assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))
        assert ours.get_output_embeddings().weight is ours.get_input_embeddings().weight
        assert {n: (b.dtype, b.sum()) for n, b in ours.named_buffers()} == {n: (b.dtype, b.sum()) for n, b in theirs.named_buffers()}
        ids = torch.arange(7, 27)[None]
        with torch.inference_mode():
            assert torch.equal(ours(ids).logits, theirs(ids).logits)
