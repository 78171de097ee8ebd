"""A published checkpoint computes what the reference computes, stage by stage.

Tolerances: 1e-4 for activations, 5e-5 for masks (they tell a wrong eps of the mask decoder's layer norms), 1e-5 for losses.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from tests.golden.places import FOLDERS
from tests.golden.reference import Golden, difference, parse
from torch import Tensor

from lisaseg.batching import pack_encoded
from lisaseg.chat import Conversation
from lisaseg.model.assemble import load_published
from lisaseg.model.checkpoint import merge_lora
from lisaseg.model.losses import mask_bce, mask_dice
from lisaseg.model.memory import Setting
from lisaseg.model.published import published_key
from lisaseg.predictor import Predictor
from lisaseg.vlms.base import ImageContext

ACTIVATION, MASK, LOSS = 1e-4, 5e-5, 1e-5
LEVEL = 1.01 / 255 / 0.26  # one grey level: Pillow's resize moves some pixels by that from version to version


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


@pytest.fixture(scope="module")
def context(golden: Golden) -> ImageContext:
    with torch.no_grad():
        return golden.model.encode_image({"pixels": golden.inputs["images_clip"]})


@pytest.fixture(scope="module")
def features(golden: Golden, context: ImageContext) -> object:
    with torch.no_grad():
        return golden.model.encode_mask_features(context, golden.inputs["images"])


@pytest.fixture(scope="module")
def states(golden: Golden, context: ImageContext) -> list[Tensor]:
    """Last-layer states of the training rows, each on its own."""
    rows = [(b, row) for b, rows in enumerate(golden.rows()) for row in rows]
    with torch.no_grad():
        return [hidden(golden, context, row.ids, b) for b, row in rows]


def hidden(golden: Golden, context: ImageContext, ids: list[int], picture: int) -> Tensor:
    vlm = golden.model.vlm
    return vlm.hidden_states(vlm.embed(torch.tensor([ids]), context.tokens, torch.tensor([picture])), None, None)[0]


def test_there_is_something_to_compare() -> None:
    assert FOLDERS


def test_preprocessing(golden: Golden) -> None:
    for b in range(golden.n_images):
        clip = golden.model.vlm.preprocess(golden.raw(b))[0]["pixels"]
        sam, placement = golden.model.mask_decoder.preprocess(golden.raw(b))  # type: ignore[operator]
        assert placement == golden.placement(b)
        assert difference(clip, golden.inputs["images_clip"][b]) <= LEVEL
        assert difference(sam, golden.inputs["images"][b]) <= 1.01 / 57
        assert float((clip - golden.inputs["images_clip"][b]).abs().mean()) < 1e-3


def test_vision_tower_and_projector(golden: Golden, context: ImageContext) -> None:
    clip = golden.model.vlm.features(golden.inputs["images_clip"])  # type: ignore[operator]
    assert difference(clip, golden.outputs["clip_features"]) <= ACTIVATION
    assert difference(context.tokens, golden.outputs["projected_features"]) <= ACTIVATION


def test_mask_encoder(golden: Golden, features: object) -> None:
    decoder = golden.model.mask_decoder
    encoder = decoder.sam.vision_encoder  # type: ignore[union-attr]
    seen: dict[str, Tensor] = {}
    parts = {"sam_patch_embed": encoder.patch_embed} | {f"sam_block_{k}": layer for k, layer in enumerate(encoder.layers)}
    hooks = [part.register_forward_hook(lambda _m, _i, out, key=key: seen.__setitem__(key, out)) for key, part in parts.items()]
    with torch.no_grad():
        decoder.encode(golden.inputs["images"])  # type: ignore[operator]
    for hook in hooks:
        hook.remove()
    assert {key for key in golden.outputs if key.startswith(("sam_patch", "sam_block"))} == set(seen)
    for key, value in seen.items():
        assert difference(value, golden.outputs[key]) <= ACTIVATION, key
    assert difference(features.embedding, golden.outputs["sam_image_embedding"]) <= ACTIVATION  # type: ignore[attr-defined]
    assert difference(decoder.dense_position(), golden.outputs["dense_pe"]) <= ACTIVATION  # type: ignore[operator]


def test_language_model(golden: Golden, states: list[Tensor]) -> None:
    stride = golden.meta["logit_stride"]
    for row, state in enumerate(states):
        n = len(state)
        assert difference(state, golden.outputs["last_hidden_state"][row, :n]) <= ACTIVATION
        with torch.no_grad():
            logits = golden.model.vlm.logits(state)
        assert difference(logits[:, ::stride], golden.outputs["logits_strided"][row, :n]) <= ACTIVATION
        assert difference(logits.logsumexp(-1), golden.outputs["logits_logsumexp"][row, :n]) <= ACTIVATION
        assert int(golden.outputs["expanded_attention_mask"][row].sum()) == n


def test_masks(golden: Golden, states: list[Tensor], features: object) -> None:
    places = golden.meta["seg_embedding_row_and_expanded_position"]
    assert golden.model.vlm.language_model.config.vocab_size == golden.meta["vocab_size"]
    rows = torch.repeat_interleave(torch.arange(golden.n_images), torch.tensor([len(r) for r in golden.rows()]))
    for b in range(golden.n_images):
        mine = [states[row][at] for row, at in places if rows[row] == b]
        prompts = golden.model.prompt_embeddings(torch.stack(mine) if mine else states[0][:0]).detach()
        assert difference(prompts, golden.outputs[f"seg_embeddings_{b}"]) <= ACTIVATION
        with torch.no_grad():
            logits, iou = golden.model.mask_decoder.predict(features, prompts, torch.full((len(prompts),), b))  # type: ignore[operator]
        assert difference(logits, golden.outputs[f"low_res_masks_{b}"]) <= ACTIVATION
        assert difference(iou[:, None], golden.outputs[f"iou_predictions_{b}"]) <= ACTIVATION
        full, targets = golden.placement(b).undo(logits), golden.inputs[f"gt_masks_{b}"]
        assert difference(full, golden.outputs[f"pred_masks_{b}"]) <= MASK
        assert len(full) == golden.meta["n_masks_per_image"][b]
        losses = golden.meta["per_image_losses"][b]
        assert (losses is None) == (len(full) == 0)
        for name, loss in (losses or {}).items():
            assert float({"bce": mask_bce, "dice": mask_dice}[name](full, targets).mean()) == pytest.approx(loss, abs=LOSS), name


def test_training_step_losses_and_gradients(golden: Golden) -> None:
    """The packed rows of `forward`, not the reference's padded ones: conversations about a picture share its prefix."""
    model = golden.load()
    learned = [model.vlm.language_model, model.vlm.projector, model.seg_head]
    for part in learned:
        part.requires_grad_(True)  # type: ignore[union-attr]
    model.mask_decoder.freeze_unreached()  # type: ignore[operator]
    weights = golden.meta["loss_weights"]
    model.config.loss_weights = weights
    targets = [golden.inputs[f"gt_masks_{b}"] for b in range(golden.n_images)]
    batch = pack_encoded(golden.rows(), targets, golden.meta["seg_token_idx"])
    places = [golden.placement(b) for b in range(golden.n_images)]
    context = model.encode_image({"pixels": golden.inputs["images_clip"]})
    out = model(batch, context, pixels=golden.inputs["images"], placements=places)
    for ours, theirs in (("ce", "ce_loss"), ("bce", "mask_bce_loss"), ("dice", "mask_dice_loss"), ("loss", "loss")):
        assert abs(float(out.losses[ours].detach()) - float(golden.outputs[theirs])) <= LOSS, ours
    both = out.losses["bce"] + out.losses["dice"]
    assert abs(float(both.detach()) - float(golden.outputs["mask_loss"])) <= LOSS
    out.losses["loss"].backward()
    norms = {published_key(n): float(p.grad.norm()) if p.grad is not None else 0.0 for n, p in model.named_parameters()}
    for key, norm in golden.meta["grad_norms"].items():
        assert norms[key] == pytest.approx(norm, rel=1e-4, abs=1e-7), key
    assert all(norm == 0 for key, norm in norms.items() if key not in golden.meta["grad_norms"])


