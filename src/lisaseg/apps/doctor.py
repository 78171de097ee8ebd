"""`lisaseg doctor`: what of this machine and installation would make lisaseg fail or crawl, each with its next step."""

from __future__ import annotations

import contextlib
import importlib.metadata as metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

Level = Literal["OK", "WARN", "FAIL"]
MIN_TORCH, MIN_TRANSFORMERS = (2, 13), (5, 23)
NEED_MEMORY_GB, NEED_DISK_GB = 2.0, 1.0  # lisa-tiny: about 1.2 GB while it answers; 0.6 GB while it is pulled
EXTRAS = {  # of pyproject.toml, without those that only its developers need; a test holds that none is missing
    "serve": "`lisaseg serve`, with doors for Label Studio and X-AnyLabeling, and `lisaseg annotate`",
    "mcp": "tools for assistants: `lisaseg mcp`, `serve --integrations mcp`",
    "gradio": "`lisaseg gradio`",
    "train": "`lisaseg train`",
    "deepspeed": "training on several GPUs by DeepSpeed",
    "quant": "weights of 4 and 8 bits: `--quantize`",
    "ray": "`lisaseg batch --engine ray`",
}
OTHERS = {"cvat-cli": "runs our auto-annotation function for CVAT", "openai": "the client of OpenAI, which `lisaseg serve` understands"}


@dataclass(frozen=True)
class Finding:
    """One line of the report: OK, WARN (works, but slowly or not for long) or FAIL."""

    name: str
    level: Level
    detail: str
    next_step: str = ""


def examine() -> list[Finding]:
    """Run all checks. A check that breaks is itself a FAIL, so the report is always whole."""
    checks: list[tuple[str, Callable[[], list[Finding]]]] = [
        ("python", _python),
        ("torch", _torch),
        ("transformers", _transformers),
        ("packages that break transformers", _trap),
        ("memory", _memory),
        ("disk", _disk),
        ("cache", _cache),
        ("lisa-tiny", _lisa_tiny),
        ("extras", _extras),
    ]
    found: list[Finding] = []
    for name, check in checks:
        try:
            found += check()
        except Exception as error:  # a doctor that falls ill still reports
            found.append(Finding(name, "FAIL", f"the check broke: {type(error).__name__}: {error}", "Report this line with `lisaseg --version`."))
    return found


def _python() -> list[Finding]:
    level: Level = "OK" if sys.version_info >= (3, 11) else "FAIL"
    return [
        Finding(
            "python", level, f"{platform.python_version()}, {platform.system()} {platform.machine()}", "" if level == "OK" else "Use 3.11 or later."
        )
    ]


def _release(text: str) -> tuple[int, ...]:
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in text.split("+")[0].split(".")[:2])


def _torch() -> list[Finding]:
    try:
        import torch
    except ImportError as error:
        return [Finding("torch", "FAIL", f"cannot be imported: {error}", "pip install 'torch>=2.13,<3'")]
    version = str(torch.__version__)
    new = _release(version) >= MIN_TORCH
    found = [Finding("torch", "OK" if new else "FAIL", version, "" if new else "pip install 'torch>=2.13,<3'"), _device()]
    threads, cores = torch.get_num_threads(), _cores()
    crowded = threads > cores
    step = f"Set OMP_NUM_THREADS={cores}: more threads than cores slow each other down." if crowded else ""
    return [*found, Finding("threads", "WARN" if crowded else "OK", f"{threads} threads on {cores} usable cores", step)]


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
        free, total = torch.cuda.mem_get_info()
        return Finding("device", "OK", f"cuda: {', '.join(names)}; {free / 1e9:.1f} of {total / 1e9:.1f} GB free on the first")
    if torch.backends.mps.is_available():
        return Finding("device", "OK", "mps")
    flags = _cpu_flags()
    fast = [name for name, flag in (("AVX2", "avx2"), ("AVX-512", "avx512f"), ("bf16", "avx512_bf16"), ("AMX", "amx_bf16")) if flag in flags]
    detail = f"cpu: {platform.processor() or platform.machine()}, torch uses {torch.backends.cpu.get_cpu_capability()}"
    if flags:
        detail += f"; has {', '.join(fast) or 'no wide vectors'}"
        if "bf16" not in fast and "AMX" not in fast:
            detail += "; no bf16 units, float32 is the fast choice"
    if shutil.which("nvidia-smi") and torch.version.cuda is None:
        return Finding("device", "WARN", detail, "There is an NVIDIA driver, but this torch is built for CPUs; install a CUDA build to use it.")
    return Finding("device", "OK", detail)


