"""`dreamfleet doctor`: every check from made-up facts, and all of them on this machine and on a local Ray."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from patience import PATIENCE_S

from dreamfleet import __version__
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.command_line import main
from dreamfleet.deploy.doctor import checks, cluster
from dreamfleet.deploy.doctor import facts as facts_module
from dreamfleet.deploy.doctor.checks import Finding, Section
from dreamfleet.deploy.doctor.cluster import ClusterReport, NodeAnswer, ask_nodes, examine_cluster
from dreamfleet.deploy.doctor.doctor import describe, doctor, examine_machine, try_environment
from dreamfleet.deploy.doctor.facts import MachineFacts, environment_facts, machine_facts
from dreamfleet.deploy.doctor.learner_machine import check_gpu, check_learner_machine
from dreamfleet.deploy.plan.footprint import Footprint, ModelSizes
from dreamfleet.deploy.workers.placement import Node

GB = 1e9
MODEL = ModelSizes(parameters=1_000_000, weights=2_000_000, activations=10_000_000)
SIZES = Footprint(4000, 4000.0, chunk_steps=64.0, compressed_batch=1e6, raw_batch=1_000_000, model=MODEL)
COUNTING = {"id": "counting_environment:make", "kwargs": {"image": 64}, "image_size": 64}
SETTINGS = Settings.model_validate(
    {
        "env": COUNTING,
        "actors": {"count": 3},
        "model": {"depth": 4, "deterministic": 16, "hidden": 16},
        "learner": {"batch_size": 4, "sequence_length": 5},
        "replay": {"capacity_gb": 2.0},
    }
)
PICTURE = {"name": "image", "shape": [64, 64, 3], "dtype": "uint8"}
SPACES = {"observations": [PICTURE], "action": {"kind": "discrete", "sizes": [3]}}
STEPPED = {"error": "", "built_s": 0.5, "step_s": 0.02, "render_s": 0.01, "frame": [40, 60, 3], "spaces": SPACES}
A_GPU: dict[str, Any] = {"name": "A GPU", "total": 24 * GB, "free": 23 * GB}
VERSIONS = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0", "dreamfleet": "0.1.0"}
HEALTHY: dict[str, Any] = {
    "versions": VERSIONS, "code": "abc", "files_soft": 65_536, "files_hard": 1 << 20, "cores": 4,
    "shm_total": int(8 * GB), "shm_free": int(8 * GB), "memory_total": int(32 * GB), "memory_free": int(30 * GB),
    "token_path": "/home/ray/.ray/auth_token", "token_mode": 0o600,
    "disk_path": "/data", "disk_free": int(100 * GB), "disk_used": 0, "disk_writable": True,
    "gpus": [], "torch_sees_gpu": None, "compiler_lacks": [],
}  # fmt: skip


def facts(**changed: Any) -> MachineFacts:
    """Return a healthy machine's facts, but for what is changed."""
    return cast("MachineFacts", HEALTHY | changed)


def found(finding: Finding, level: str, *parts: str) -> None:
    """Check a finding's level and the facts in it; whatever is not ok has a remedy."""
    assert finding.level == level, finding
    assert bool(finding.remedy) == (level != "ok"), finding
    for part in parts:
        assert part in f"{finding.text} {finding.remedy}"


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "level", "part"),
    [
        (65_536, 65_536, False, "ok", "65,536"),
        (1024, 1 << 20, True, "ok", "65,536"),
        (20_000, 20_000, True, "ok", "20,000"),
        (20_000, 20_000, False, "warning", "65,536"),
        (8_000, 1 << 20, False, "warning", "ulimit -n 65536"),
        (1024, 1 << 20, False, "error", "ulimit -n 65536"),
        (1024, 5000, True, "warning", "8,192"),
        (1024, 1024, True, "error", "1,024"),
    ],
)
def test_open_files(soft: int, hard: int, raised: bool, level: str, part: str) -> None:
    """A cluster wants more than a machine of its own, where `ray.init` raises the limit by itself."""
    found(checks.check_files(facts(files_soft=soft, files_hard=hard), raised), level, part)


