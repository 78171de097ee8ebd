"""Laws of the registry: lazy, explicit, and helpful when a name is wrong."""

from __future__ import annotations

import string
import sys
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lisaseg.errors import UsageError
from lisaseg.registry import Registry
from lisaseg.types import Sample

NAMES = st.text(alphabet=string.ascii_letters + string.digits + "-_.", min_size=1, max_size=12)
PATHS = st.from_regex(r"[a-z]\w{0,5}(\.[a-z]\w{0,5}){0,2}:[A-Z]\w{0,5}", fullmatch=True)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module on the path that no one has imported yet."""
    name = "lisaseg_registry_probe"
    (tmp_path / f"{name}.py").write_text("class Part:\n    class Inner: pass\n\nclass Other: pass\n")
    (tmp_path / f"{name}_needs.py").write_text("import a_library_that_is_not_there\n")
    (tmp_path / f"{name}_broken.py").write_text("from json import no_such_function\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def error_of(registry: Registry, name: str) -> str:
    with pytest.raises(UsageError) as caught:
        registry.get(name)
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith("parts"), "the message names the kind"
    return str(caught.value)


@given(st.dictionaries(NAMES, PATHS, max_size=6))
def test_names_are_those_given_sorted(entries: dict[str, str]) -> None:
    registry = Registry("parts", entries)
    assert registry.names() == tuple(sorted(entries))
    assert all(name in registry for name in entries)


@given(st.dictionaries(NAMES, PATHS, min_size=1, max_size=6), NAMES)
def test_an_unknown_name_lists_all_known_ones_and_the_way_out(entries: dict[str, str], name: str) -> None:
    registry = Registry("parts", entries)
    if name in entries:
        return
    message = error_of(registry, name)
    assert repr(name) in message and "package.module:Class" in message
    listed = message.split("Known are: ")[1].split(". Take one")[0].split(", ")
    assert sorted(listed) == sorted(entries)


def test_the_closest_name_comes_first() -> None:
    registry = Registry("parts", dict.fromkeys(["alpha", "sam", "sam2", "zeta"], "a.b:C"))
    assert "Known are: sam2, sam, alpha, zeta." in error_of(registry, "SAM2-")
    assert "Known are: alpha, " in error_of(registry, "alfa")
    assert "Known are: none." in error_of(Registry("parts"), "sam")


def test_nothing_is_imported_before_get(module: str) -> None:
    registry = Registry("parts", {"part": f"{module}:Part"})
    assert registry.names() == ("part",) and "part" in registry
    assert module not in sys.modules
    assert registry.get("part").__name__ == "Part"
    assert module in sys.modules


def test_a_path_needs_no_registration(module: str) -> None:
    registry = Registry("parts")
    assert registry.get("lisaseg.types:Sample") is Sample
    assert registry.get(f"{module}:Part.Inner").__qualname__ == "Part.Inner"


def test_registering_is_explicit_and_never_replaces() -> None:
    registry = Registry("parts", {"sample": "lisaseg.types:Sample"})
    registry.register("sample", "lisaseg.types:Sample")  # the same again is no conflict: modules may be reloaded
    with pytest.raises(UsageError, match=r"already lisaseg\.types:Sample"):
        registry.register("sample", "lisaseg.types:Turn")
    assert registry.get("sample") is Sample


def test_registries_share_nothing() -> None:
    entries = {"sample": "lisaseg.types:Sample"}
    one, two = Registry("parts", entries), Registry("parts", entries)
    one.register("turn", "lisaseg.types:Turn")
    assert two.names() == ("sample",) and list(entries) == ["sample"]


@pytest.mark.parametrize("target", ["", "a", "a.b", "a.b:", ":C", "a..b:C", ".a:C", "a:b:C", "a b:C", "a/b.py:C", "a.b:C()", "1a:C", "a:C\n"])
def test_a_malformed_path_is_refused_early(target: str) -> None:
    with pytest.raises(UsageError, match=r"package\.module:Class"):
        Registry("parts", {"part": target})
    if ":" in target:
        assert "package.module:Class" in error_of(Registry("parts"), target)


@pytest.mark.parametrize("name", ["", "a:b", " a", "a\n"])
def test_a_malformed_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a name"):
        Registry("parts", {name: "a.b:C"})


def test_a_wrong_path_says_which_piece_is_wrong(module: str) -> None:
    registry = Registry("parts", {"gone": "lisaseg_not_there.deep.er:Part", "typo": f"{module}:Prat", "needs": f"{module}_needs:Part"})
    assert "'lisaseg_not_there'" in (message := error_of(registry, "gone")) and "spelling" in message and "'gone'" in message
    assert f"Did you mean {module}:Part?" in error_of(registry, "typo")
    assert "Install what provides 'a_library_that_is_not_there'." in error_of(registry, "needs")
    assert "no_such_function" in error_of(registry, f"{module}_broken:Part")
    assert f"'{module}.deeper'" in error_of(registry, f"{module}.deeper:Part")


def test_installed_packages_announce_parts(module: str, tmp_path: Path) -> None:
    info = tmp_path / "lisaseg_probe-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lisaseg-probe\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[lisaseg.parts]\nouter = {module}:Part\nsample = {module}:Other\nwith_extra = {module} : Other [fast]\n")
    assert metadata.entry_points(group="lisaseg.parts")

    registry = Registry("parts", {"sample": "lisaseg.types:Sample"})
    assert module not in sys.modules
    assert registry.names() == ("outer", "sample", "with_extra")
    assert module not in sys.modules, "an announced part is imported only when it is asked for"
    assert registry.get("outer").__name__ == "Part" and registry.get("with_extra").__name__ == "Other"
    assert registry.get("sample") is Sample, "a package cannot change what a built-in name means"
    assert Registry("others").names() == ()
