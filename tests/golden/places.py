"""Where the numbers of the reference implementation lie: beside this file, or in the folder that LISASEG_GOLDENS names."""

from __future__ import annotations

import os
from pathlib import Path

HERE = Path(__file__).parent
ROOT = Path(os.environ.get("LISASEG_GOLDENS", HERE))
FOLDERS = sorted(path.parent for path in ROOT.glob("*/outputs.safetensors"))  # every checkpoint with its numbers, whatever its name
EXTRAS = next(path for path in (ROOT / "extras", HERE / "extras") if path.is_dir())