def test_evaluation_path(golden: Golden, context: ImageContext, features: object) -> None:
    b, seg = golden.meta["val_image_index"], golden.meta["seg_token_idx"]
    rows = [golden.row(*(golden.inputs[key][q] for key in ("val_input_ids", "val_input_ids", "val_attention_masks"))) for q in
            range(len(golden.inputs["val_input_ids"]))]  # fmt: skip
    with torch.no_grad():
        found = torch.stack([hidden(golden, context, row.ids, b)[row.ids.index(seg) - 1] for row in rows])
        logits, _ = golden.model.decode_masks(features, golden.model.prompt_embeddings(found), torch.full((len(found),), b))
    assert difference(golden.placement(b).undo(logits), golden.outputs["val_pred_masks"]) <= MASK


def test_generation(golden: Golden, context: ImageContext, features: object) -> None:
    for k, case in enumerate(golden.meta["generation"]):
        prompt = torch.tensor(golden.row(golden.inputs[f"gen{k}_input_ids"][0]).ids)
        row = golden.model.generate_answers(
            [prompt], context, [case["image"]], stop_id=golden.meta["special_ids"]["eos"], max_new_tokens=case["max_new_tokens"]
        )[0]
        assert row.ids == case["new_token_ids"] and len(row.states) == case["n_seg"] and row.finished
        states = torch.stack(row.states) if row.states else prompt.new_zeros((0, golden.model.vlm.hidden_size), dtype=torch.float32)
        with torch.no_grad():
            index = torch.full((len(states),), case["image"])
            logits, _ = golden.model.decode_masks(features, golden.model.prompt_embeddings(states), index)
        assert difference(logits, golden.outputs[f"gen{k}_low_res_masks"]) <= ACTIVATION
        assert difference(golden.placement(case["image"]).undo(logits), golden.outputs[f"gen{k}_pred_masks"]) <= MASK


