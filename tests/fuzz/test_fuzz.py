"""Z1 by libFuzzer: pictures, run lengths and request bodies, guided by which branches an input reaches. A minute each, or LISASEG_FUZZ_SECONDS."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS = int(os.environ.get("LISASEG_FUZZ_SECONDS", "60"))

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs atheris: pip install 'lisaseg[fuzz]' (Linux on x86-64)"),
]


def fuzz(target: str, folder: Path, seconds: int) -> subprocess.CompletedProcess[str]:
    """A process of its own, because libFuzzer ends it; a hang of 20 s and 2 GiB of memory are faults as well."""
    (folder / "corpus").mkdir()
    limits = [f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=2048", "-seed=1", f"-artifact_prefix={folder}/", "-print_final_stats=1"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.fuzz.targets", target, str(folder / "corpus"), *limits]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace", check=False)


@pytest.mark.parametrize("target", ["image", "runs", "request", "export"])
def test_nothing_but_our_own_errors_comes_out(target: str, tmp_path: Path) -> None:
    run = fuzz(target, tmp_path, SECONDS)
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert run.returncode == 0 and not found, (found, run.stderr[-4_000:])
    assert "stat::number_of_executed_units" in run.stderr, run.stderr[-1_000:]


def test_a_fault_would_be_found(tmp_path: Path) -> None:
    run = fuzz("planted", tmp_path, 60)
    assert run.returncode != 0 and "KeyError: 'not one of ours'" in run.stderr + run.stdout
    assert [path.read_bytes()[:2] for path in tmp_path.iterdir() if path.is_file()] == [b"no"]
