"""A virtual environment for each set of peers whose pins agree, built by plain pip, by package name.

The versions of torch, onnxruntime and numpy are those of constraints.txt in all of them, so that the runtimes
are the same on both sides, except where a peer cannot use one. An environment is built once; a change of its
requirements builds it again.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from peers_list import PRESENT

__all__ = ["REQUIREMENTS", "Unavailable", "python_of"]

_CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
_SAME = ("torch", "onnxruntime", "numpy")

REQUIREMENTS = {
    "sentence-transformers": ("torch", "sentence-transformers>=6"),
    "sentence-transformers-onnx": ("torch", "onnxruntime", "sentence-transformers[onnx]<6"),
    "sentence-transformers-openvino": ("torch", "sentence-transformers[openvino]>=6"),
    "openvino": ("openvino", "nncf", "tokenizers", "numpy"),
    "light": ("FlashRank", "fastembed", "onnxruntime"),
    "servers": ("torch", "sentence-transformers>=6", "starlette", "uvicorn"),
    "servers-onnx": ("torch", "onnxruntime", "sentence-transformers[onnx]<6", "starlette", "uvicorn"),
    "infinity": ("torch", "infinity-emb[server,torch,optimum]"),
}
_OLDER = {"infinity": ("numpy",)}  # which it wants below 2
# optimum-intel asks for torchvision, whose wheel is built for CUDA's torch: beside the CPU's, transformers
# fails to import. Nothing here looks at pictures.
_REMOVED = {"sentence-transformers-openvino": ("torchvision",)}


class Unavailable(Exception):
    """A peer cannot be installed or loaded here; the message says why, on one line."""


def python_of(name: str, folder: Path) -> Path:
    """Return the interpreter of environment `name`, which is built below `folder` unless it is there.

    Raises:
        Unavailable: pip could not install it.
    """
    if name == PRESENT:
        return Path(sys.executable)
    home = folder / name
    python, stamp = home / "bin" / "python", home / "requirements.txt"
    pins = _pins(_OLDER.get(name, ()))
    wanted = "\n".join([*REQUIREMENTS[name], *pins, *(f"not {p}" for p in _REMOVED.get(name, ()))])
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    constraints = home / "constraints.txt"
    constraints.write_text("\n".join(pins))
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    commands: list[list[str | Path]] = [
        [sys.executable, "-m", "venv", home],
        [*pip, "install", "--constraint", constraints, *REQUIREMENTS[name]],
    ]
    if name in _REMOVED:
        commands.append([*pip, "uninstall", "--yes", *_REMOVED[name]])
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no reason given"]
            errors = [line for line in lines if line.startswith("ERROR")]
            raise Unavailable(f"environment {name}: {(errors or lines)[-1]}")
    stamp.write_text(wanted)
    return python


def _pins(older: tuple[str, ...]) -> list[str]:
    lines = _CONSTRAINTS.read_text().splitlines()
    return [line for line in lines if line.partition("==")[0] in set(_SAME) - set(older)]
