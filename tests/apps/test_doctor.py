from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lisaseg.apps import cli, doctor

LEVELS = {"OK", "WARN", "FAIL"}


def by_name(findings: list[doctor.Finding]) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in findings}


def test_report_is_whole_and_every_trouble_has_a_next_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LISASEG_CACHE", str(tmp_path))
    findings = doctor.examine()
    assert {"python", "torch", "device", "threads", "transformers", "torchvision", "memory", "disk", "cache", "lisa-tiny"} <= set(by_name(findings))
    assert all(finding.level in LEVELS and (finding.level == "OK" or finding.next_step) for finding in findings)
    assert by_name(findings)["lisa-tiny"].level == "WARN" and "models pull" in by_name(findings)["lisa-tiny"].next_step


@pytest.mark.parametrize(("levels", "code"), [(["OK"], 0), (["OK", "WARN"], 0), (["WARN", "FAIL"], 1)])
def test_exit_code(monkeypatch: pytest.MonkeyPatch, levels: list[doctor.Level], code: int) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: [doctor.Finding("x", level, "d", "n") for level in levels])
    result = CliRunner().invoke(cli.app, ["doctor"])
    assert result.exit_code == code and result.stdout == "".join(f"{level}\tx\td\tn\n" for level in levels)


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[doctor.Finding]:
        raise RuntimeError("no such sensor")

    for name in ("_torch", "_lisa_tiny", "_disk", "_trap", "_extras"):  # the slow ones
        monkeypatch.setattr(doctor, name, list)
    monkeypatch.setattr(doctor, "_memory", broken)
    finding = by_name(doctor.examine())["memory"]
    assert finding.level == "FAIL" and "no such sensor" in finding.detail


def package(folder: Path, code: str) -> None:
    """A torchvision to be found on the path: a package with its metadata."""
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(code)
    (folder / "torchvision-0.28.0.dist-info").mkdir()
    (folder / "torchvision-0.28.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n")


@pytest.mark.parametrize(
    ("code", "level"), [("x = 1", "OK"), ("raise RuntimeError('operator torchvision::nms does not exist')", "FAIL"), ("import no_such", "FAIL")]
)
def test_a_broken_torchvision_is_found_without_loading_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, level: str) -> None:
    package(tmp_path, code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (finding,) = doctor._trap()
    assert finding.level == level and "0.28.0" in finding.detail and "torchvision" not in sys.modules
    assert level == "OK" or ("pip uninstall" in finding.next_step and finding.detail.endswith(("nms does not exist", "'no_such'")))


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LISASEG_CACHE", str(tmp_path / "file"))
    (finding,) = doctor._cache()
    assert finding.level == "FAIL" and "LISASEG_CACHE" in finding.next_step


@pytest.mark.parametrize(("free", "level"), [(10**8, "WARN"), (10**11, "OK"), (None, "OK")])
def test_memory(monkeypatch: pytest.MonkeyPatch, free: int | None, level: str) -> None:
    monkeypatch.setattr("lisaseg.model.host_memory.free_bytes", lambda: free)
    assert doctor._memory()[0].level == level


def test_too_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_cores", lambda: 0)
    finding = by_name(doctor._torch())["threads"]
    assert finding.level == "WARN" and "OMP_NUM_THREADS" in finding.next_step


def installed(folder: Path, name: str, version: str, *lines: str) -> None:
    """A package to be found on the path, by its metadata alone."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text("\n".join([f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}", *lines, ""]))


def test_every_extra_of_users_is_reported_and_none_is_loaded() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    assert set(doctor.EXTRAS) == set(project["optional-dependencies"]) - {"contracts", "browser", "fuzz", "dev"}
    before = set(sys.modules)
    found = by_name(doctor._extras())
    assert {f"lisaseg[{extra}]" for extra in doctor.EXTRAS} | set(doctor.OTHERS) == set(found)
    assert not {"fastapi", "mcp", "gradio", "peft", "deepspeed", "bitsandbytes", "ray"} & (set(sys.modules) - before)
    for name, finding in found.items():
        assert ("not installed" in finding.detail) == (finding.level == "OK" and bool(finding.next_step)), name
    assert f"fastapi {doctor.metadata.version('fastapi')}" in found["lisaseg[serve]"].detail


@pytest.mark.parametrize(
    ("there", "level", "says"),
    [
        ({}, "OK", "not installed"),
        ({"zz-helper": "1.0"}, "OK", "not installed"),
        ({"zz-chief": "2.1", "zz-helper": "1.0"}, "OK", "zz-chief 2.1, zz-helper 1.0 ("),
        ({"zz-chief": "1.9", "zz-helper": "1.0"}, "WARN", "zz-chief 1.9, zz-helper 1.0; does not fulfil zz-chief<3,>=2 ("),
        ({"zz-chief": "3.0", "zz-helper": "1.0"}, "WARN", "zz-chief 3.0, zz-helper 1.0; does not fulfil zz-chief<3,>=2 ("),
        ({"zz-chief": "2.9rc1", "zz-helper": "1.0"}, "OK", "zz-chief 2.9rc1"),
        ({"zz-chief": "2.1"}, "WARN", "does not fulfil zz-helper ("),
    ],
)
def test_an_extra_is_judged_by_its_metadata(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: dict[str, str], level: str, says: str) -> None:
    needs = ["numpy>=9; python_version > '3'", "zz-chief<3,>=2; extra == 'gradio'", "zz-helper; extra == 'gradio'", "zz-other; extra == 'mcp'"]
    installed(tmp_path, "lisaseg", "9.9", *(f"Requires-Dist: {need}" for need in needs))
    for name, version in there.items():
        installed(tmp_path, name, version)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(doctor, "EXTRAS", {"gradio": "an app"})
    finding = by_name(doctor._extras())["lisaseg[gradio]"]
    assert finding.level == level and says in finding.detail
    assert finding.next_step == ("" if finding.detail.startswith("zz") and level == "OK" else "pip install 'lisaseg[gradio]'")