def test_memory_of_all_kinds() -> None:
    """Shared memory holds the object store, which holds four times what a run needs; memory is an estimate."""
    shm = [(8, 4, "ok"), (-1e-9, 4, "ok"), (2, 4, "warning"), (0.5, 0.4, "warning"), (0.064, 0.06, "error")]
    for total, store, level in shm:
        found(checks.check_shm(facts(shm_total=int(total * GB)), store * GB, needed=100e6), level)
    for store, level in [(400e6, "ok"), (399e6, "warning"), (100e6, "warning"), (99e6, "error")]:
        found(checks.check_store(store, 100e6, "batches"), level, "100 MB")
    for total, free, level in [(32, 30, "ok"), (32, 3, "warning"), (4, 3, "error"), (-1e-9, -1e-9, "ok")]:
        machine = facts(memory_total=int(total * GB), memory_free=int(free * GB))
        found(checks.check_memory(machine, 5 * GB, "learner"), level, "5 GB")
    assert checks.default_store(facts()) == pytest.approx(0.95 * 8 * GB), "of /dev/shm, which is less"
    assert checks.default_store(facts(memory_free=10 * GB)) == 3 * GB, "30 % of the free memory"
    assert checks.default_store(facts(shm_free=-1)) == 9 * GB


@pytest.mark.parametrize(
    ("changed", "level", "part"),
    [
        ({}, "ok", "2.06 GB"),
        ({"disk_free": int(2.1 * GB)}, "warning", "replay.capacity_gb"),
        ({"disk_free": int(2 * GB)}, "error", "replay.capacity_gb"),
        ({"disk_free": int(2 * GB), "disk_used": int(1 * GB)}, "ok", "1.06 GB"),
        ({"disk_writable": False}, "error", "/data"),
    ],
)
def test_disk(changed: dict[str, Any], level: str, part: str) -> None:
    """The replay's budget and the checkpoints must fit, less what the run has there already."""
    found(checks.check_disk(facts(**changed), SETTINGS, SIZES), level, part)


@pytest.mark.parametrize(
    ("device", "gpus", "sees", "training", "ray_gpus", "level", "part"),
    [
        ("cpu", [A_GPU], True, 1e9, 1.0, "ok", "learner.device"),
        ("auto", [], None, 1e9, None, "ok", "CPU"),
        ("auto", [], None, 1e9, 0.0, "warning", "GPU"),
        ("cuda", [], None, 1e9, None, "error", "learner.device"),
        ("auto", [A_GPU], False, 1e9, None, "warning", "torch 2.13.0"),
        ("cuda", [A_GPU], False, 1e9, 1.0, "error", "torch"),
        ("auto", [A_GPU], True, 1e9, 0.0, "error", "Ray"),
        ("auto", [A_GPU], True, 1e9, 1.0, "ok", "1.6 GB"),
        ("auto", [A_GPU], True, None, None, "ok", "A GPU, 24 GB"),
        ("auto", [A_GPU | {"free": 1e9}], True, 1e9, 1.0, "warning", "nvidia-smi"),
        ("cuda", [A_GPU], True, 30e9, 1.0, "error", "learner.batch_size"),
    ],
)
def test_gpu(
    device: str, gpus: Any, sees: Any, training: float | None, ray_gpus: float | None, level: str, part: str
) -> None:
    """Found by the driver, seen by torch, known to Ray, and big enough for the model."""
    found(check_gpu(facts(gpus=gpus, torch_sees_gpu=sees), device, training, ray_gpus), level, part)


@pytest.mark.parametrize(
    ("gpus", "ray_gpus", "elsewhere", "level", "part"),
    [
        ([A_GPU] * 4, None, 0.0, "ok", "A GPU, 24 GB"),
        ([A_GPU] * 4, 4.0, 0.0, "ok", "A GPU, 24 GB"),
        ([A_GPU] * 2, 2.0, 2.0, "warning", "2 of the 4 GPUs are here"),
        ([A_GPU] * 2, 2.0, 1.0, "error", "3 GPUs found in all, and learner.gpus is 4"),
        ([A_GPU], None, 0.0, "error", "1 GPU found in all, and learner.gpus is 4"),
        ([], None, 0.0, "error", "none found, and learner.gpus is 4"),
    ],
)
def test_several_gpus(gpus: Any, ray_gpus: float | None, elsewhere: float, level: str, part: str) -> None:
    """As many as there are ranks, at best all of them on the learner's node."""
    sees = True if gpus else None
    found(
        check_gpu(facts(gpus=gpus, torch_sees_gpu=sees), "auto", 1e9, ray_gpus, 4, elsewhere),
        level,
        part,
    )


@pytest.mark.parametrize(
    ("changed", "usual", "level", "parts"),
    [
        ({}, None, "ok", ["0.5 s", "20 ms", "50/s", "10 ms", "40×60×3"]),
        ({}, 0.01, "ok", []),
        ({}, 0.005, "warning", ["4.0 times"]),
        ({"frame": []}, None, "warning", ["eval"]),
        ({"error": "no display"}, None, "error", ["no display"]),
    ],
)
def test_environment(changed: dict[str, Any], usual: float | None, level: str, parts: Sequence[str]) -> None:
    """Built, stepped and rendered, in a time like the other nodes'."""
    found(checks.check_environment("X-v0", STEPPED | changed, usual), level, "X-v0", *parts)


