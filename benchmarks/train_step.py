"""A training step against the reference's scheme, on one model of mid size with the same weights and the same pictures.

    python benchmarks/train_step.py [--device cuda] [--out benchmarks/results/train_step.json]

"naive" does what the released training code does: CLIP once a *question*, SAM one picture at a time, every layer's hidden states kept, seg head
and output layer on every token, masks compared at the pictures' own size. "lisaseg" packs the questions of a picture behind one visual prefix and
computes what is read. Both give the same loss (checked); "bounded" compares masks at 512 pixels, which is another loss. Each runs in a process of
its own, so that the peak of its memory is its own.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lisaseg.batching import Batch, pack_encoded
from lisaseg.imaging import Placement
from lisaseg.model.config import LisaConfig
from lisaseg.model.lisa import LisaModel
from lisaseg.model.losses import answer_loss, mask_bce, mask_dice
from lisaseg.tokenization import IGNORED, Encoded
from lisaseg.train.lisa_data import bounded, resized

PICTURES, QUESTIONS, HEIGHT, WIDTH = 2, 3, 1536, 2048  # pictures of the size of Mapillary's smaller ones
SYSTEM, ASKED, ANSWERED = 36, 22, 9  # tokens in front of the picture, of a question, of an answer
SEG = 7999
CONFIG: dict[str, Any] = {
    "vlm": {
        "family": "llava",
        "seg_token_id": SEG,
        "vision": {
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "image_size": 224,
            "patch_size": 14,
        },
    },
    "mask_decoder": {"family": "sam", "image_size": 512, "embed_dim": 384, "depth": 8, "num_heads": 6, "global_attn_indexes": [3, 7]},
    "language_config": {
        "model_type": "llama",
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "vocab_size": 8000,
    },
    "seg_hidden": 768,
    "chat_template": "llava_v1",
}


def build(device: torch.device) -> LisaModel:
    """Random weights; what the paper trains learns, with all maps of the last layers standing in for the adapters."""
    torch.manual_seed(0)
    model = LisaModel(LisaConfig(**CONFIG)).eval()
    model.requires_grad_(False)
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith("seg_head") or "embed_tokens" in name or "lm_head" in name or "q_proj" in name or "v_proj" in name)
        if name.startswith(("vlm.vision", "mask_decoder.sam.vision_encoder")):
            p.requires_grad_(False)
    model.mask_decoder.freeze_unreached()
    return model.to(device)


def conversations(model: LisaModel) -> list[list[Encoded]]:
    """Random words: for each picture three questions behind the same prefix; one `[SEG]` in each answer."""
    draw = torch.Generator().manual_seed(1)
    n = model.vlm.n_image_tokens

    def words(count: int) -> list[int]:
        return [int(i) for i in torch.randint(3, SEG, (count,), generator=draw)]

    head, rows = words(SYSTEM), []
    for _ in range(PICTURES):
        rows.append([])
        for _ in range(QUESTIONS):
            answer = words(ANSWERED)
            answer[4] = SEG
            ids = [*head, *([model.vlm.image_token_id] * n), *words(ASKED), *answer]
            rows[-1].append(Encoded(ids, [IGNORED] * (len(ids) - ANSWERED) + answer, SYSTEM + n))
    return rows


def pictures(model: LisaModel, device: torch.device) -> tuple[Tensor, Tensor, list[Placement], list[Tensor]]:
    """CLIP's pixels, SAM's pixels, placements, and masks (M, H, W) at the pictures' own size."""
    draw = torch.Generator().manual_seed(2)
    decoder: Any = model.mask_decoder
    clip = torch.randn(PICTURES, 3, 224, 224, generator=draw)
    sam = torch.randn(PICTURES, 3, decoder.canvas, decoder.canvas, generator=draw)
    placement = Placement((HEIGHT, WIDTH), (decoder.canvas * HEIGHT // WIDTH, decoder.canvas), decoder.canvas)
    masks = []
    for _ in range(PICTURES):
        coarse = torch.rand(QUESTIONS, 12, 16, generator=draw) > 0.8
        masks.append(coarse.repeat_interleave(HEIGHT // 12, 1).repeat_interleave(WIDTH // 16, 2).to(torch.uint8))
    return clip.to(device), sam.to(device), [placement] * PICTURES, [m.to(device) for m in masks]


def naive(model: LisaModel, device: torch.device) -> Tensor:
    """One forward pass as the reference does it; the loss."""
    clip, sam, placements, masks = pictures(model, device)
    rows = [row for picture in conversations(model) for row in picture]
    ids = torch.tensor([row.ids for row in rows], device=device)  # all of one length here; the reference pads
    labels = torch.tensor([row.labels for row in rows], device=device)
    tokens = model.encode_image({"pixels": clip.repeat_interleave(QUESTIONS, 0)}).tokens
    embeds = model.vlm.embed(ids, tokens, torch.arange(len(rows), device=device))
    language_model = model.vlm.language_model
    states = language_model.model(inputs_embeds=embeds, output_hidden_states=True, use_cache=False).hidden_states
    logits = model.vlm.logits(states[-1]).float()
    wanted = labels[:, 1:] != IGNORED
    loss = answer_loss(logits[:, :-1][wanted], labels[:, 1:][wanted])
    prompts = model.prompt_embeddings(states[-1])[:, :-1][labels[:, 1:] == SEG].view(PICTURES, QUESTIONS, -1)
    features = [model.encode_mask_features(_context(tokens[:1]), one[None]) for one in sam]
    bce, dice = loss.new_zeros(()), loss.new_zeros(())
    for b in range(PICTURES):
        low, _ = model.decode_masks(features[b], prompts[b], torch.zeros(QUESTIONS, dtype=torch.long, device=device))
        full = placements[b].undo(low)
        bce, dice = bce + mask_bce(full, masks[b]).sum(), dice + mask_dice(full, masks[b]).sum()
    return loss + (2.0 * bce + 0.5 * dice) / (PICTURES * QUESTIONS)


def _context(tokens: Tensor) -> Any:
    from lisaseg.vlms.base import ImageContext

    return ImageContext(tokens, None)


def packed(model: LisaModel, device: torch.device, side: int = 0) -> Tensor:
    """One forward pass as lisaseg trains; masks are compared at `side` pixels at most (0 = the pictures' own size)."""
    clip, sam, placements, masks = pictures(model, device)
    places = [bounded(placement, side) for placement in placements]
    small = [torch.stack([torch.from_numpy(resized(m.cpu().numpy(), p.original_hw)) for m in ms]) for ms, p in zip(masks, places, strict=True)]
    batch = pack_encoded(conversations(model), [m.to(device) for m in small], SEG, max_tokens=1 << 20)
    for name in ("ids", "position_ids", "attention", "label_row", "label_col", "labels", "seg_row", "seg_col"):
        setattr(batch, name, getattr(batch, name).to(device))
    return _forward(model, batch, clip, sam, places)


def _forward(model: LisaModel, batch: Batch, clip: Tensor, sam: Tensor, places: list[Placement]) -> Tensor:
    return model(batch, model.encode_image({"pixels": clip}), pixels=sam, placements=places).losses["loss"]


WAYS = {"naive": naive, "lisaseg": packed, "bounded": lambda model, device: packed(model, device, 512)}


def measure(way: str, device: torch.device, repeats: int) -> dict[str, float]:
    """Loss, seconds of the fastest step (forward and back; of the processor, on a CPU), and the peak of memory above the model's own, in MiB."""
    model, cuda = build(device), device.type == "cuda"
    clock = time.perf_counter if cuda else time.process_time  # on a CPU other programs' time does not count
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = []
    loss = torch.zeros(())
    for _ in range(repeats):
        began = clock()
        loss = WAYS[way](model, device)
        loss.backward()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(clock() - began)
        model.zero_grad(set_to_none=True)
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"loss": loss.item(), "seconds": round(min(seconds), 3), "peak_mib": round((peak - before) / 2**20)}


def main() -> None:
    """Measure each way in a process of its own and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--way", choices=list(WAYS), help="measure one way and print it as JSON")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args.way, torch.device(args.device), args.repeats)))
        return
    results: dict[str, dict[str, float]] = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--way", way, "--device", args.device, "--repeats", str(args.repeats)]
        results[way] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    first = results["naive"]
    if abs(first["loss"] - results["lisaseg"]["loss"]) > 1e-3 * abs(first["loss"]):
        raise SystemExit(f"The losses differ: {first['loss']} and {results['lisaseg']['loss']}; the comparison means nothing.")
    print(f"{PICTURES} pictures of {WIDTH} x {HEIGHT}, {QUESTIONS} questions each, on {args.device}")
    print(f"{'way':<10}{'seconds':>9}{'ratio':>7}{'peak MiB':>10}{'ratio':>7}{'loss':>10}")
    for way, row in results.items():
        faster, smaller = first["seconds"] / row["seconds"], first["peak_mib"] / max(1, row["peak_mib"])
        print(f"{way:<10}{row['seconds']:>9.3f}{faster:>7.2f}{row['peak_mib']:>10.0f}{smaller:>7.2f}{row['loss']:>10.4f}")
    if args.out:
        setting = {"pictures": PICTURES, "questions": QUESTIONS, "size": [HEIGHT, WIDTH], "device": args.device, "threads": torch.get_num_threads()}
        machine = {"cpu": platform.processor() or platform.machine(), "torch": torch.__version__}
        args.out.write_text(json.dumps(setting | machine | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
