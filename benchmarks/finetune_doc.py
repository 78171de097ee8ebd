"""Run the commands of docs/finetune.md and paste what they print.

    python benchmarks/finetune_doc.py TRAIN.jsonl VAL.jsonl [--limit N] [--start MODEL]

Every line of a ```console block that starts with "$ " is run in a scratch folder, in order, with the two files as my_data/train.jsonl and
my_data/val.jsonl; what follows it in the block is replaced by its output. Nothing is written unless all commands succeed. A folder --start takes the
place of lisa-tiny: the one that ships has seen the queries that the page trains on.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "finetune.md"
BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)


def copy_data(source: Path, target: Path, limit: int | None) -> None:
    """The file with full paths of its pictures."""
    lines = [json.loads(line) for line in source.read_text("utf-8").splitlines() if line.strip()]
    with target.open("w", encoding="utf-8") as file:
        for line in lines[:limit]:
            file.write(json.dumps(line | {"image": str((source.parent / line["image"]).resolve())}, ensure_ascii=False) + "\n")


def run(command: str, folder: Path) -> str:
    """What a command prints, on both streams."""
    env = os.environ | {"COLUMNS": "120", "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(command, shell=True, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stdout}")
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines())


def main() -> None:
    """Replace the outputs on the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("val", type=Path)
    parser.add_argument("--limit", type=int, help="only so many lines of VAL")
    parser.add_argument("--start", type=Path, help="model folder to stand for lisa-tiny")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("my_data", "bin"):
            (folder / part).mkdir()
        if args.start:
            shutil.copytree(args.start, folder / "lisa-tiny")  # a folder of that name goes before the preset
        copy_data(args.train, folder / "my_data" / "train.jsonl", None)
        copy_data(args.val, folder / "my_data" / "val.jsonl", args.limit)
        shutil.copytree(ROOT / "recipes", folder / "recipes")
        (folder / "bin" / "lisaseg").write_text(f'#!/bin/sh\nexec {sys.executable} -m lisaseg "$@"\n')
        (folder / "bin" / "lisaseg").chmod(0o755)

        def filled(match: re.Match[str]) -> str:
            commands = [line for line in match[1].splitlines() if line.startswith("$ ")]
            return "```console\n" + "".join(f"{command}\n{run(command[2:], folder)}" for command in commands) + "```"

        page = BLOCK.sub(filled, PAGE.read_text("utf-8"))
    PAGE.write_text(page, "utf-8")


if __name__ == "__main__":
    main()
