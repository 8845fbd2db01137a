"""Makes `segue` importable from this checkout, installed or not, and the modules that tests share.

The rooms' folders are not named as their packages: an installer maps them, here a folder of links does.
Nothing of the checkout is imported before this.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

__all__ = ["ROOT", "link", "reach"]

ROOT = Path(__file__).resolve().parent.parent


def reach() -> None:
    """Put this checkout's `segue` on the path of this process and of those that it starts, unless it is there
    already, and `tests/` behind everything else. Another one that is installed must not be measured."""
    found = find_spec("segue")
    if found is None or Path(found.origin or "").resolve().parent != ROOT / "engine":
        folder = Path(tempfile.mkdtemp(prefix="segue-path-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        link(folder)
        sys.path.insert(1, str(folder))
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), before)))
    if str(ROOT / "tests") not in sys.path:
        sys.path.append(str(ROOT / "tests"))


def link(folder: Path) -> None:
    """Lay out the package `segue` in `folder`, as links to the rooms of this checkout."""
    package = folder / "segue"
    package.mkdir()
    for path in (ROOT / "engine").iterdir():
        if path.name != "__pycache__":
            (package / path.name).symlink_to(path)
    for room in ("kernels", "export"):
        (package / room).symlink_to(ROOT / room)
