"""The model card of a trained lisa-tiny: what it is, what it saw, what it scores. Numbers come from the run and from benchmarks/scores.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_TEXT = """# lisa-tiny

A LISA (embedding-as-mask reasoning segmentation, arXiv 2308.00692) of about 155 million parameters that runs on a laptop CPU. It is small and makes
mistakes; for quality use a published 7B or 13B checkpoint.

## Use

```python
import lisaseg

answer = lisaseg.load("lisa-tiny").ask("photo.jpg", "the thing one drinks from")
```

English only. It knows everyday things, clothing, pets and streets best. It is weak at small objects, comparisons, text in pictures, counting
and anything that needs several steps. It cannot tell women from men: "woman", "man", "girl" and the like are read as "person" (`read_as` in
config.json). Do not use it where a wrong mask can harm somebody.

## Training

{training}

The first three stages see no reasoning query. The others named "reason" do: 9,852 implicit queries about 224 names and 153 attributes with 1,530
queries, written for this project with the help of a large language model (`src/lisaseg/datasets/implicit_texts.json`, `attributes.json`), asked
about made-up scenes and training photos, and 279 hand-written samples on training photos (`reason/train.jsonl`, `train_no_target.jsonl`).
Self-training went on from the first four, with 2,222 masks that the model itself had drawn in training photos labelled in part. One run, seeds
{seed}; scores of other seeds will differ. What was done otherwise than in the recipes stands in `docs/training.md`.

## Scores

Generated mode (the model decides whether to answer with a mask), ReasonSeg's question templates, logit 0, original size. Regenerate with
`python benchmarks/scores.py --reason DIR` and `python benchmarks/scores.py --pool DIR --limit 100`; the full numbers are in
`benchmarks/results/lisa-tiny.json`.

{scores}

The scores are somewhat optimistic. The validation queries and their photos were not trained on, but choices were made on them: that names are
weighed (6 candidates, temperature 1.5) against their likelihood without a question (`prior_share` 0.4), and `min_worth` -0.75, which makes a
refusal of an answer that is worth too little, among some hundred settings for these weights; earlier weights and versions were looked at on the
same sets. A refusal of something that is there counts as IoU 0. `min_score` 0.02 was chosen on category names. A set that nobody has looked at
would be the fair test. The categories are a random subset.

Measured with one thread. With two, bfloat16 rounds otherwise, and as many absent things are refused; the last digit of a gIoU may differ.

## Parts and licences

| part | parameters | licence |
|---|---|---|
| SmolLM2-135M-Instruct (fetched on first use, not in this folder) | 134.5 M | Apache-2.0 |
| YOLOv3-tiny trunk (darknet) | 8.8 M | darknet licence: public domain, do as you like |
| EfficientNet-Lite2 trunk | 6.1 M | Apache-2.0 |
| noun vectors from all-MiniLM-L6-v2 | | Apache-2.0 |
| neck, projector, seg head, mask decoder, LoRA (ours) | 11.0 M | Apache-2.0 |

Training data: COCO 2017 annotations (CC BY 4.0; photos under their own Flickr licences), Clothing Co-Parsing (research use), Oxford-IIIT Pets
(CC BY-SA 4.0), CamVid (academic use), portraits (no licence stated), cut-outs from tuxpaint-stamps (GPL-2), Sweet Home 3D (CC BY 3.0 and Free Art),
Fluent emoji (MIT), grocery and food photos; WordNet 3.0; definitions written for this project (`src/lisaseg/datasets/*.json`). Whether weights
inherit terms of training photos is not settled law; the clothing and street photos are for research use.
"""


def training_table(run: Path) -> str:
    """Steps, hours and last losses of every stage, read from the run's logs."""
    rows = ["| stage | steps | hours | last log |", "|---|---|---|---|"]
    for log in sorted(run.glob("*/log.jsonl"), key=lambda path: path.stat().st_mtime):
        entries = [json.loads(line) for line in log.read_text().splitlines()]
        seconds, before = 0.0, 0
        for entry in entries:
            seconds += entry["seconds_per_step"] * max(0, entry["step"] - before)
            before = entry["step"]
        last = ", ".join(f"{k} {v:.3g}" for k, v in entries[-1].items() if k not in ("step", "seconds_per_step", "grad_norm"))
        rows.append(f"| {log.parent.name} | {entries[-1]['step']} | {seconds / 3600:.2f} | {last} |")
    return "\n".join(rows)


_SETS = {
    "val_plain": "one-hop queries (`val_plain.jsonl`)",
    "val": "reasoning queries (`val.jsonl`)",
    "val_no_target": "absent things (`val_no_target.jsonl`)",
    "categories": "category names, 20 most frequent classes",
}


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def scores_table(scores: dict[str, Any]) -> str:
    """A Markdown table from a file of benchmarks/scores.py."""
    rows = ["| set | n | gIoU (95 % interval) | cIoU | refused, absent | refused, present |", "|---|---|---|---|---|---|"]
    for key, title in _SETS.items():
        report = scores["sets"][key]
        shown = _percent(report.get("giou_of_classes", report["giou"]))
        if "giou_of_classes" not in report and report.get("giou_ci95"):
            shown += " ({} to {})".format(*(_percent(v) for v in report["giou_ci95"]))
        cells = [title, str(report["n"]), "-" if key == "val_no_target" else shown, _percent(report["ciou"])]
        cells += [_percent(report.get("refused_absent")), _percent(report.get("refused_present"))]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def model_card(training: str, seed: str, scores: dict[str, Any]) -> str:
    """The whole card; training: a Markdown table of the stages."""
    return _TEXT.format(training=training, seed=seed, scores=scores_table(scores))
