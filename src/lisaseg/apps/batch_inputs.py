"""What a batch run has to do: pictures times prompts, in a fixed order, each with the names of its files; no picture is opened here."""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lisaseg.errors import UsageError
from lisaseg.formats import FORMATS

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".mpo"})
_LONGEST = 150  # bytes of a file's stem; file systems take 255, and endings follow
Row = tuple[str | None, str]  # (picture or None for all of them, prompt)


@dataclass(frozen=True)
class Pair:
    """One question about one picture.

    Attributes:
        path: the picture as results name it: relative to the input, with forward slashes.
        file: where it lies. prompt: the question. stem: of its files, relative to the output, folders included.
        problem: why it cannot be asked, "" if it can: a line of the input that is no question stands for itself.
    """

    path: str
    file: str
    prompt: str
    stem: str = ""
    problem: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What makes it the same question in another run."""
        return self.path, self.prompt


def work_list(source: str, out: Path, prompt: str | None, prompts: Path | None) -> list[Pair]:
    """All questions, those about one picture together; pictures in order of their path (of the lines, for a JSONL file), each question once.

    Args:
        source: a folder (searched to any depth), a glob pattern, one picture, or a JSONL file of `{"image", "text"}`.
        out: the output folder, never searched; if the input lies in it, what runs write there is not.
        prompt: one question for all pictures.
        prompts: a file of questions: .txt one a line; .csv with a column `prompt` or `text` and perhaps `image`; .jsonl with these fields.

    Raises:
        UsageError: there is nothing to do, or no question, or the file of questions cannot be read; names file and line.
    """
    if prompt is not None and prompts is not None:
        raise UsageError("--prompt and --prompts are both given.", next_step="Give one of them.")
    rows: list[Row] = [(None, prompt)] if prompt is not None else list(_prompts(prompts)) if prompts is not None else []
    is_pairs = Path(source).suffix.lower() in (".jsonl", ".ndjson") and Path(source).is_file()
    root, found = _pairs_file(Path(source), rows) if is_pairs else _pictures(source, out, rows)
    if not found:
        raise UsageError(f"{source} and the prompts make no question.", next_step="Check that the folder holds pictures and the file prompts.")
    groups: dict[str, dict[str, Pair]] = {}
    for path, text, problem in found:
        groups.setdefault(path, {}).setdefault(text, Pair(path, str(root / path), text, problem=problem))
    stems = _stems(list(groups))
    suffixed = prompt is None
    pairs = []
    for path, questions in groups.items():
        for pair in questions.values():
            stem = f"{stems[path]}.{_hash(pair.prompt)}" if suffixed else stems[path]
            pairs.append(Pair(pair.path, pair.file, pair.prompt, stem, pair.problem))
    return pairs


def in_shard(pair: Pair, shard: tuple[int, int]) -> bool:
    """Whether a pair belongs to shard i of n (i from 1). Questions about one picture stay together, however the input grows."""
    i, n = shard
    return int(_hash(pair.path), 16) % n == i - 1


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _pictures(source: str, out: Path, rows: list[Row]) -> tuple[Path, list[tuple[str, str, str]]]:
    """(root, [(path, prompt, problem)]) of a folder, a picture or a pattern."""
    if not rows:
        raise UsageError("There is no question.", next_step='Give --prompt "..." or --prompts FILE.')
    place = Path(source)
    if place.is_dir():
        root, files = place, sorted(walk(place, _results(out, place)))
    elif place.is_file():
        root, files = place.parent, [place]
    elif glob.has_magic(source):
        fixed = Path(source).parts
        cut = next(k for k, part in enumerate(fixed) if glob.has_magic(part))
        root = Path(*fixed[:cut]) if cut else Path()
        names = glob.glob(source, recursive=True)  # noqa: PTH207 - the pattern may be absolute
        own = _results(out, root)
        files = sorted(file for file in map(Path, names) if file.is_file() and not own & set(file.resolve().parents))
    else:
        raise UsageError(f"There is no {source}.", next_step="Give a folder, a picture, a pattern in quotes, or a JSONL file.")
    everywhere = [text for image, text in rows if image is None]
    found = [(path, text, "") for path in (os.path.relpath(file, root).replace(os.sep, "/") for file in files) for text in everywhere]
    return root, found + [(image, text, "") for image, text in rows if image is not None]


def _results(out: Path, root: Path) -> frozenset[Path]:
    """Folders that hold results, which must not become input: `out`, or those that runs make in it if the pictures of `root` lie in `out`, too."""
    out = out.resolve()
    inside = root.resolve().is_relative_to(out)
    return frozenset(out / name for name in ("files", *FORMATS.names())) if inside else frozenset((out,))


def walk(folder: Path, without: Collection[Path] = ()) -> Iterator[Path]:
    """The pictures of a folder to any depth, without what begins with a dot and what is in the folders `without` (resolved)."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and Path(place, name).resolve() not in without)
        yield from (Path(place, name) for name in names if not name.startswith(".") and Path(name).suffix.lower() in PICTURES)