def test_adapters(golden: Golden, context: ImageContext) -> None:
    if "lora" not in golden.meta:
        pytest.skip("this fixture has no adapters")
    stored, model = load_file(golden.folder / "lora.safetensors"), golden.load()
    prefix = "lora." + golden.meta["lora"]["all_parameter_names_prefix"]
    adapters = {f"vlm.language_model.{k.removeprefix(prefix)}".replace(".default", ""): v for k, v in stored.items() if k.startswith(prefix)}
    assert merge_lora(model, adapters, golden.meta["lora"]["r"], golden.meta["lora"]["alpha"]) == set(adapters)
    merged = {published_key(name): p for name, p in model.named_parameters()}
    for key in (k for k in stored if k.startswith("merged.")):
        assert difference(merged[key.removeprefix("merged.")], stored[key]) <= 1e-6
    changed = Golden(golden.folder)
    changed.model = model
    rows = [(b, row) for b, rows in enumerate(golden.rows()) for row in rows]
    assert len(rows) == len(stored["last_hidden_state_with_lora"])
    for (b, row), theirs in zip(rows, stored["last_hidden_state_with_lora"], strict=True):
        with torch.no_grad():
            state = hidden(changed, context, row.ids, b)
        assert difference(state, theirs[: len(state)]) <= ACTIVATION


def test_from_picture_to_mask_by_the_one_entrance(golden: Golden) -> None:
    if not (golden.folder / "tokenizer.model").is_file():
        pytest.skip("this fixture ships ids only")
    model, tokenizer = load_published(golden.folder, torch.float32, torch.device("cpu"), True, golden.meta["conv_type"])
    predictor = Predictor(model, tokenizer, "golden")
    asked = [(case["image"], parse(case["prompt"], golden.template)) for case in golden.meta["generation"]]
    for k, (b, conversation) in enumerate(asked):
        chat = predictor.chat(golden.raw(b))
        chat.conversation = Conversation(conversation.turns[:-1])
        answer = chat.ask(conversation.turns[-1].instruction, max_new_tokens=golden.meta["generation"][k]["max_new_tokens"])
        wanted = golden.outputs[f"gen{k}_pred_masks"] > 0
        assert answer.raw_text == tokenizer.decode(golden.meta["generation"][k]["new_token_ids"]).strip()
        assert answer.status == ("masks" if len(wanted) else "no_mask_requested") and len(answer.masks) == len(wanted)
        assert float((torch.from_numpy(answer.masks) != wanted).float().mean() if len(wanted) else 0) < 0.005
        assert all(segment.score is None for segment in answer.segments), "LISA has no trained estimate of a mask's quality"
    masks = {b for k, (b, _) in enumerate(asked) if golden.meta["generation"][k]["n_seg"]}
    assert predictor.counters == {"image_encodings": len({b for b, _ in asked}), "mask_encodings": len(masks)}


def test_modes_and_turns(golden: Golden) -> None:
    if not (golden.folder / "tokenizer.model").is_file():
        pytest.skip("this fixture ships ids only")
    model, tokenizer = load_published(golden.folder, torch.float32, torch.device("cpu"), True, golden.meta["conv_type"])
    predictor = Predictor(model, tokenizer, "golden")
    case = golden.meta["generation"][-1]
    chat = predictor.chat(golden.raw(case["image"]))
    question = parse(case["prompt"], golden.template).turns[0].instruction
    assert not chat.ask(question, mode="text").segments
    assert len(chat.ask(question, mode="segment", max_new_tokens=8).segments) >= 1, "a mask was insisted on"
    assert predictor.counters == {"image_encodings": 1, "mask_encodings": 1} and len(chat.turns) == 2
    assert isinstance(chat.conversation, Conversation) and len(chat.conversation.turns) == 2


@pytest.mark.parametrize("kind", ["8bit", "4bit"])
def test_quantised_it_answers(golden: Golden, kind: str) -> None:
    """How far the numbers move is measured by benchmarks/quantized.py."""
    pytest.importorskip("bitsandbytes")
    if not (golden.folder / "tokenizer.model").is_file():
        pytest.skip("this fixture ships ids only")
    model, tokenizer = load_published(golden.folder, torch.float32, torch.device("cpu"), True, golden.meta["conv_type"], quantize=kind)
    predictor = Predictor(model, tokenizer, "golden", Setting(torch.float32, kind))
    for k, case in enumerate(golden.meta["generation"]):
        question = parse(case["prompt"], golden.template).turns[-1].instruction
        answer = predictor.ask(golden.raw(case["image"]), question, max_new_tokens=case["max_new_tokens"])
        if kind == "8bit":
            wanted = golden.outputs[f"gen{k}_pred_masks"].numpy() > 0
            assert answer.raw_text == tokenizer.decode(case["new_token_ids"]).strip()
            assert all((a & b).sum() / (a | b).sum() > 0.9 for a, b in zip(answer.masks, wanted, strict=True))
        else:
            assert answer.raw_text
