"""The rooms and who may enter: the import table, what `import segue` brings in, and what it costs."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STANDARD = set(sys.stdlib_module_names)
# room -> what its files may import besides the standard library and the room itself, lazily or not
TORCH_SIDE = {
    "numpy",
    "torch",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "onnxruntime",
    "safetensors",
    "tokenizers",
    "tqdm",
}
ROOMS = {
    "kernels": {"torch", "triton"},
    "engine": {"numpy", "tokenizers", "tqdm", "onnxruntime", "matplotlib"},
    "export": TORCH_SIDE
    | {"transformers", "matplotlib", "segue.kernels.reference", "segue.kernels.reference_int8"}
    | {"segue.bundle", "segue.errors", "segue.text", "segue.encoded", "segue.batching", "segue.head"}
    | {"segue.Engine", "segue.files", "segue.terminal", "segue.executors.overflow"},
}
PACKAGE = {"kernels": "segue.kernels", "engine": "segue", "export": "segue.export"}
# what `segue serve` alone brings in
SERVER = {"starlette", "uvicorn", "prometheus_client"}
# the files of the engine that may reach into the export room, when a checkpoint or a subcommand asks for it
MAY_EXPORT = {"cache.py", "cli.py"}
# what the Triton executor's files may import besides, eagerly: they are imported when it is asked for
TRITON_EXECUTOR = {"torch", "triton", "onnx", "segue.kernels"}


def _files() -> list[Path]:
    return sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def _imports(path: Path) -> list[tuple[str, bool]]:
    """Return each imported module, and whether the import runs when the file is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) not in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            module = node.module or ""
            ours = module in ("segue", "segue.kernels", "segue.export")  # what is named may be a module of it
            names = [f"{module}.{alias.name}" for alias in node.names] if ours else [module]
            found += [(name, id(node) not in inside) for name in names]
    return found


def _of_triton(path: Path) -> bool:
    return path.parent.name == "executors" and path.name.startswith("triton")


def _within(module: str, names: set[str]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in names)


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_each_room_imports_what_it_may(path):
    room = path.relative_to(ROOT).parts[0]
    for module, _ in _imports(path):
        if module.split(".")[0] in STANDARD or module in ("segue", "segue.__version__"):
            continue
        allowed = _within(module, ROOMS[room] | {PACKAGE[room]})
        if room == "engine" and _within(module, TRITON_EXECUTOR | {"segue.export"}):
            allowed = path.name in MAY_EXPORT if _within(module, {"segue.export"}) else _of_triton(path)
        if _within(module, SERVER):
            allowed = path.parent.name == "serving"
        assert allowed, f"{path.relative_to(ROOT)}: {room}/ may not import {module}"


@pytest.mark.parametrize(
    "path",
    [p for p in _files() if p.parts[-2] in ("engine", "executors", "benchmark", "serving")],
    ids=lambda path: path.name,
)
def test_the_engine_imports_heavy_packages_only_when_asked(path):
    eager = {module for module, at_import in _imports(path) if at_import}
    heavy = TRITON_EXECUTOR | {"transformers", "segue.export"}
    if _of_triton(path):
        heavy -= TRITON_EXECUTOR
    else:
        heavy |= {"segue.executors.onnxruntime", "segue.executors.triton"}
    assert not any(_within(module, heavy) for module in eager)
    if path.name != "onnxruntime.py":
        assert not _within("onnxruntime", eager)


def _python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd="/", check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("statement", ["import segue", "import segue.cli", "from segue import Engine"])
def test_import_brings_in_nothing_heavy(statement):
    loaded = _python(f"import sys\n{statement}\nprint(*sorted(sys.modules))").split()
    tops = {name.split(".")[0] for name in loaded}
    assert "segue" in tops
    heavy = {"torch", "triton", "onnx", "transformers", "onnxscript", "onnxruntime", "matplotlib", "asyncio"}
    assert not tops & (heavy | SERVER)


def test_scoring_brings_in_nothing_heavy(make_bundle):
    loaded = _python(f"""
        import sys
        from segue import Engine
        Engine.load({str(make_bundle())!r}).score([("a", "b")])
        print(*sorted(sys.modules))
    """).split()
    tops = {name.split(".")[0] for name in loaded}
    assert "onnxruntime" in tops
    assert not tops & {"torch", "triton", "onnx", "transformers", "onnxscript"}


def test_the_twins_need_torch_alone():
    loaded = _python("import sys, segue.kernels.reference\nprint(*sorted(sys.modules))").split()
    assert "torch" in loaded
    assert not {name.split(".")[0] for name in loaded} & {"triton", "onnx", "transformers"}


def test_import_costs_little_more_than_what_it_stands_on():
    """At most 1.3 times numpy, tokenizers and onnxruntime; and 1.5 times with all that scoring needs."""
    packages = "import numpy, tokenizers, onnxruntime"
    whole = "import segue.executors.onnxruntime; from segue import Engine"
    seconds: dict[str, list[float]] = {packages: [], "from segue import Engine": [], whole: []}
    for _ in range(9):  # fresh interpreters, in turn; the best of each counts
        for statement, taken in seconds.items():
            # the thread's own, in which other processes do not count
            code = f"import time; t = time.thread_time()\n{statement}\nprint(time.thread_time() - t)"
            taken.append(float(_python(code)))
    best = {statement: min(taken) for statement, taken in seconds.items()}
    assert best["from segue import Engine"] <= 1.3 * best[packages], best
    assert best[whole] <= 1.5 * best[packages], best


def test_a_bare_kernels_is_never_ours():
    """Another package owns that name, and transformers probes for it."""
    out = _python("""
        import importlib.util, segue, segue.kernels
        spec = importlib.util.find_spec("kernels")
        print(spec and spec.origin)
    """)
    assert str(ROOT) not in out


def test_no_documented_command_puts_the_root_on_the_path():
    """`python -m` from the checkout would; so would a root conftest under another import mode."""
    for name in ("README.md", "Makefile", ".ci/run", "pyproject.toml"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "python -m pytest" not in text, name
        assert "PYTHONPATH" not in text, name
    assert not (ROOT / "conftest.py").exists()
    assert str(ROOT) not in sys.path
    assert "" not in sys.path


def test_the_tools_that_run_as_modules_keep_the_root_off_the_path():
    """`python -m segue.export.default_model` in the Makefile is started with -P or from elsewhere."""
    for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines():
        if " -m segue" in line:
            assert "python -P -m" in line, line


def test_every_module_says_what_it_exports():
    for path in _files():
        if path.name == "__main__.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), path
        code = [node for node in tree.body if not isinstance(node, ast.Expr)]
        names = [
            t.id for node in code if isinstance(node, ast.Assign) for t in node.targets if hasattr(t, "id")
        ]
        if any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in code):
            assert "__all__" in names, path


def test_help_and_completion_show_what_is_imported_later():
    out = _python("import pydoc, segue\nprint(*dir(segue))\nprint(pydoc.plain(pydoc.render_doc(segue)))")
    named, _, shown = out.partition("\n")
    assert {"Engine", "AsyncEngine", "InputError"} <= set(named.split())
    assert "class Engine(" in shown
    assert "class AsyncEngine(" in shown
