"""Record the answers that the page shows on its example tiles: `python benchmarks/web_examples.py`.

Asks lisa-tiny the questions below and writes answers and photos to `src/lisaseg/apps/web/examples`. Nothing is edited by hand: the page never shows
an answer that the model did not give.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import lisaseg
from lisaseg.formats import write_aside

ROOT = Path(__file__).parents[1]
SOURCE, TARGET = ROOT / "examples", ROOT / "src/lisaseg/apps/web/examples"
MODEL = "lisa-tiny"
# (id, photo, what it shows, [(question, mode), ...]): two turns, a reason, a function, a role, a place, and something that is not there
EXAMPLES = [
    ("astronaut", "astronaut.jpg", "A smiling astronaut in an orange suit", [("Who has been to space?", "auto"), ("the hair", "auto")]),
    ("cat", "cat.jpg", "A tabby cat that looks past the camera", [("Which animal hunts mice? Explain.", "explain")]),
    ("coffee", "coffee.jpg", "A cup of coffee with a spoon on a red saucer", [("the thing one drinks from", "auto")]),
    ("photographer", "photographer.jpg", "A man behind a camera on a tripod", [("Who takes the picture?", "auto")]),
    ("rocket", "rocket.jpg", "A rocket on its pad at dusk", [("Where would clouds be?", "auto")]),
    ("absent", "rocket.jpg", "A rocket on its pad at dusk; no mask", [("the elephant", "auto")]),
]


def record(model: lisaseg.Predictor, photo: str, questions: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """The turns of one conversation, as the page keeps them."""
    chat, turns = model.chat(SOURCE / photo), []
    for prompt, mode in questions:
        answer = {**chat.ask(prompt, mode=mode).to_dict(), "mode": mode, "model": MODEL}
        print(f"{photo}: {prompt} -> {answer['text']}")
        turns.append({"prompt": prompt, "mode": mode, "raw_text": answer["raw_text"], "answer": answer})
    return turns


def main() -> None:
    """Record all of them."""
    model = lisaseg.load(MODEL)
    TARGET.mkdir(exist_ok=True)
    found = []
    for name, photo, alt, questions in EXAMPLES:
        shutil.copyfile(SOURCE / photo, TARGET / photo)
        found.append({"id": name, "file": photo, "alt": alt, "turns": record(model, photo, questions)})
    write_aside(TARGET / "examples.json", json.dumps(found, ensure_ascii=False, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