def test_versions_are_those_of_the_driver() -> None:
    """Missing or different ones are errors; other files of the same version are a warning."""
    found(checks.check_versions(facts(), facts()), "ok", *VERSIONS.values())
    found(checks.check_versions(facts()), "ok")
    found(checks.check_versions(facts(code="other"), facts()), "warning", "files")
    for name, version in VERSIONS.items():
        other = facts(versions=VERSIONS | {name: "9.9"})
        found(checks.check_versions(other, facts()), "error", "9.9", version)
    missing = facts(versions=VERSIONS | {"dreamfleet": ""})
    found(checks.check_versions(missing, facts()), "error", "dreamfleet missing", "install dreamfleet")


def test_who_gets_in() -> None:
    """No token is an error where others join; its file is for nobody else; the dashboard is for this machine alone."""
    for mode, nodes, level in [("token", 4, "ok"), ("disabled", 4, "error"), ("disabled", 1, "warning")]:
        found(checks.check_token(mode, nodes), level)
    found(checks.check_token("unknown", 4), "warning", "Ray 2.60")
    for file_mode, ray_is_up, level in [(0o600, True, "ok"), (0o644, True, "warning"), (-1, True, "warning")]:
        found(checks.check_token_file(facts(token_mode=file_mode), ray_is_up), level, "auth_token"[: 5 * ray_is_up])
    found(checks.check_token_file(facts(token_mode=-1), ray_is_up=False), "ok")
    for url in ("", "127.0.0.1:8265", "http://localhost:8265", "[::1]:8265"):
        found(cluster.check_dashboard(url), "ok")
    for url in ("0.0.0.0:8265", "10.0.0.2:8265"):
        found(cluster.check_dashboard(url), "warning", url)


def test_room_and_places() -> None:
    """No room for actors is an error, too little a warning; the learner is beside the driver, other nodes are near."""
    found(checks.check_cores(4, 4), "ok")
    found(checks.check_cores(4, 5), "warning", "actors.count to 3")
    found(cluster.check_room(6, [0, 4, 4]), "ok", "8 on 2 nodes")
    found(cluster.check_room(9, [0, 4, 4]), "warning", "9", "8 on 2 nodes")
    found(cluster.check_room("auto", [1]), "ok", "1 on 1 node")
    found(cluster.check_room("auto", [0, 0]), "error", "`actor`")
    found(cluster.check_learner_place("10.0.0.2", "10.0.0.2", declared=True), "ok", "10.0.0.2")
    found(cluster.check_learner_place("10.0.0.2", "10.0.0.2", declared=False), "ok", "`learner`")
    found(cluster.check_learner_place("10.0.0.3", "10.0.0.2", declared=True), "warning", "10.0.0.3", "10.0.0.2")
    found(cluster.check_distance(0.001, 0.01), "ok", "1 ms")
    found(cluster.check_distance(0.08, 0.0), "warning", "80 ms", "actors.steps_per_order")
    found(cluster.check_distance(0.001, -7.0), "warning", "7.0 s behind")
    found(cluster.check_distance(0.001, 7.0), "warning", "7.0 s ahead")


def test_sizes_need_an_environment_and_a_model_that_fits() -> None:
    """Without the one they are unknown, without the other it is an error that names the setting."""
    assert checks.run_sizes(SETTINGS, STEPPED)[1] == []
    small = STEPPED | {"spaces": SPACES | {"observations": [PICTURE | {"shape": [32, 32, 3]}]}}
    for environment, level, part in [(None, "warning", "environment"), (small, "error", "64×64")]:
        footprint, [finding] = checks.run_sizes(SETTINGS, environment)
        assert footprint is None
        found(finding, level, part)


def subjects(findings: Sequence[Finding]) -> list[str]:
    return [finding.subject for finding in findings]


def test_the_learners_machine_has_a_finding_for_each_thing() -> None:
    """Without sizes, disk and GPU alone."""
    whole = check_learner_machine(SETTINGS, facts(), SIZES, 4 * GB, 2, 3, None)
    assert subjects(whole) == ["/dev/shm", "object store", "memory", "disk", "GPU"]  # noqa: S108
    assert "2 actors" in whole[2].text
    nothing_kept = SETTINGS.model_copy(update={"replay": SETTINGS.replay.model_copy(update={"cache_gb": 0.0})})
    without = check_learner_machine(nothing_kept, facts(), SIZES, 4 * GB, 2, 3, None)
    assert without[2].text != whole[2].text, "what the replay keeps decoded is counted"
    few = check_learner_machine(SETTINGS, facts(), None, 4 * GB, 2, 3, None)
    assert subjects(few) == ["disk", "GPU"]
    assert "2 GB" in few[0].text, "the replay's budget alone"


