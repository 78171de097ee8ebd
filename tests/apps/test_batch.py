"""`lisaseg batch`: nothing is asked twice, nothing is lost, no input stops it. The model is the tiny taught one of `tests.tiny_random`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests import tiny_random as tiny
from typer.testing import CliRunner, Result

from lisaseg.apps import batch as runner
from lisaseg.apps import cli
from lisaseg.apps.batch_inputs import Pair, in_shard, work_list
from lisaseg.errors import UsageError
from lisaseg.formats import FORMATS, rle
from lisaseg.formats.answer import answer_from_dict
from lisaseg.predictor import Predictor

QUESTIONS = [tiny.ONE, tiny.TWO, tiny.ABSENT]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["batch", *map(str, arguments)])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def without_times(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**record, "answer": {**record["answer"], "timings_ms": {}}} if "answer" in record else record for record in records]


def files_of(out: Path) -> dict[str, bytes]:
    """Names and bytes of all that a run left, times aside."""
    return {str(path.relative_to(out)): b"" if path.suffix in (".jsonl", ".json") else path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, predictor: Predictor) -> Predictor:
    monkeypatch.setattr("lisaseg.predictor.load", lambda name, **options: predictor)
    return predictor


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures, two of one stem, one in a folder, and things that are no pictures."""
    root = tmp_path / "in"
    (root / "deep").mkdir(parents=True)
    for k, name in enumerate(["b.jpg", "b.png", "deep/c é.png"]):
        noise = np.random.default_rng(k).integers(0, 256, (20 + k, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / name)
    (root / "notes.txt").write_text("no picture")
    (root / ".hidden.png").write_bytes(b"")
    return root


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    (tmp_path / "q.txt").write_text("\n".join(QUESTIONS) + "\n\n", encoding="utf-8")
    return tmp_path / "q.txt"


def test_a_folder_and_one_question(model: Predictor, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(photos, out, "--prompt", tiny.ONE, "--batch-size", 2)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{out / 'results.jsonl'}\n" and "3 questions: 0 done before, 3 asked" in result.stderr
    records = lines(out / "results.jsonl")
    assert [record["path"] for record in records] == ["b.jpg", "b.png", "deep/c é.png"]
    assert not (out / "failed.jsonl").exists() and not list(out.rglob(".aside*"))
    for record in records:
        answer = answer_from_dict(record["answer"])
        alone = model.ask(photos / record["path"], tiny.ONE)
        assert answer.text == alone.text and (answer.masks == alone.masks).all()
        pngs = [name for name in record["files"] if ".mask" in name]
        assert len(pngs) == len(answer.segments) == 1 and all((out / name).is_file() for name in record["files"])
        assert (np.asarray(Image.open(out / pngs[0])) == answer.masks[0] * 255).all()
    assert {Path(name).name for name in records[2]["files"]} == {"c é.overlay.png", "c é.mask1.png", "c é.json"}
    assert len({name for record in records for name in record["files"]}) == 9, "b.jpg and b.png do not share files"


def test_a_second_question_about_a_picture_encodes_nothing(model: Predictor, photos: Path, questions: Path, tmp_path: Path) -> None:
    for batch_size in (1, 3, 8):
        model.model.image_encodings, model._remembered = 0, type(model._remembered)()
        out = tmp_path / f"out{batch_size}"
        assert run(photos, out, "--prompts", questions, "--batch-size", batch_size, "--no-files").exit_code == 0
        assert len(lines(out / "results.jsonl")) == 9 and model.counters["image_encodings"] == 3 and not (out / "files").exists()
    one, two = (without_times(lines(tmp_path / f"out{n}" / "results.jsonl")) for n in (1, 8))
    assert one == two, "how many are asked together changes nothing"


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program may catch it."""


@pytest.mark.parametrize("at", [1, 4])
def test_killed_and_restarted_is_uninterrupted(
    model: Predictor, photos: Path, questions: Path, tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "broken.png").write_bytes(b"junk")
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run(photos, whole, "--prompts", questions).exit_code == 1
    saved, calls = runner.Worker._saved, []

    def dying(self: Any, pair: Pair, answer: Any) -> dict[str, Any]:
        calls.append(pair)
        if len(calls) > at:
            if len(calls) == at + 1 and at == 4:  # in the middle of writing a line
                with (out / "results.jsonl").open("ab") as file:
                    file.write(b'{"path": "b.png", "pro')
            raise Killed
        return saved(self, pair, answer)

    monkeypatch.setattr(runner.Worker, "_saved", dying)
    with pytest.raises(Killed):
        CliRunner().invoke(cli.app, ["batch", str(photos), str(out), "--prompts", str(questions)], catch_exceptions=False)
    monkeypatch.setattr(runner.Worker, "_saved", saved)
    asked: list[int] = []
    monkeypatch.setattr(runner.Worker, "_saved", lambda self, pair, answer: (asked.append(1), saved(self, pair, answer))[1])
    again = run(photos, out, "--prompts", questions)
    assert again.exit_code == 1 and f"{at} done before" in again.stderr and len(asked) == 9 - at
    for name in ("results.jsonl", "failed.jsonl"):
        assert without_times(lines(out / name)) == without_times(lines(whole / name)), name
    assert files_of(out) == files_of(whole)
    asked.clear()
    assert run(photos, out, "--prompts", questions).exit_code == 1 and not asked, "a finished run asks nothing again"


def test_shards_are_a_partition_and_merge(model: Predictor, photos: Path, questions: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run(photos, whole, "--prompts", questions).exit_code == 0
    for k in (3, 1, 2):
        assert run(photos, out, "--prompts", questions, "--shard", f"{k}/3").exit_code == 0
    parts = [lines(out / f"results-{k}-of-3.jsonl") for k in (1, 2, 3)]
    assert sum(map(len, parts)) == 9
    assert all(not {r["path"] for r in a} & {r["path"] for r in b} for a in parts for b in parts if a is not b), "a picture stays in one shard"
    before = model.counters["image_encodings"]
    assert run(photos, out, "--prompts", questions).exit_code == 0
    assert model.counters["image_encodings"] == before, "merging asks nothing"
    assert without_times(lines(out / "results.jsonl")) == without_times(lines(whole / "results.jsonl"))
    pairs = [Pair(f"{k}.jpg", "", "x") for k in range(200)]
    assert all(sum(in_shard(pair, (i, 4)) for i in range(1, 5)) == 1 for pair in pairs)


def test_one_refused_question_does_not_take_the_others_with_it(model: Predictor, photos: Path, tmp_path: Path) -> None:
    rows = [tiny.ONE, "word " * 3000, tiny.TWO]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in rows), encoding="utf-8")
    result = run(photos / "b.png", tmp_path / "out", "--prompts", tmp_path / "q.jsonl")
    assert result.exit_code == 1 and "1 failed" in result.stderr
    assert [record["prompt"] for record in lines(tmp_path / "out/results.jsonl")] == [tiny.ONE, tiny.TWO]
    (failed,) = lines(tmp_path / "out/failed.jsonl")
    assert failed["code"] == "prompt_too_long" and failed["message"] and failed["path"] == "b.png"


def test_no_memory_for_all_together_is_tried_alone(model: Predictor, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = model.ask_batch

    def short_of_memory(pairs: Any, **options: Any) -> Any:
        if len(pairs) > 1 or pairs[0][0].shape[0] == 21:
            raise RuntimeError("CUDA out of memory")
        return ask(pairs, **options)

    monkeypatch.setattr(model, "ask_batch", short_of_memory)
    assert run(photos, tmp_path / "out", "--prompt", tiny.ONE).exit_code == 1
    assert len(lines(tmp_path / "out/results.jsonl")) == 2
    (failed,) = lines(tmp_path / "out/failed.jsonl")
    assert failed["path"] == "b.png" and failed["code"] == "internal" and "out of memory" in failed["message"]


def test_a_full_disk_stops_the_run_with_its_reason(model: Predictor, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "files").write_text("in the way")
    result = run(photos, out, "--prompt", tiny.ONE)
    assert result.exit_code == 2 and "cannot be written" in result.stderr and not lines(out / "failed.jsonl")


def test_a_folder_belongs_to_one_setting_and_one_run(model: Predictor, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(photos, out, "--prompt", tiny.ONE).exit_code == 0
    for other in (["--prompt", tiny.TWO], ["-m", "other"], ["--mode", "text"], ["--quantize", "8bit"]):
        result = run(photos, out, *([] if "--prompt" in other else ["--prompt", tiny.ONE]), *other)
        assert result.exit_code == 2 and "another run" in result.stderr
    with runner.Results(out, None, {}):
        result = run(photos, out, "--prompt", tiny.ONE)
        assert result.exit_code == 2 and "Another run is writing" in result.stderr


def test_how_the_model_is_loaded(predictor: Predictor, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr("lisaseg.predictor.load", lambda name, **options: seen.append(options) or predictor)
    how = ["--device", "cpu", "--dtype", "bfloat16", "--quantize", "4bit", "--device-map", "auto", "--offline"]
    assert run(photos, tmp_path / "out", "--prompt", tiny.ONE, "--no-files", *how).exit_code == 0
    assert seen == [{"device": "cpu", "dtype": "bfloat16", "quantize": "4bit", "device_map": "auto", "offline": True}]


@pytest.mark.parametrize("name", ["coco", "reasonseg"])
def test_answers_in_other_formats(model: Predictor, photos: Path, questions: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    assert run(photos, out, "--prompts", questions, "--format", name).exit_code == 0
    form = FORMATS.get(name)
    samples = list(form.read(out / f"{name}{form.suffix}", None))
    found = {(query.text, rle.encode(mask == 1)["counts"]) for sample in samples for query in sample.queries for mask in query.masks}
    answers = [answer_from_dict(record["answer"]) for record in lines(out / "results.jsonl")]
    if name == "coco":
        assert found == {(s.phrase or a.instruction, rle.encode(s.mask)["counts"]) for a in answers for s in a.segments if s.area}
    else:
        assert {query.text for sample in samples for query in sample.queries} == set(QUESTIONS)
    first = sorted(path.name for path in out.iterdir())
    assert run(photos, out, "--prompts", questions, "--format", name).exit_code == 0, "an earlier export is replaced"
    assert sorted(path.name for path in out.iterdir()) == first
    assert run(photos, tmp_path / "new", "--prompts", questions, "--format", "nonsense").exit_code == 2 and not (tmp_path / "new").exists()


def test_lines_that_are_no_question_are_listed(model: Predictor, photos: Path, tmp_path: Path) -> None:
    good = [{"image": "b.png", "text": tiny.ONE}, {"image": "gone.png", "text": tiny.ONE}, {"image": "b.png", "text": tiny.ONE}]
    bad = ["{", "[]", '{"text": "x"}', '{"image": "b.png"}', '{"image": 3, "text": "x"}', "\xff"]
    (photos / "p.jsonl").write_text("\n".join([*map(json.dumps, good), "", *bad]) + "\n", encoding="latin-1")
    assert run(photos / "p.jsonl", tmp_path / "out").exit_code == 1
    assert [record["path"] for record in lines(tmp_path / "out/results.jsonl")] == ["b.png"]
    failed = lines(tmp_path / "out/failed.jsonl")
    assert [record["code"] for record in failed] == ["image_not_found"] + ["bad_line"] * 6
    assert [record["path"] for record in failed[1:]] == [f"p.jsonl:{k}" for k in range(5, 11)]


def work(source: Path | str, *, prompt: str | None = None, prompts: Path | None = None, out: Path = Path("nowhere")) -> list[tuple[str, str]]:
    return [pair.key for pair in work_list(str(source), out, prompt, prompts)]


def test_ways_to_say_what_to_do(photos: Path, tmp_path: Path) -> None:
    assert [path for path, _ in work(f"{photos}/*.png", prompt="x")] == ["b.png"]
    assert [path for path, _ in work(f"{photos}/**/*.png", prompt="x")] == ["b.png", "deep/c é.png"]
    assert work(photos / "b.png", prompt="x") == [("b.png", "x")]
    table = tmp_path / "q.csv"
    table.write_text('image,prompt\nb.jpg,"one, two"\n,everywhere\n', encoding="utf-8")
    found = work(photos, prompts=table)
    assert ("b.jpg", "one, two") in found and len(found) == 4
    assert [path for path, _ in found][:2] == ["b.jpg", "b.jpg"], "questions about one picture stand together"
    shutil.copytree(photos, photos / "out")
    assert len(work(photos, prompt="x", out=photos / "out")) == 3, "the output is never searched"
    assert len(work(f"{photos}/**/*.*g", prompt="x", out=photos / "out")) == 3, "nor by a pattern"
    (photos / "out").rename(photos / "files")
    assert len(work(photos, prompt="x", out=photos)) == 3, "pictures and results in one folder"
    assert len(work(f"{photos}/**/*.*g", prompt="x", out=photos)) == 3
    assert len(work(photos, prompt="x")) == 6, "another run's results are pictures like others"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("q.csv", "a,b\n1,2\n"),
        ("q.csv", "prompt\n\n \n"),
        ("q.jsonl", "{}\n"),
        ("q.jsonl", "{\n"),
        ("q.jsonl", '{"prompt": "x", "image": 3}'),
        ("q.md", "x"),
        ("q.txt", "\n"),
        ("q.txt", None),
    ],
)
def test_files_of_prompts_that_cannot_be_used_stop_before_the_model(photos: Path, tmp_path: Path, name: str, text: str | None) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UsageError):
        work(photos, prompts=tmp_path / name)


@pytest.mark.parametrize(
    "arguments",
    [
        ["none", "out"],
        ["none", "out", "--prompt", "x"],
        ["in", "out"],
        ["in", "out", "--prompt", "x", "--prompts", "q.txt"],
        ["in", "out", "--prompt", "x", "--shard", "0/2"],
        ["in", "out", "--prompt", "x", "--shard", "3/2"],
        ["in", "out", "--prompt", "x", "--shard", "a"],
        ["in/*.gif", "out", "--prompt", "x"],
    ],
)
def test_wrong_use_exits_2(photos: Path, tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2 and "Traceback" not in result.output and not Path("out").exists()


def test_stems_are_legal_and_never_meet(tmp_path: Path) -> None:
    names = [
        "a.jpg",
        "a.png",
        "A.gif",
        "x" * 250 + ".png",
        "猫" * 80 + ".png",
        "b\\c.png",
        "new\nline.png",
        "..png",
        "con:.png",
        "../../up.png",
        "/abs/up.png",
    ]
    rows = "".join(json.dumps({"image": name, "text": "x"}) + "\n" for name in names)
    (tmp_path / "p.jsonl").write_text(rows)
    stems = [pair.stem for pair in work_list(str(tmp_path / "p.jsonl"), tmp_path / "o", None, None)]
    assert len({stem.casefold() for stem in stems}) == len(names)
    for stem in stems:
        assert not stem.startswith("/") and ".." not in stem.split("/") and "\\" not in stem and "\n" not in stem and ":" not in stem
        assert len(Path(stem).name.encode()) + len(".overlay.png") < 255


@pytest.mark.long
def test_kill_9_and_restart_as_processes(tmp_path: Path) -> None:
    """The real thing: lisa-tiny in a process of its own, killed as soon as its first line is written."""
    root = Path(__file__).parents[1] / "fixtures/coco/val2017"
    environment = {**os.environ, "PYTHONPATH": str(Path(runner.__file__).parents[2])}

    def start(out: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "lisaseg", "batch", str(root), str(out), "--prompt", "the person", "--device", "cpu", "--batch-size", "1"]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    assert start(tmp_path / "whole").wait(timeout=300) == 0
    out = tmp_path / "out"
    process = start(out)
    while process.poll() is None and not lines(out / "results.jsonl"):
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = len(lines(out / "results.jsonl"))
    assert 1 <= done < 4, "killed in the middle"
    assert start(out).wait(timeout=300) == 0
    assert without_times(lines(out / "results.jsonl")) == without_times(lines(tmp_path / "whole/results.jsonl"))
    assert {k: v for k, v in files_of(out).items() if ".aside" not in k} == files_of(tmp_path / "whole")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    ray.init(num_cpus=2, _node_ip_address="127.0.0.1", include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    yield ray
    ray.shutdown()


@pytest.mark.long
def test_ray_gives_the_same_answers(cluster: Any, photos: Path, tmp_path: Path) -> None:
    """With lisa-tiny itself, because actors load their model; runs where the extra `ray` is installed."""
    (tmp_path / "q.txt").write_text("the person\nthe dog\n")
    options = ["--prompts", tmp_path / "q.txt", "--device", "cpu"]
    (photos / "broken.png").write_bytes(b"junk")
    assert run(photos, tmp_path / "local", *options).exit_code == 1
    assert run(photos, tmp_path / "ray", *options, "--engine", "ray").exit_code == 1
    assert run(photos, tmp_path / "ray", *options).exit_code == 1
    for name in ("results.jsonl", "failed.jsonl"):
        assert without_times(lines(tmp_path / "ray" / name)) == without_times(lines(tmp_path / "local" / name))
