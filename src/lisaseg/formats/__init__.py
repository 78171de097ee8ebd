"""Annotations, masks and answers in and out, one file a format."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from lisaseg.errors import UsageError


def write_aside(path: Path, data: bytes) -> Path:
    """Write `data` to a new file beside `path`, then rename it: readers see the old file or the whole new one, never a part.

    Folders on the way are made. Returns `path`.

    Raises:
        UsageError: the place cannot be written (no right, no space, a file where a folder should be).
    """
    aside = path.parent / f".aside-{secrets.token_hex(8)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(data)
        os.replace(aside, path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        next_step = "Choose a folder that you may write to and that has free space."
        raise UsageError(f"{path} cannot be written: {reason}.", next_step=next_step, code="cannot_write") from error
    finally:
        if aside.exists():
            aside.unlink(missing_ok=True)
    return path
