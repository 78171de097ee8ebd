"""Reads pickles that hold data only. The annotations of the referring sets are published as pickles, and a pickle is a program.

`pickle` is imported here and nowhere else (a test holds the package to that): every opcode that names a class or function goes through
`find_class`, which refuses; without one nothing can be called, so all that can come out are containers, texts, numbers, True, False and None.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NoReturn

from lisaseg.datasets.base import CHECK
from lisaseg.errors import DataError


class _DataOnly(pickle.Unpickler):
    """Knows no class and no function."""

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        """Refuse."""
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")

    def persistent_load(self, pid: Any, /) -> NoReturn:
        """Refuse."""
        raise pickle.UnpicklingError("it asks for an object kept elsewhere")


def load_data_pickle(path: Path) -> Any:
    """What the file holds, if it is made of built-in containers, texts, numbers, bool and None only; nothing in it is executed.

    Raises:
        DataError: the file is missing, is no pickle, or asks for a class or function.
    """
    try:
        with path.open("rb") as file:
            return _DataOnly(file, encoding="utf-8", errors="replace").load()  # texts of Python 2
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", next_step=CHECK) from error
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path} is not a pickle of plain data: {str(error)[:100]}.",
            next_step="Do not open it with other programs; download it again from its source.",
        ) from error
    except Exception as error:  # broken pickles raise EOFError, ValueError, KeyError, IndexError, AttributeError, ...
        raise DataError(
            f"{path} is not a complete pickle: {str(error)[:100]}.", next_step="Download the file again; it may have been cut."
        ) from error
