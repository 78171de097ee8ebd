"""A project served to the browsers of this machine."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lisaseg.apps.annotate.pictures import Project
from lisaseg.apps.annotate.routes import Desk
from lisaseg.apps.server import logs, serve
from lisaseg.apps.server.settings import Limits, Settings
from lisaseg.errors import UsageError
from lisaseg.imaging import LIMITS
from lisaseg.store.cache import cache_dir


def run(folder: Path, out: Path | None, state: Path | None, **options: Any) -> int:
    """Serve until a signal comes; returns the exit code.

    Args:
        folder: of the pictures.
        out: the JSONL file; None = `annotations.jsonl` in the folder.
        state: where the service keeps what it needs; None = a place of this project in the cache.
        options: further fields of `Settings`.

    Raises:
        UsageError: no such folder, no picture, the port is taken, or the project is open already.
    """
    project = Project(folder, out)
    path = project.file.path
    state = state or cache_dir() / f"annotate-{hashlib.sha256(str(path).encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
    limits = Limits(max_body_bytes=LIMITS.max_bytes)
    settings = Settings(state=state, limits=limits, **options)
    logs.set_up(settings.log_format, logging.WARNING)
    lock = FileLock(state / ".project")
    try:
        state.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(f"{path} is being annotated already.", next_step="Go on in the page that is open, or end the other command.") from None
    except OSError as error:
        raise UsageError(f"{state} cannot be written: {error.strerror}.", next_step="Set LISASEG_CACHE to a folder that you may write to.") from error
    with lock:
        return serve.run(settings, (Desk(project).router,), f"annotates {project.folder}", f"samples go to {path}")
