"""`python -m lisaseg` is `lisaseg`."""

from __future__ import annotations

from lisaseg.apps.cli import main

if __name__ == "__main__":
    main()
