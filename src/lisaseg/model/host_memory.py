"""What this machine says about its memory; loads nothing."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path


def free_bytes(*, swap: bool = False, proc: Path = Path("/proc"), group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Memory that a process may still take; None if this system does not say (macOS, Windows).

    In a container that is what the limit of its control group leaves (version 2), however much the host has; files that the kernel only keeps
    cached there do not count as taken.

    Args:
        swap: count free swap space, too.
        proc, group: where Linux tells.
    """
    try:
        lines = (proc / "meminfo").read_text("ascii").splitlines()
        host = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines) if rest.split()}
        free, spare = host.get("MemAvailable", host["MemFree"]), host.get("SwapFree", 0)
    except (OSError, ValueError, KeyError):
        return None
    with contextlib.suppress(OSError, ValueError):  # no group, or no limit: "max"
        left = int((group / "memory.max").read_text("ascii")) - int((group / "memory.current").read_text("ascii"))
        with contextlib.suppress(OSError, ValueError, IndexError):
            facts = dict(line.split() for line in (group / "memory.stat").read_text("ascii").splitlines() if line)
            left += int(facts.get("inactive_file", 0))
        free = min(free, max(0, left))
    with contextlib.suppress(OSError, ValueError):
        left = int((group / "memory.swap.max").read_text("ascii")) - int((group / "memory.swap.current").read_text("ascii"))
        spare = min(spare, max(0, left))
    return free + spare if swap else free


def peak_bytes() -> int | None:
    """The most memory that this process has held so far (resident); None if this system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
