"""Put a trained model and its scores into the package: weights, model card, manifest. Run it after `lisaseg train` and `benchmarks/scores.py`.

python benchmarks/ship.py RUN_DIR SCORES.json
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from lisaseg.store import write_manifest
from lisaseg.train.card import model_card, training_table

# What `lisaseg eval` compares its data with: name and split of every set whose pictures or texts were trained on. The card says the same in words.
TRAINED_ON = [
    {"name": "coco", "split": "train2017"},
    *({"name": "pool", "split": f"{part}_train"} for part in ("coco", "ccp", "pets", "camvid", "humanseg")),
    {"name": "cutouts", "split": "train"},
    {"name": "wordnet", "split": "train"},
    *({"name": "reason", "split": part} for part in ("train", "train_no_target")),
]


def main(run: Path, scores_file: Path) -> None:
    """Copy `run/model` to src/lisaseg/weights/lisa-tiny and write card and manifest."""
    root = Path(__file__).parents[1]
    target = root / "src" / "lisaseg" / "weights" / "lisa-tiny"
    scores = json.loads(scores_file.read_text())
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    shutil.copyfile(run / "model" / "model.safetensors", target / "model.safetensors")
    config = json.loads((run / "model" / "config.json").read_text())
    config["trained_on"] = TRAINED_ON
    config["added_tokens"] = {"[SEG]": 49152, "<image>": 49153}
    if "refusal_bias" in scores:
        config["refusal_bias"] = scores["refusal_bias"]
    (target / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    table = run / "training.md"  # written by hand where a run was made of pieces
    training = table.read_text().strip() if table.is_file() else training_table(run)
    (target / "MODEL_CARD.md").write_text(model_card(training, "0 and 1", scores))
    write_manifest(target)
    print(target, f"{sum(f.stat().st_size for f in target.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