def _pairs_file(file: Path, rows: list[Row]) -> tuple[Path, list[tuple[str, str, str]]]:
    """A JSONL file of pictures, with their questions or for those of `rows`. A line that cannot be used stands for itself."""
    everywhere = [text for image, text in rows if image is None]
    found = []
    for number, line in enumerate(_read(file).split(b"\n"), start=1):
        if not line.strip():
            continue
        record = _json(line)
        image = record.get("image") if record else None
        texts = [text] if record and (text := _text(record)) else everywhere
        if not isinstance(image, str) or not image or not texts:
            what = "is no JSON object" if record is None else "has no 'image'" if not isinstance(image, str) or not image else "has no 'text'"
            found.append((f"{file.name}:{number}", "", f"Line {number} of {file.name} {what}."))
            continue
        found += [(image.replace("\\", "/"), text, "") for text in texts]
    return file.parent, found + [(image, text, "") for image, text in rows if image is not None]


def _prompts(file: Path) -> Iterator[Row]:
    kind, data = file.suffix.lower(), _read(file)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8 at byte {error.start}.", next_step="Save it as UTF-8.") from error
    if kind == ".txt":
        yield from ((None, line.strip()) for line in text.splitlines() if line.strip())
    elif kind == ".csv":
        table = csv.DictReader(io.StringIO(text, newline=""))
        if not {"prompt", "text"} & set(table.fieldnames or ()):
            raise UsageError(f"{file} has no column 'prompt'.", next_step="Name the columns in the first line: prompt, or image,prompt.")
        for number, row in enumerate(table, start=2):
            yield _row(dict(row), f"{file}, row {number}")
    elif kind in (".jsonl", ".ndjson"):
        for number, line in enumerate(data.split(b"\n"), start=1):
            if line.strip():
                yield _row(_json(line), f"{file}:{number}")
    else:
        raise UsageError(f"{file} is neither .txt, .csv nor .jsonl.", next_step="Write one prompt a line into a .txt file.")


def _row(record: dict[str, Any] | None, where: str) -> Row:
    text, image = _text(record or {}), (record or {}).get("image")
    if not text or not (image is None or isinstance(image, str)):
        raise UsageError(f"{where}: there is no prompt.", next_step="Fill in 'prompt', and 'image' as the path of a picture or not at all.")
    return (image.replace("\\", "/") if image else None), text


def _text(record: dict[str, Any]) -> str:
    value = record.get("prompt") or record.get("text")
    return value.strip() if isinstance(value, str) else ""


def _json(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}.", next_step="Check the path.") from error


def _stems(paths: list[str]) -> dict[str, str]:
    """A legal stem for each picture, folders kept; where two would be equal, each gets a hash of its path."""
    plain = {}
    for path in paths:
        parts = [part for part in path.split("/") if part not in ("", ".", "..")] or ["picture"]
        parts[-1] = Path(parts[-1]).stem or parts[-1]
        plain[path] = "/".join(_legal(part) for part in parts)
    counts = Counter(stem.casefold() for stem in plain.values())
    return {path: stem if counts[stem.casefold()] == 1 else f"{stem}-{_hash(path)}" for path, stem in plain.items()}


def _legal(name: str) -> str:
    """A name that every file system takes: no control characters, none of `\\ : * ? " < > |`, no lone surrogates, not too long."""
    clean = "".join("_" if c in '\\:*?"<>|' or unicodedata.category(c) in ("Cc", "Cs") else c for c in name).rstrip(". ") or "_"
    short = clean.encode()[:_LONGEST].decode("utf-8", "ignore")
    return clean if clean == name and short == clean else f"{short}-{_hash(name)}"
