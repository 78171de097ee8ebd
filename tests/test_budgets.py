"""Size, start-up and safety budgets of the source, read from the source itself."""

from __future__ import annotations

import ast
import json
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_FILE, MAX_FUNCTION, MAX_THIN_FILE, MAX_README = 400, 60, 300, 200
HEAVY = ("torch", "transformers", "accelerate", "peft")  # what must not load before a model does
FORBIDDEN_IMPORTS = {"torchvision", "timm", "pickle"}
# One file may: it derives an Unpickler that knows no class and no function, for the published annotations of the referring sets.
RESTRICTED_UNPICKLER = "src/lisaseg/datasets/safe_pickle.py"
BROUGHT_ALONG = {
    "certifi": "gguf",
    "click": "typer",
    "huggingface_hub": "transformers",
    "tokenizers": "transformers",
    "starlette": "fastapi",
    "yaml": "transformers",
}


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def long_functions(source: str, limit: int = MAX_FUNCTION) -> Iterator[tuple[str, int]]:
    """(name, lines) of the functions longer than `limit` lines, counted from `def` to the end, docstring included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > limit:
                yield node.name, lines


def hazards(source: str) -> Iterator[tuple[int, str]]:
    """(line, what) of constructs that the package must not hold; read from the syntax tree, so prose may speak of them."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, what) for what in _call_hazards(node))
        elif isinstance(node, ast.Constant) and node.value == "trust_remote_code":
            yield node.lineno, "trust_remote_code runs code from a model repository"
        yield from ((getattr(node, "lineno", 0), f"imports {name}") for name in names if name.split(".")[0] in FORBIDDEN_IMPORTS)


def _call_hazards(call: ast.Call) -> Iterator[str]:
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    called = ast.unparse(call.func)
    if called.endswith(".cuda"):
        yield ".cuda() ties the code to one kind of device; use .to(device)"
    if "trust_remote_code" in keywords:
        yield "trust_remote_code runs code from a model repository"
    weights_only = keywords.get("weights_only")
    if called == "torch.load" and not (isinstance(weights_only, ast.Constant) and weights_only.value is True):
        yield "torch.load without weights_only=True runs code from the file"
    first = call.args[0] if call.args else None
    if called.endswith("import_module") and isinstance(first, ast.Constant) and str(first.value).split(".")[0] in FORBIDDEN_IMPORTS:
        yield f"imports {first.value!r}"


@pytest.mark.parametrize("path", python_files("src", "tests", "benchmarks"), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_readable(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    thin = ROOT / "src/lisaseg/apps" in path.parents or path == ROOT / "src/lisaseg/model/lisa.py"
    limit = MAX_THIN_FILE if thin else MAX_FILE
    assert len(source.splitlines()) <= limit, f"{path} is longer than {limit} lines: give a part of it a file of its own"
    assert not list(long_functions(source)), f"{path}: split these functions (more than {MAX_FUNCTION} lines)"


def test_readme_fits_on_a_few_screens() -> None:
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("no README.md yet")
    assert len(readme.read_text(encoding="utf-8").splitlines()) <= MAX_README, "move details to docs/"


def test_source_holds_no_hazards() -> None:
    found = [f"{path.relative_to(ROOT)}:{line}: {what}" for path in python_files("src") for line, what in hazards(path.read_text(encoding="utf-8"))]
    allowed = [line for line in found if re.fullmatch(rf"{re.escape(RESTRICTED_UNPICKLER)}:\d+: imports pickle", line)]
    assert len(allowed) <= 1
    assert found == allowed, "\n".join(found)


def test_the_one_use_of_pickle_is_the_restricted_unpickler() -> None:
    tree = ast.parse((ROOT / RESTRICTED_UNPICKLER).read_text(encoding="utf-8"))
    uses = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle"}
    assert uses == {"Unpickler", "UnpicklingError"}, "only a subclass of Unpickler that refuses every class may read a pickle"
    assert not {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)} & {"pickle.Unpickler", "pickle.load", "pickle.loads"}
    (reader,) = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    refusals = {node.name: node.body for node in reader.body if isinstance(node, ast.FunctionDef)}
    assert set(refusals) == {"find_class", "persistent_load"}
    for name, body in refusals.items():
        assert [type(line) for line in body[-1:]] == [ast.Raise] and len(body) <= 2, f"{name} must refuse, whatever it is asked for"


@pytest.mark.parametrize("bad", ["x.cuda()", "self.model.cuda(0)", "import timm", "import torchvision.transforms as T", "from torchvision import ops",
                                 "load(x, trust_remote_code=True)", "load(**{'trust_remote_code': True})", "torch.load(p)", "import pickle",
                                 "torch.load(p, weights_only=False)", "importlib.import_module('timm')"])  # fmt: skip
def test_hazards_are_seen(bad: str) -> None:
    assert list(hazards(bad))


@pytest.mark.parametrize("good", ["torch.cuda.is_available()", "torch.load(p, weights_only=True)", "'torchvision is never imported'  # nor x.cuda()"])
def test_harmless_code_is_no_hazard(good: str) -> None:
    assert not list(hazards(good))


def test_modules_that_only_unix_has_are_imported_where_they_are_needed() -> None:
    """A file that imports one of them at its head cannot be imported on Windows at all."""
    found = []
    for path in python_files("src"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) else []
            )
            found += [
                f"{path.relative_to(ROOT)} imports {name}" for name in names if name in ("fcntl", "grp", "pwd", "readline", "resource", "termios")
            ]
    assert not found, found


