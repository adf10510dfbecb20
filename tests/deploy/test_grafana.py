"""The Grafana dashboard: importable, made of metrics that exist, and with data in every panel of a real Prometheus."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE_S

from dreamfleet.deploy.monitoring.prometheus import COUNTERS, GAUGES, PARTS

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "dreamfleet.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
NEEDS_GPU = "ray_node_gpus_utilization"
LABEL = "a run"


def test_grafana_can_import_the_dashboard() -> None:
    """It brings no id, which would overwrite another dashboard; its data source and its run are chosen in Grafana."""
    assert DASHBOARD["uid"] == "dreamfleet"
    assert "id" not in DASHBOARD
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    metric = re.search(r"label_values\(ray_(\w+), run\)", variables["run"]["query"]["query"])
    assert metric
    assert metric[1] in COUNTERS
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in PANELS:
        assert panel["title"], panel
        assert panel["description"], panel["title"]
        assert panel["targets"], panel["title"]
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"]), panel["title"]


def test_the_dashboard_shows_exactly_the_metrics_there_are() -> None:
    """No panel asks for a metric that no run feeds, and none that is fed is left out."""
    shown = {name for expression in EXPRESSIONS for name in re.findall(r"ray_(dreamfleet_\w+)", expression)}
    assert shown == {*COUNTERS, *GAUGES, *PARTS}


@pytest.mark.ray
@pytest.mark.slow
def test_every_expression_has_data_in_a_real_prometheus(tmp_path: Path) -> None:
    """A Prometheus that scrapes what Ray names for it has data for every panel, and knows the run's label."""
    program = shutil.which("prometheus")
    if not program:
        pytest.skip("no `prometheus` is installed here")
    folder = Path(tempfile.mkdtemp(prefix="df", dir="/tmp"))  # Ray's sockets need a short path
    try:
        with _feeding(folder) as discovery_file, _prometheus(program, tmp_path, discovery_file) as address:
            unasked = [text for text in EXPRESSIONS if NEEDS_GPU in text]
            missing = _wait_for_data(address, [text for text in EXPRESSIONS if text not in unasked])
            assert missing == []
            for text in unasked:  # no data without a GPU; a query that is not understood raises
                _has_data(address, text)
            runs = _ask(address, "label/run/values", {"match[]": "ray_dreamfleet_env_steps_total"})
            assert runs == [LABEL]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _feeding(folder: Path) -> Iterator[Path]:
    """Feed metrics in a process of its own, since a test's process has one Ray at most; yield Ray's discovery file."""
    variables = os.environ | {"PYTHONPATH": str(ROOT / ".pkg")}
    command = [sys.executable, str(ROOT / "tests" / "support" / "feed_prometheus.py"), str(folder), LABEL]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,  # noqa: S603
                               text=True, env=variables)  # fmt: skip
    try:
        assert process.stdout
        file = process.stdout.readline().strip()
        assert file, "the program that feeds ended before Ray was up"
        yield Path(file)
    finally:
        process.communicate(timeout=PATIENCE_S)  # closes its input, which ends it


@contextmanager
def _prometheus(program: str, folder: Path, discovery_file: Path) -> Iterator[str]:
    """Run Prometheus with a configuration such as Ray writes, only quicker; yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = folder / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s}\nscrape_configs:\n- job_name: ray\n"
        f"  file_sd_configs: [{{files: ['{discovery_file}'], refresh_interval: 1s}}]\n"
    )
    command = [program, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
               f"--web.listen-address={address}"]  # fmt: skip
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def _wait_for_data(address: str, expressions: list[str]) -> list[str]:
    """Ask until every expression has data, or patience ends; return those that have none."""
    deadline = time.monotonic() + PATIENCE_S
    missing = expressions
    while missing and time.monotonic() < deadline:
        time.sleep(2)
        missing = [text for text in missing if not _has_data(address, text)]
    return missing


def _has_data(address: str, expression: str) -> bool:
    """Whether Prometheus finds something for the expression as Grafana would send it for this run."""
    query = _filled_in(expression)
    try:
        return bool(_ask(address, "query", {"query": query})["result"])
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.SERVICE_UNAVAILABLE:
            return False
        raise AssertionError(f"{query}: {error.read().decode()}") from error
    except urllib.error.URLError:
        return False  # it is still starting


def _filled_in(expression: str) -> str:
    """Return the expression with the dashboard's variables filled in."""
    return expression.replace("$__rate_interval", "30s").replace("$run", LABEL)


def _ask(address: str, path: str, parameters: dict[str, str]) -> Any:
    with urllib.request.urlopen(f"{address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as answer:  # noqa: S310
        return json.load(answer)["data"]