def test_a_gpu_wants_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one updates are eager, which is several times as slow; nothing is said where none is wanted."""
    lacks = ["a C compiler", "Python's headers (Python.h)"]
    gpu = facts(gpus=[A_GPU], torch_sees_gpu=True, compiler_lacks=lacks)
    (*_, compiler) = check_learner_machine(SETTINGS, gpu, None, 4 * GB, 2, 3, 1.0)
    found(compiler, "warning", "a C compiler and Python's headers (Python.h) missing")
    for learner in ({"compile": "off"}, {"device": "cpu"}):
        settings = SETTINGS.model_copy(update={"learner": SETTINGS.learner.model_copy(update=learner)})
        assert subjects(check_learner_machine(settings, gpu, None, 4 * GB, 2, 3, 1.0)) == [
            "disk",
            "GPU",
        ]
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    assert "a C compiler" in facts_module._compiler_lacks()


def answer(number: int, resources: dict[str, float], **changed: Any) -> NodeAnswer:
    """Return what a healthy node answered, but for what is changed."""
    node = Node(f"id-{number}", f"10.0.0.{number}", {"CPU": 4.0, "object_store_memory": 4 * GB} | resources)
    healthy: dict[str, Any] = {"machine": facts(), "environment": STEPPED, "round_trip_s": 0.001}
    return NodeAnswer(node, number == 1, **(healthy | changed))


HEAD = answer(
    1,
    {"learner": 1.0, "GPU": 1.0, "node:__internal_head__": 1.0},
    machine=facts(gpus=[A_GPU], torch_sees_gpu=True),
)


def test_a_healthy_cluster_has_no_complaint() -> None:
    """The head's node takes learner and replay, the others actors, and each says what it is for."""
    answers = [HEAD, answer(2, {"actor": 4.0}), answer(3, {"actor": 4.0})]
    sections = ClusterReport(SETTINGS, answers, "token").sections("127.0.0.1:8265", [])
    assert [finding for section in sections for finding in section.findings if finding.level != "ok"] == []
    for section, parts in zip(
        sections,
        [["3 nodes", COUNTING["id"]], ["head", "driver", "learner"], ["10.0.0.2", "4 actors"], ["10.0.0.3"]],
        strict=True,
    ):
        assert all(str(part) in section.heading for part in parts)
    assert ["GPU" in subjects(section.findings) for section in sections[1:]] == [True, False, False]


def test_a_node_that_does_not_answer_is_an_error_with_its_address() -> None:
    """What it did answer is checked, and so are the other nodes."""
    late = {"machine": "no answer within 60 s", "environment": "no answer within 60 s"}
    silent = answer(3, {"actor": 4.0}, machine=None, environment=None, round_trip_s=None, silent=late)
    broken = answer(2, {"actor": 4.0}, environment=STEPPED | {"error": "no display"})
    sections = ClusterReport(SETTINGS, [HEAD, broken, silent], "token").sections("", ["10.0.0.9"])
    errors = [finding for section in sections for finding in section.findings if finding.level == "error"]
    assert subjects(errors) == ["environment", "node"]
    found(errors[1], "error", "10.0.0.3", "no answer within 60 s")
    found(sections[0].findings[-1], "warning", "10.0.0.9")


def test_a_driver_that_does_not_answer_leaves_the_rest_to_be_checked() -> None:
    """Then there are no versions to compare with, and no environment knows the sizes."""
    silent = answer(1, {}, machine=None, environment=None, round_trip_s=None, silent={"machine": "it died"})
    sections = ClusterReport(SETTINGS, [silent, answer(2, {}, environment=None)], "disabled").sections("", [])
    checked = {subject for section in sections for subject in subjects(section.findings)}
    assert "versions" not in checked
    assert {"machine", "model", "open files"} <= checked


def test_what_is_printed_fits_a_terminal_and_sums_up() -> None:
    """Colours only where they are asked for; the last line counts."""
    findings = [Finding("ok", "one", "fine"), Finding("warning", "two", "word " * 40, "do this")]
    sections = [Section("this machine", [*findings, Finding("error", "three", "no")])]
    text = describe(sections, colours=False)
    assert max(map(len, text)) <= 100
    for part in ("this machine", "fine", "do this"):
        assert part in "\n".join(text)
    assert text[-1].startswith("1 ok, 1 warning, 1 error: ")
    coloured = describe(sections, colours=True)
    assert coloured != text
    assert [re.sub(r"\x1b\[\d+m", "", line) for line in coloured] == text


