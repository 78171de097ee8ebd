"""`manifest.json`: what a folder of weights must hold, so that it can be checked later."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lisaseg.store.fetch import sha256_of

MANIFEST = "manifest.json"
FORMAT = 1  # of the converted folder; one with another number is converted anew


@dataclass(frozen=True)
class Check:
    """One line of `lisaseg models verify`: what was looked at, whether it is right, and, if not, what to do (`next_step`, else "")."""

    name: str
    ok: bool
    detail: str
    next_step: str = ""


def write_manifest(folder: Path, **facts: Any) -> Path:
    """Write `manifest.json`: size and sha256 of every other file in `folder` (not in sub-folders), and `facts` (JSON-ready values)."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)
    listed = {path.name: {"size": path.stat().st_size, "sha256": sha256_of(path)} for path in files}
    aside, target = folder / f"{MANIFEST}.tmp", folder / MANIFEST
    aside.write_text(json.dumps({"format": FORMAT, **facts, "files": listed}, indent=1) + "\n", "utf-8")
    aside.replace(target)
    return target


def read_manifest(folder: Path) -> dict[str, Any]:
    """Manifest of a folder, or {} if there is none that can be read."""
    try:
        found = json.loads((folder / MANIFEST).read_text("utf-8"))
        whole = all(isinstance(known["size"], int) and isinstance(known["sha256"], str) for known in found["files"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}
    return found if whole and found["files"] else {}


def is_whole(folder: Path, **facts: Any) -> bool:
    """Whether `folder` has a manifest of this format with these facts and every file in it has its size; hashes nothing, made for every load."""
    manifest = read_manifest(folder)
    if manifest.get("format") != FORMAT or any(manifest.get(key) != value for key, value in facts.items()):
        return False
    return all((folder / name).is_file() and (folder / name).stat().st_size == known["size"] for name, known in manifest["files"].items())


def check_files(label: str, folder: Path, next_step: str) -> list[Check]:
    """Compare every file of a folder with its manifest; names are `label/<file>`, `next_step` is what to do about a wrong one."""
    files = read_manifest(folder).get("files")
    if not files:
        return [Check(f"{label}/{MANIFEST}", False, "missing or not readable", next_step)]
    checks = []
    for name, facts in files.items():
        path = folder / name
        if not path.is_file():
            wrong = "missing"
        elif path.stat().st_size != facts["size"]:
            wrong = f"{path.stat().st_size} bytes, expected {facts['size']}"
        else:
            got = sha256_of(path)
            wrong = "" if got == facts["sha256"] else f"sha256 {got}, expected {facts['sha256']}"
        checks.append(
            Check(f"{label}/{name}", not wrong, wrong or f"{facts['size']} bytes, sha256 {facts['sha256'][:12]}", next_step if wrong else "")
        )
    return checks