def _cpu_flags() -> set[str]:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith(("flags", "Features")):
                return set(line.partition(":")[2].split())
    return set()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(package: str) -> str | None:
    """What is installed of a package, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _transformers() -> list[Finding]:
    step = "pip install 'transformers>=5.23,<6'"
    version = _version("transformers")
    if version is None:
        return [Finding("transformers", "FAIL", "not installed", step)]
    right = _release(version) >= MIN_TRANSFORMERS and _release(version)[0] == 5
    return [Finding("transformers", "OK" if right else "FAIL", version, "" if right else step)]


def _trap() -> list[Finding]:
    """lisaseg needs no torchvision, but transformers uses it where it finds it, and one built for another torch breaks all of its image code."""
    name = "torchvision"
    if importlib.util.find_spec(name) is None:
        return [Finding(name, "OK", "not installed, not needed")]
    version = _version(name) or "of unknown version"
    try:  # in another process: a broken one must not be loaded into this one
        run = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return [Finding(name, "WARN", f"{version}: importing it takes more than two minutes", f"pip uninstall {name}")]
    if run.returncode == 0:
        return [Finding(name, "OK", f"{version}, not needed")]
    reason = run.stderr.strip().splitlines()[-1:] or ["no message"]
    step = f"pip uninstall {name} (lisaseg does not need it), or install the build that belongs to your torch."
    return [Finding(name, "FAIL", f"{version} does not fit this torch: {reason[0][:160]}", step)]


def _memory() -> list[Finding]:
    from lisaseg.model.host_memory import free_bytes

    free = free_bytes()
    if free is None:
        return [Finding("memory", "OK", "cannot be read on this system")]
    low = free / 1e9 < NEED_MEMORY_GB
    step = f"lisa-tiny wants about {NEED_MEMORY_GB:.0f} GB; close other programs." if low else ""
    return [Finding("memory", "WARN" if low else "OK", f"{free / 1e9:.1f} GB available", step)]


def _existing(path: Path) -> Path:
    """The path itself or its nearest parent that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _disk() -> list[Finding]:
    from lisaseg.store import cache_dir

    place = _existing(cache_dir())
    free = shutil.disk_usage(place).free / 1e9
    low = free < NEED_DISK_GB
    step = f"Pulling lisa-tiny wants {NEED_DISK_GB:.0f} GB for a while; free some, or set LISASEG_CACHE to another disk." if low else ""
    return [Finding("disk", "WARN" if low else "OK", f"{free:.1f} GB free at {place}", step)]


def _cache() -> list[Finding]:
    from lisaseg.store import cache_dir

    folder = cache_dir()
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            return [Finding("cache", "OK", f"{folder} can be written")]
    except OSError as error:
        return [Finding("cache", "FAIL", f"{folder} cannot be written: {error.strerror}", "Set LISASEG_CACHE to a folder that you may write to.")]


def _lisa_tiny() -> list[Finding]:
    from lisaseg.store import presets, verify

    state = next(info.state for info in presets() if info.name == "lisa-tiny")
    wrong = [check for check in verify("lisa-tiny") if not check.ok]
    if state != "ready":
        shipped = [check for check in wrong if check.name.startswith("weights/")]
        found = [Finding("lisa-tiny", "WARN", state, "Run `lisaseg models pull lisa-tiny` (93 MB, once); the first question does it too.")]
        return found + [Finding(check.name, "FAIL", check.detail, check.next_step) for check in shipped]
    if wrong:
        return [Finding(f"lisa-tiny: {check.name}", "FAIL", check.detail, check.next_step) for check in wrong]
    return [Finding("lisa-tiny", "OK", "ready, all files as they were written")]


def _extras() -> list[Finding]:
    """What may be installed on top. Versions are read from the metadata: importing all of it would take minutes."""
    try:
        wanted = [Requirement(line) for line in metadata.requires("lisaseg") or ()]
    except metadata.PackageNotFoundError:
        return [
            Finding("extras", "WARN", "lisaseg runs from a folder and is not installed, so what its extras hold is unknown", "pip install lisaseg")
        ]
    found = []
    for extra, use in EXTRAS.items():
        packages = [need for need in wanted if need.marker and need.marker.evaluate({"extra": extra}) and not need.marker.evaluate({"extra": ""})]
        found.append(_optional(f"lisaseg[{extra}]", packages, use, f"pip install 'lisaseg[{extra}]'"))
    return found + [_optional(name, [Requirement(name)], use, f"pip install {name}") for name, use in OTHERS.items()]


def _optional(name: str, packages: list[Requirement], use: str, step: str) -> Finding:
    """WARN if packages are too old, too new, or only some there. The first is what it is about; others may have come with something else."""
    installed = {need.name: version for need in packages if (version := _version(need.name))}
    if packages[0].name not in installed:
        return Finding(name, "OK", f"not installed ({use})", step)
    wrong = [str(need) for need in packages if need.name not in installed or not need.specifier.contains(installed[need.name], prereleases=True)]
    versions = ", ".join(f"{package} {version}" for package, version in installed.items())
    lacks = f"; does not fulfil {', '.join(line.partition(';')[0] for line in wrong)}" if wrong else ""
    return Finding(name, "WARN" if wrong else "OK", f"{versions}{lacks} ({use})", step if wrong else "")