def third_party_imports(source: str) -> set[str]:
    """Top-level names of the modules that a source file imports, the standard library and lisaseg aside."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"lisaseg"}


def test_every_imported_library_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(item for extra in project["optional-dependencies"].values() for item in extra)]
    declared = {re.split(r"[\[<>=!~; ]", item)[0].lower().replace("_", "-") for item in wanted}
    homes = metadata.packages_distributions()
    unknown = []
    for path in python_files("src"):
        for name in third_party_imports(path.read_text(encoding="utf-8")):
            sources = {home.lower().replace("_", "-") for home in homes.get(name, [name])} | {BROUGHT_ALONG.get(name, name)}
            if not sources & declared:
                unknown.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not unknown, f"declare it in pyproject.toml, as a dependency or in an extra: {unknown}"


def test_imports_are_seen_wherever_they_stand() -> None:
    source = "import a.b, json\nfrom . import c\nfrom lisaseg import d\ndef f():\n    from e.f import g\n"
    assert third_party_imports(source) == {"a", "e"}


def test_function_lengths_are_counted_from_def_to_end() -> None:
    body = "\n".join("    x = 1" for _ in range(MAX_FUNCTION - 1))
    assert not list(long_functions(f"def fits():\n{body}\n"))
    assert list(long_functions(f"@decorated\ndef fails():\n    '''Doc.'''\n{body}\n")) == [("fails", MAX_FUNCTION + 1)]


def loaded_after(code: str) -> set[str]:
    """The modules that a fresh interpreter holds after running `code`."""
    script = f"import json, sys\n{code}\nsys.stderr.write('\\n' + json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=ROOT / "src", check=False)
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stderr.splitlines()[-1]))


def test_import_is_light() -> None:
    assert not loaded_after("import lisaseg; dir(lisaseg); lisaseg.LisaSegError").intersection({*HEAVY, "numpy", "PIL"})


def test_types_are_light() -> None:
    assert not loaded_after("import lisaseg; lisaseg.Answer, lisaseg.Sample").intersection(HEAVY)


def test_help_is_light() -> None:
    code = "from lisaseg.apps.cli import main\nsys.argv = ['lisaseg', '--help']\ntry:\n    main()\nexcept SystemExit as end:\n    assert not end.code"
    assert not loaded_after(code).intersection(HEAVY)


def test_module_and_command_are_one() -> None:
    run = subprocess.run([sys.executable, "-m", "lisaseg", "--help"], capture_output=True, text=True, timeout=120, cwd=ROOT / "src", check=False)
    assert run.returncode == 0, run.stderr
    assert "ask" in run.stdout and "eval" in run.stdout


@pytest.mark.parametrize("host", ["192.0.2.1", "example.invalid"])
def test_tests_cannot_reach_the_network(host: str) -> None:
    with pytest.raises(RuntimeError, match="without network"):
        socket.create_connection((host, 80), timeout=0.1)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()[:2], timeout=5):
        pass  # servers of our own stay reachable
