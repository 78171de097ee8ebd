"""What holds for the files of the page themselves, read without a browser."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WEB = ROOT / "src/lisaseg/apps/web"
TEXTS = sorted(path for path in WEB.rglob("*") if path.suffix in {".html", ".css", ".js", ".svg"})
DOCUMENTS = {"index.html": "js/main.js", "annotate.html": "js/annotate/main.js"}  # page -> the module that it starts
MAX_LINES = 400


def document(name: str) -> str:
    """A page as it is served: the icons stand in it."""
    return (WEB / name).read_text("utf-8").replace("<!-- icons.svg -->", (WEB / "icons.svg").read_text("utf-8"))


def modules(path: Path, found: dict[Path, str] | None = None) -> dict[Path, str]:
    """A module and all that it imports, directly or not."""
    found = {} if found is None else found
    if path not in found:
        found[path] = path.read_text("utf-8")
        for other in re.findall(r'\bfrom "(\.[^"]+)"|\bimport\("(\.[^"]+)"\)', found[path]):
            modules((path.parent / "".join(other)).resolve(), found)
    return found


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_files_are_short_and_reach_nowhere(path: Path) -> None:
    """No other host is ever named: the page works offline, and nobody is told that it is used. (Names of XML spaces are no addresses.)"""
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    assert not re.search(r"(?:https?:)?//[a-z0-9-]+\.[a-z]", text.replace("http://www.w3.org/2000/svg", ""), re.IGNORECASE)


@pytest.mark.parametrize("path", sorted((WEB / "js").rglob("*.js")), ids=lambda path: path.name)
def test_text_never_becomes_markup_or_code(path: Path) -> None:
    text = path.read_text("utf-8")
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", 'setAttribute("style"', "DOMParser"):
        assert way not in text, way


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.wrong: list[str] = []
        self.targets: list[str] = []
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name == "style" or name.startswith("on"):
                self.wrong.append(f"<{tag} {name}>")
            if name in {"for", "aria-controls", "aria-labelledby", "aria-describedby", "popovertarget"} or (
                name == "href" and (value or "").startswith("#")
            ):
                self.targets.append((value or "").removeprefix("#"))
            if name in {"src", "href"} and (value or "").startswith("/web/") and not (WEB / (value or "").removeprefix("/web/")).is_file():
                self.wrong.append(f"{value} does not exist")

    def handle_data(self, data: str) -> None:
        if self.inside in {"script", "style"} and data.strip():
            self.wrong.append(f"inline <{self.inside}>")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_page_obeys_a_strict_policy_and_its_references_lead_somewhere(name: str) -> None:
    page = Page()
    page.feed(document(name))
    assert not page.wrong
    assert len(page.ids) == len(set(page.ids))
    assert set(page.targets) <= set(page.ids)


@pytest.mark.parametrize(("name", "script"), DOCUMENTS.items())
def test_scripts_ask_only_for_elements_and_icons_that_exist(name: str, script: str) -> None:
    ids = set(re.findall(r'\bid="([^"]+)"', document(name)))
    used = modules(WEB / script)
    assert len(used) > 10
    for path, text in used.items():
        if path.parent == (WEB / script).parent:  # of a module from the other page only some functions are used
            assert set(re.findall(r'\$\("([^"]+)"\)', text)) <= ids, path.name
        assert {f"i-{name}" for name in re.findall(r'\b(?:icon|action)\("([a-z]+)"', text)} <= ids, path.name


def test_example_photos_are_those_of_the_repository_and_their_answers_are_whole() -> None:
    from lisaseg.formats.answer import answer_from_dict

    examples = json.loads((WEB / "examples/examples.json").read_text("utf-8"))
    assert 4 <= len(examples) <= 6
    for example in examples:
        assert (WEB / "examples" / example["file"]).read_bytes() == (ROOT / "examples" / example["file"]).read_bytes()
        for turn in example["turns"]:
            answer = answer_from_dict(turn["answer"])
            assert answer.raw_text == turn["raw_text"] and answer.instruction == turn["prompt"]
            assert all(segment.area for segment in answer.segments)
    statuses = {turn["answer"]["status"] for example in examples for turn in example["turns"]}
    assert statuses >= {"masks", "no_target"}, "one of the examples shows what a refusal looks like"
