"""The README's example does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

from segue import Engine
from segue.serving.body import Body
from segue.serving.dialects import READERS

ROOT = Path(__file__).resolve().parent.parent


def test_the_first_example_runs_as_it_stands(tmp_path):
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 8
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    follows, ranking = done.stdout.splitlines()
    assert follows == "True"
    first, second = re.findall(r"'corpus_id': (\d)", ranking)
    assert (first, second) == ("1", "0")


def test_the_asyncio_example_runs_in_a_service(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (code,) = [block for block in blocks if "await" in block]
    imports, body = code.split("\n\n")
    service = f"""import asyncio
{imports}
pairs = [("the man went to the store", "he bought a gallon of milk")]
async def main():
{textwrap.indent(body, "    ")}
    print(len(scores))
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", service], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_the_request_is_answered_as_one_would_expect():
    (body,) = re.findall(r"curl .* -d '(.*?)'", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    asked = READERS["/v2/rerank"](Body(body.encode()))
    with Engine.load(device="cpu") as engine:
        best = engine.rank(asked.pairs[0][0], [text for _, text in asked.pairs], asked.top)
    assert [one["corpus_id"] for one in best] == [1]


def test_every_link_leads_to_a_file():
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target
