"""What 16, 8 and 4 bits change against the reference's float32 numbers, on the golden checkpoints: states, next tokens, masks.

    python benchmarks/quantized.py [--out benchmarks/results/quantized.json]      LISASEG_GOLDENS names another folder of fixtures

The fixtures are tiny and random, 16 to 64 numbers wide: their change is an upper bound for that of a real checkpoint, whose errors average out over
rows of 4096 numbers. What this shows is that each setting computes the model and what is kept in higher precision keeps its precision.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.golden.places import FOLDERS
from tests.golden.reference import Golden

from lisaseg.formats import write_aside
from lisaseg.model.assemble import fill_published
from lisaseg.model.published import read_config
from lisaseg.model.quantize import is_quantized

SETTINGS: list[tuple[torch.dtype, str | None]] = [
    (torch.float32, None), (torch.bfloat16, None), (torch.float16, None), (torch.float32, "8bit"), (torch.float32, "4bit"),
    (torch.bfloat16, "8bit"), (torch.bfloat16, "4bit"),
]  # fmt: skip


def measure(golden: Golden, dtype: torch.dtype, quantize: str | None) -> dict[str, Any]:
    """Change of one setting against the stored outputs of one fixture."""
    config, tower = read_config(golden.folder, golden.meta["added_vocab"], golden.meta["conv_type"], offline=True)
    golden.model = model = fill_published(config, golden.folder, tower, dtype, torch.device("cpu"), quantize)
    rows = [(b, row) for b, rows in enumerate(golden.rows()) for row in rows]
    with torch.no_grad():
        context = model.encode_image({"pixels": golden.inputs["images_clip"]})
        features = model.encode_mask_features(context, golden.inputs["images"])
        states = [
            model.vlm.hidden_states(model.vlm.embed(torch.tensor([row.ids]), context.tokens, torch.tensor([b])), None, None)[0] for b, row in rows
        ]
        exact = [golden.outputs["last_hidden_state"][q, : len(state)] for q, state in enumerate(states)]
        head = golden.load().vlm.logits
        same = [model.vlm.logits(ours).argmax(-1) == head(theirs).argmax(-1) for ours, theirs in zip(states, exact, strict=True)]
        masks = []
        for q, at in golden.meta["seg_embedding_row_and_expanded_position"]:
            b = rows[q][0]
            logits, _ = model.decode_masks(features, model.prompt_embeddings(states[q][at][None]), torch.tensor([b]))
            masks.append((b, golden.placement(b).undo(logits)[0]))
    stored = [mask for b in range(golden.n_images) for mask in golden.outputs[f"pred_masks_{b}"]]
    ious = [float(((ours > 0) & (theirs > 0)).sum() / ((ours > 0) | (theirs > 0)).sum().clamp(min=1))
            for (_, ours), theirs in zip(sorted(masks, key=lambda pair: pair[0]), stored, strict=True)]  # fmt: skip
    ours, theirs = torch.cat(states).float(), torch.cat(exact)
    return {
        "fixture": golden.folder.name,
        "setting": f"{quantize or 'none'}, {str(dtype).removeprefix('torch.')}",
        "quantized_maps": sum(is_quantized(p) for p in model.parameters()),
        "state_change": round(float((ours - theirs).norm() / theirs.norm()), 6),
        "same_next_token": round(float(torch.cat(same).float().mean()), 4),
        "mask_iou": round(sum(ious) / len(ious), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON")
    out = parser.parse_args().out
    results = []
    print(f"{'fixture':10} {'setting':16} {'states change by':>17} {'same next token':>16} {'IoU of masks':>13}")
    for folder in FOLDERS:
        for dtype, quantize in SETTINGS:
            row = measure(Golden(folder), dtype, quantize)
            if quantize is not None and not row["quantized_maps"]:
                continue  # too narrow for bitsandbytes
            results.append(row)
            changed, same = f"{100 * row['state_change']:.2f} %", f"{100 * row['same_next_token']:.1f} %"
            print(f"{row['fixture']:10} {row['setting']:16} {changed:>17} {same:>16} {row['mask_iou']:>13.3f}", flush=True)
    if out is not None:
        write_aside(out, (json.dumps({"command": "python benchmarks/quantized.py", "results": results}, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
