"""The comparison of servers: it runs from end to end, refuses wrong scores, says who does not answer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import servers
import servers_list
import servers_report

CONSTANT = """
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = json.dumps([0.5] * len(asked["documents"])).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_run_writes_what_it_found_and_whom_it_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    constant = tmp_path / "constant.py"
    constant.write_text(CONSTANT)
    segue = servers_list.SERVERS[0]

    def started(script: str) -> Any:
        return lambda python, model, port, threads: [python, script, str(port)]

    wrong = replace(segue, key="wrong", name="Wrong", command=started(str(constant)), path="/", scores=list)
    dead = replace(segue, key="dead", name="Dead", command=started("-c"))
    monkeypatch.setattr(servers, "SERVERS", (segue, wrong, dead))
    monkeypatch.setattr(servers, "_RESULTS", tmp_path)
    options = "--smoke --write --rounds 2 --seconds 0.2 --threads 1 --work"
    servers.main([*options.split(), str(tmp_path / "work")])

    record = json.loads((tmp_path / "servers-1-cores.json").read_text())
    assert list(record["servers"]) == ["segue"]
    assert record["servers"]["segue"]["versions"]["onnxruntime"]
    assert record["refused"]["Wrong"].startswith("its scores differ from the model's by up to 0.")
    assert record["refused"]["Dead"] == "it does not answer: see serving-dead.log"
    (load,) = record["loads"]
    assert (load["workload"], load["documents"], load["clients"]) == ("short", 1, 2)
    assert len(load["rounds"]["segue"]) == 2
    for one in load["rounds"]["segue"]:
        assert one["pairs_per_second"] > 0
        assert 0 < one["p50"] <= one["p95"] < 5
    page = (tmp_path / "servers-1-cores.md").read_text()
    assert page == capsys.readouterr().out.removesuffix("\n")
    assert "| segue serve | " in page
    assert "- Wrong: not timed, its scores differ" in page
    assert str(tmp_path) not in page.replace(record["command"], "")


def test_the_table_is_of_medians_and_ratios_of_rounds() -> None:
    def rounds(*rates: float) -> list[dict[str, float]]:
        return [{"pairs_per_second": rate, "p50": 1 / rate, "p95": 2 / rate} for rate in rates]

    record = {
        "command": "c",
        "date": "d",
        "threads": 2,
        "machine": {"cpu": "A CPU", "os": "an OS"},
        "servers": {
            "segue": {"name": "ours", "versions": {}},
            "other": {"name": "theirs", "versions": {"x": "1"}},
        },
        "refused": {},
        "loads": [
            {
                "workload": "mixed",
                "documents": 20,
                "clients": 8,
                "seconds": 1,
                "rounds": {"segue": rounds(100, 200, 300), "other": rounds(50, 50, 200)},
            }
        ],
    }
    page = servers_report.markdown(record)
    assert "## mixed, 20 documents a request, 8 clients" in page
    assert "| ours | 200.0 | 1.00 | 5.0 | 10.0 |" in page
    assert "| theirs | 50.0 | 2.00 | 20.0 | 40.0 |" in page
    assert "- theirs: x 1" in page


def test_the_page_in_the_repository_is_made_of_its_record() -> None:
    record = servers._RESULTS / "servers-2-cores.json"
    page = servers_report.markdown(json.loads(record.read_text(encoding="utf-8")))
    assert record.with_suffix(".md").read_text(encoding="utf-8") == page
    assert "Infinity has up to 32, its default" in page