def test_this_machines_facts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They are this machine's; the disk is that of the nearest directory that exists, and what lies there counts."""
    token = tmp_path / "token"
    token.write_text("secret")
    token.chmod(0o640)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    (tmp_path / "replay" / "shard-0").mkdir(parents=True)
    (tmp_path / "replay" / "shard-0" / "segment-0.log").write_bytes(bytes(1000))
    here = machine_facts(str(tmp_path))
    assert here["versions"]["dreamfleet"] == __version__
    assert all(here["versions"].values())
    assert re.fullmatch("[0-9a-f]{8}", here["code"])
    assert (here["token_path"], here["token_mode"]) == (str(token), 0o640)
    assert (here["disk_path"], here["disk_used"], here["disk_writable"]) == (str(tmp_path), 1000, True)
    assert here["memory_total"] > here["memory_free"] > 0
    below = machine_facts(str(tmp_path / "not" / "yet"))
    assert (below["disk_path"], below["disk_used"]) == (str(tmp_path), 0)


def test_the_gpus_that_the_driver_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As nvidia-smi prints them; one that fails is as none."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA A10G, 23028, 22000'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert facts_module.list_gpus() == [{"name": "NVIDIA A10G", "total": 23028 * 2**20, "free": 22000 * 2**20}]
    program.write_text("#!/bin/sh\nexit 9\n")
    assert facts_module.list_gpus() == []


def with_kwargs(**kwargs: Any) -> Settings:
    return SETTINGS.model_copy(update={"env": SETTINGS.env.model_copy(update={"kwargs": kwargs})})


def test_an_environment_is_built_stepped_and_rendered() -> None:
    """One that fails, hangs or crashes is a sentence, and does not take the doctor along."""
    tried = environment_facts(SETTINGS.env.model_dump())
    assert (tried["error"], tried["frame"]) == ("", [40, 60, 3])
    assert tried["spaces"]["observations"][0]["name"] == "count"
    assert environment_facts(with_kwargs(fail_at=3).env.model_dump())["error"] == "RuntimeError: told to fail"
    assert "within 0 s" in try_environment(with_kwargs(delay_s=60.0), timeout_s=0.5)["error"]
    crashing = SETTINGS.model_copy(update={"env": SETTINGS.env.model_copy(update={"id": "os:abort", "kwargs": {}})})
    assert "exit code -6" in try_environment(crashing, timeout_s=60)["error"]


def test_this_machine_is_examined_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each thing is checked once, and an error makes the exit code 1."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    findings = examine_machine(SETTINGS, str(tmp_path)).findings
    assert subjects(findings) == [
        "versions", "token", "open files", "cores", "/dev/shm", "object store", "memory", "disk", "GPU",  # noqa: S108
        "environment",
    ]  # fmt: skip
    assert findings[0].level == findings[-1].level == "ok"
    assert doctor(with_kwargs(fail_at=1), None, tmp_path) == 1


@pytest.mark.ray
def test_a_local_ray_is_examined_as_a_cluster(local_ray: None, tmp_path: Path) -> None:
    """All questions are asked of its one node by Ray, and answered in seconds."""
    whole, node = examine_cluster(SETTINGS, str(tmp_path), dashboard="")
    assert "1 node" in whole.heading
    assert "head, driver, learner and replay" in node.heading
    levels = {finding.subject: finding.level for finding in node.findings}
    assert (levels["versions"], levels["environment"]) == ("ok", "ok")
    [answered] = ask_nodes(SETTINGS, str(tmp_path))
    assert answered.round_trip_s is not None
    assert 0 < answered.round_trip_s < PATIENCE_S
    for answer_s in (5, 60):  # a busy machine answers nothing within 5 s
        [late] = ask_nodes(with_kwargs(delay_s=120.0), str(tmp_path), answer_s=answer_s)
        if late.machine is not None:
            break
    assert late.silent == {"environment": f"no answer within {answer_s} s"}
    assert late.machine is not None


def test_an_address_without_a_cluster_is_refused_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one sentence with the address; Ray itself would try for two minutes where nobody listens."""
    import ray

    def refuse(**arguments: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nMore of it.")

    monkeypatch.setattr(ray, "init", refuse)
    for address in ("127.0.0.1:1", "auto"):
        assert main(["doctor", "--address", address]) == 2
        message = capsys.readouterr().err
        assert "--address" in message
        assert f"'{address}'" in message
        assert message.count("\n") == 1
