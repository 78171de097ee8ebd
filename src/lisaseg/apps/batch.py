"""Many questions about many pictures into one folder: resumable, sharded, and no bad input stops it.

    OUT/run.json          what was asked of which model, a folder belongs to one such setting; and which exports of `--format` are ours
    OUT/results.jsonl     {"path", "prompt", "files", "answer"} a pair; the line is written last and in one piece: it says that the pair is done
    OUT/failed.jsonl      {"path", "prompt", "code", "message"}; absent if nothing failed
    OUT/files/            overlay, masks and JSON of each answer, as `lisaseg ask -o` writes them

Shard i of n writes results-i-of-n.jsonl and failed-i-of-n.jsonl; a run without shard counts their lines as done and merges them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from lisaseg import __version__
from lisaseg.apps.batch_inputs import Pair
from lisaseg.errors import LisaSegError, UsageError
from lisaseg.formats import FORMATS, Format, write_aside
from lisaseg.imaging import Picture, open_image
from lisaseg.types import Answer, Mode

if TYPE_CHECKING:
    from lisaseg.predictor import Predictor

Key = tuple[str, str]  # path, prompt
_RESULTS = re.compile(r"results(-\d+-of-\d+)?\.jsonl")


@dataclass(frozen=True)
class Outcome:
    """A pair that was tried: `record` is its line in results.jsonl, or in failed.jsonl if `failed`."""

    record: dict[str, Any]
    failed: bool = False


class Worker:
    """A loaded model that answers pairs and writes their files; the same one for the local run and for Ray.

    Args:
        predictor: the model. out: folder for `files/`, or None to write none. mode, limits: as for `Predictor.ask_batch`.
    """

    def __init__(self, predictor: Predictor, out: Path | None, mode: Mode, limits: dict[str, Any]) -> None:
        self.predictor, self.out, self.mode, self.limits = predictor, out, mode, limits
        self._open: dict[str, Picture | Exception] = {}  # pictures of the last call: its last one may go on in the next

    def __call__(self, pairs: Sequence[Pair]) -> Iterator[Outcome]:
        """Ask together, one by one if that fails; an outcome for every pair, in order.

        Raises:
            UsageError: the output cannot be written; that is no fault of a pair.
        """
        before, self._open = self._open, {}
        for pair in pairs:
            if pair.file not in self._open:
                self._open[pair.file] = before.get(pair.file) or self._opened(pair)
        ready = [pair for pair in pairs if not pair.problem and isinstance(self._open[pair.file], Picture)]
        answers: dict[Key, Answer | Exception] = {}
        try:
            answers = dict(zip([pair.key for pair in ready], self._ask(ready), strict=True))
        except Exception as error:  # one of them is refused, or there is no memory for all together
            for pair in ready:
                answers[pair.key] = self._ask_alone(pair) if len(ready) > 1 else error
        for pair in pairs:
            result = answers.get(pair.key) or self._open[pair.file]
            if pair.problem:
                yield _failure(pair, "bad_line", pair.problem)
            elif isinstance(result, Answer):
                yield Outcome(self._saved(pair, result))
            elif isinstance(result, LisaSegError):
                yield _failure(pair, result.code, str(result))
            else:
                yield _failure(pair, "internal", f"{type(result).__name__}: {str(result)[:300]}")

    def _ask(self, pairs: Sequence[Pair]) -> list[Answer]:
        pictures = [picture for pair in pairs if isinstance(picture := self._open[pair.file], Picture)]
        asked = [(picture.rgb, pair.prompt) for picture, pair in zip(pictures, pairs, strict=True)]
        answers = self.predictor.ask_batch(asked, mode=self.mode, **self.limits)
        # Opened here, once a picture; what was noticed then belongs to the answer.
        return [replace(answer, warnings=picture.warnings) for answer, picture in zip(answers, pictures, strict=True)]

    def _ask_alone(self, pair: Pair) -> Answer | Exception:
        try:
            return self._ask([pair])[0]
        except Exception as error:  # listed in failed.jsonl
            return error

    def _opened(self, pair: Pair) -> Picture | Exception:
        try:
            return open_image(pair.file, name=pair.path[-80:])
        except Exception as error:  # listed in failed.jsonl
            return error

    def _saved(self, pair: Pair, answer: Answer) -> dict[str, Any]:
        files: list[str] = []
        if self.out is not None:
            place = self.out / "files" / pair.stem
            files = [path.relative_to(self.out).as_posix() for path in answer.save(place.parent, place.name)]
        return {"path": pair.path, "prompt": pair.prompt, "files": files, "answer": answer.to_dict()}


def _failure(pair: Pair, code: str, message: str) -> Outcome:
    return Outcome({"path": pair.path, "prompt": pair.prompt, "code": code, "message": message}, failed=True)


class Results:
    """The folder of a run: what is done, and new lines. Locked from the start to the end of its `with`.

    Args:
        out: the folder. shard: (i, n), or None. setting: what run.json must say.

    Raises:
        UsageError: another run is writing here, the folder belongs to another setting, or it cannot be written.
    """

    def __init__(self, out: Path, shard: tuple[int, int] | None, setting: dict[str, Any]) -> None:
        self.out = out
        ending = "" if shard is None else f"-{shard[0]}-of-{shard[1]}"
        self.results, self.failures = out / f"results{ending}.jsonl", out / f"failed{ending}.jsonl"
        self.about, self.whole = out / "run.json", shard is None
        try:
            out.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(out / f".lock{ending}")
            self.lock.acquire(timeout=0)
        except Timeout as error:
            raise UsageError(f"Another run is writing into {out}.", next_step="Wait for it, use --shard, or choose another folder.") from error
        except OSError as error:
            raise UsageError(f"{out} cannot be written: {error.strerror}.", next_step="Choose another folder.", code="cannot_write") from error
        self.done: dict[Key, tuple[Path, int, int]] = {}  # where each line is: file, offset, length
        try:
            self._check_setting(setting)
            self.failures.unlink(missing_ok=True)  # what failed is tried again
            for file in sorted(self._files(), key=lambda file: file != self.results):
                self._read(file)
        except BaseException:
            self.lock.release()
            raise

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    def _check_setting(self, setting: dict[str, Any]) -> None:
        if not self.about.exists():
            if strange := self._files():  # its end might be cut, its order changed
                raise UsageError(f"{strange[0]} is there, but no run.json: it is of no run of ours.", next_step="Choose another folder.")
            self._tell({**setting, "lisaseg": __version__})
            return
        known = self._known()
        differs = [name for name in setting if known.get(name) != setting[name]]
        if differs:
            what = ", ".join(f"{name} was {known.get(name)!r}, now {setting[name]!r}" for name in differs)
            raise UsageError(f"{self.out} belongs to another run: {what}.", next_step="Choose another folder, or ask as before.")

    def _files(self) -> list[Path]:
        return sorted(file for file in self.out.glob("results*.jsonl") if _RESULTS.fullmatch(file.name))

    def _known(self) -> dict[str, Any]:
        try:
            known = json.loads(self.about.read_bytes())
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.about} cannot be read.", next_step="Choose another folder.") from error
        if not isinstance(known, dict):
            raise UsageError(f"{self.about} cannot be read.", next_step="Choose another folder.")
        return known

    def _tell(self, values: dict[str, Any]) -> None:
        write_aside(self.about, (json.dumps(values, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "backslashreplace"))

    def claim(self, name: str) -> Path:
        """A place in the folder that is to be replaced: ours if it is free or was claimed before. UsageError: somebody else's things are there."""
        known, place = self._known(), self.out / name
        ours = known.get("exports") or []
        if name not in ours:
            if place.exists() or place.is_symlink():
                raise UsageError(
                    f"{place} is there and is not of this run.", next_step="Move it away, or choose another folder.", code="cannot_write"
                )
            self._tell({**known, "exports": [*ours, name]})
        return place

    def _read(self, file: Path) -> None:
        """Note the lines of a file; a torn last line of our own, from a run that was killed, is cut off."""
        offset = 0
        with file.open("rb") as lines:
            for line in lines:
                try:
                    record = json.loads(line)
                    key = (str(record["path"]), str(record["prompt"]))
                except (ValueError, KeyError, TypeError):
                    key = None
                if not line.endswith(b"\n"):
                    break
                if key is not None:
                    self.done.setdefault(key, (file, offset, len(line)))
                offset += len(line)
        if file == self.results and offset < file.stat().st_size:
            os.truncate(file, offset)

    def add(self, outcome: Outcome) -> None:
        """Append a line; when this returns, it is in the file."""
        file = self.failures if outcome.failed else self.results
        line = (json.dumps(outcome.record, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        try:
            with file.open("ab") as lines:
                offset = lines.tell()
                lines.write(line)
        except OSError as error:
            raise UsageError(f"{file} cannot be written: {error.strerror}.", next_step="Make room, then start again.", code="cannot_write") from error
        if not outcome.failed:
            self.done[outcome.record["path"], outcome.record["prompt"]] = (file, offset, len(line))

    def finish(self, order: Iterable[Key]) -> None:
        """Put results.jsonl into the order of the work, lines of shards included; lines that are no part of it follow. Shards keep theirs."""
        if not self.whole:
            return
        keys = list(dict.fromkeys([*(key for key in order if key in self.done), *self.done]))
        if keys == list(self.done) and all(file == self.results for file, _, _ in self.done.values()):
            return
        aside, places = self.out / ".aside-results", {}
        with aside.open("wb") as target:
            for key in keys:
                line = self.line(key)
                places[key] = (self.results, target.tell(), len(line))
                target.write(line)
        os.replace(aside, self.results)
        self.done = places

    def line(self, key: Key) -> bytes:
        """The line of a pair that is done."""
        file, offset, length = self.done[key]
        with file.open("rb") as lines:
            lines.seek(offset)
            return lines.read(length)


def run_local(worker: Worker, pairs: Sequence[Pair], batch_size: int, done: Callable[[Key], bool]) -> Iterator[Outcome]:
    """Outcomes of the pairs that are not done, in order. Batches are cut from the whole list: an interrupted run asks the same ones."""
    for start in range(0, len(pairs), batch_size):
        left = [pair for pair in pairs[start : start + batch_size] if not done(pair.key)]
        if left:
            yield from worker(left)


def export_name(name: str) -> str:
    """What an export is called in OUT: "coco.json", "labelme"."""
    form: Format = FORMATS.get(name)
    return f"{form.name}{form.suffix}"


def export(results: Results, pairs: Sequence[Pair], name: str) -> Path:
    """Write all answers so far in a format of `lisaseg data convert` to OUT/<format><suffix>, in place of the last export. Returns its path."""
    from lisaseg.formats.answer import answer_from_dict
    from lisaseg.formats.convert import write_answers

    form: Format = FORMATS.get(name)
    target = results.claim(export_name(name))
    done = (pair for pair in pairs if pair.key in results.done)
    write_answers(((answer_from_dict(json.loads(results.line(pair.key))["answer"]), Path(pair.file), pair.stem) for pair in done), form, target)
    return target
