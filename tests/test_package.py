"""The distributions: what is in them, what the wheel weighs, and that it works where there is no checkout."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {"engine": "segue", "kernels": "segue/kernels", "export": "segue/export"}


def _run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=cwd, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _tracked() -> list[str]:
    names = _run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    return [name for name in names if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of both, the wheel made from the other."""
    folder = tmp_path_factory.mktemp("distributions")
    # From a copy of what git tracks: a build in the checkout would leave its own folder there.
    source = tmp_path_factory.mktemp("source")
    for name in _tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-P", "-m", "build", "--outdir", folder, source]
    with (folder / "said").open("w") as said:
        done = subprocess.run(build, stdout=said, stderr=subprocess.STDOUT, cwd=folder, check=False)
    assert done.returncode == 0, (folder / "said").read_text()
    return folder


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    (built,) = distributions.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a fresh environment that holds the wheel with the `cpu` extra, and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    _run(sys.executable, "-m", "venv", folder, cwd=folder)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run(*pip, "--constraint", ROOT / "constraints.txt", f"{wheel}[cpu]", cwd=folder)
    return folder


def test_the_wheel_holds_every_source_file_and_the_default_model(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for room, package in ROOMS.items():
        for path in (ROOT / room).rglob("*.py"):
            inside = f"{package}/{path.relative_to(ROOT / room).as_posix()}"
            assert inside in names, f"{inside} is not in the wheel"
    for name in ("model.onnx", "tokenizer.json", "segue.json", "README.md"):
        assert f"segue/models/nsp-minilm/{name}" in names
    assert "segue/py.typed" in names
    assert not [
        name for name in names if name.split("/")[0] in ("engine", "kernels", "export", "tests", "bench")
    ]


def test_the_build_takes_no_folder_for_a_package_that_is_left_out(distributions):
    said = (distributions / "said").read_text()
    assert "copying engine/models/nsp-minilm/model.onnx" in said
    assert "would be ignored" not in said


def test_the_source_distribution_holds_all_that_the_readme_calls(distributions):
    (built,) = distributions.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {name for name in _tracked() if not name.startswith(".")} - inside == set()


def test_the_default_model_is_under_48_megabytes():
    assert sum(path.stat().st_size for path in (ROOT / "engine/models").rglob("*")) < 48e6


def test_the_cpu_environment_is_light(installed):
    """Everything in it, interpreter links and pip of the fresh environment aside."""
    site = next((installed / "lib").glob("python*/site-packages"))
    packages = {path.name.split("-")[0].lower() for path in site.glob("*.dist-info")}
    assert not packages & {"torch", "triton", "onnx", "transformers", "safetensors"}
    ours = [path for path in site.iterdir() if not path.name.startswith(("pip", "setuptools", "_distutils"))]
    files = [p for top in ours for p in ([top] if top.is_file() else top.rglob("*")) if p.is_file()]
    assert sum(path.stat().st_size for path in files) < 280e6


def test_the_installed_package_scores_the_seeds_outside_the_checkout(installed, tmp_path):
    out = _run(
        installed / "bin" / "segue", "score", "--scores-only", ROOT / "tests" / "seeds.tsv", cwd=tmp_path
    )
    milk, penguins, sleeping, rates = map(float, out.split())
    assert milk > 0.5
    assert milk > penguins
    assert sleeping > 0.5
    assert sleeping > rates


def test_from_an_installed_segue_a_bare_kernels_is_not_ours(installed, tmp_path):
    code = "import segue.kernels, importlib.util as u; print(u.find_spec('kernels'), u.find_spec('export'))"
    assert _run(installed / "bin" / "python", "-c", code, cwd=tmp_path).split() == ["None", "None"]


def test_only_cpu_and_gpu_bring_an_onnx_runtime():
    """Its two packages write to one folder, so that `.[gpu,export]` may bring no second one."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    bringing = {name for name, needs in extras.items() if any("onnxruntime" in need for need in needs)}
    assert bringing == {"cpu", "gpu"}
    drawing = {name for name, needs in extras.items() if any(re.match(r"segue\[.*[cg]pu", n) for n in needs)}
    assert drawing <= {"test", "dev"}


def test_what_the_cpu_extra_has_not_is_named(installed, tmp_path):
    """`segue export` there needs torch: the message says which extra installs it."""
    (tmp_path / "config.json").write_text("{}")
    done = subprocess.run(
        [installed / "bin" / "segue", "export", tmp_path, tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "segue[export]" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_make_sets_up_again_a_venv_that_was_not_finished(tmp_path):
    """Debian's Python has no ensurepip: until python3-venv is installed, it leaves a venv without pip."""
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\n[ $1 = -c ] || { mkdir -p .venv/bin; touch .venv/bin/python; exit 1; }\n")
    python.chmod(0o755)
    make = ["make", "--file", ROOT / "Makefile", f"PYTHON={python}", ".venv/bin/python"]
    assert subprocess.run(make, capture_output=True, cwd=tmp_path, check=False).returncode != 0
    assert list((tmp_path / ".venv/bin").iterdir()) == []
