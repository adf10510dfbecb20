"""`dreamfleet doctor`: every judgement from made-up facts, and the whole of it on this machine and on a local Ray."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, cast

import pytest
from patience import PATIENCE_S

from dreamfleet import __version__
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.command_line import main
from dreamfleet.deploy.doctor import check_fleet, check_node, checks
from dreamfleet.deploy.doctor.check_cluster import ClusterView
from dreamfleet.deploy.doctor.check_learner import learner_lines, sizes
from dreamfleet.deploy.doctor.check_node import MachineFacts, environment_facts, machine_facts
from dreamfleet.deploy.doctor.check_nodes import NodeAnswer
from dreamfleet.deploy.doctor.checks import Line, Section
from dreamfleet.deploy.doctor.doctor import describe, doctor, examine_machine, try_environment
from dreamfleet.deploy.plan.footprint import Footprint
from dreamfleet.deploy.workers.placement import Node

GB = 1e9
SIZES = Footprint(
    raw_step=4000, stored_step=4000.0, chunk_steps=64.0, batch_packed=1e6, batch_raw=1_000_000, weights=2_000_000,
    checkpoint=12_000_000, parameters=1_000_000, activations=10_000_000,
)  # fmt: skip
COUNTING = {"id": "counting_environment:make", "kwargs": {"image": 64}, "image_size": 64}
SETTINGS = Settings.model_validate(
    {"env": COUNTING, "actors": {"count": 3}, "model": {"depth": 4, "deterministic": 16, "hidden": 16},
     "learner": {"batch_size": 4, "sequence_length": 5}, "replay": {"capacity_gb": 2.0}}
)  # fmt: skip
STEPPED = {"error": "", "built_s": 0.5, "step_s": 0.02, "render_s": 0.01, "frame": [40, 60, 3], "spaces": {
    "observations": [{"name": "image", "shape": [64, 64, 3], "dtype": "uint8"}],
    "action": {"kind": "discrete", "sizes": [3]},
}}  # fmt: skip
A_GPU: dict[str, Any] = {"name": "A GPU", "total": 24 * GB, "free": 23 * GB}


def facts(**changed: Any) -> MachineFacts:
    """Return a healthy machine's facts, but for what is changed."""
    healthy: dict[str, Any] = {
        "versions": {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0", "dreamfleet": "0.1.0"}, "code": "abc",
        "files_soft": 65_536, "files_hard": 1 << 20, "shm_total": int(8 * GB), "shm_free": int(8 * GB),
        "memory_total": int(32 * GB), "memory_free": int(30 * GB), "cores": 4,
        "token_path": "/home/ray/.ray/auth_token", "token_mode": 0o600,
        "disk_path": "/data", "disk_free": int(100 * GB), "disk_used": 0, "disk_writable": True,
        "gpus": [], "torch_sees_gpu": None,
    }  # fmt: skip
    return cast("MachineFacts", healthy | changed)


def judged(line: Line, level: str, *parts: str) -> None:
    """Check a line's level and words; whatever is not ok says what to do."""
    assert line.level == level, line
    assert bool(line.advice) == (level != "ok"), line
    for part in parts:
        assert part in line.found + " " + line.advice


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "level", "part"),
    [
        (65_536, 65_536, False, "ok", "65,536 open files"),
        (1024, 1 << 20, True, "ok", "raised by Ray to 65,536"),
        (20_000, 20_000, True, "ok", "20,000"),
        (20_000, 20_000, False, "warning", "raise the hard limit to 65,536"),
        (8_000, 1 << 20, False, "warning", "ulimit -n 65536"),
        (1024, 1 << 20, False, "error", "ulimit -n 65536"),
        (1024, 5000, True, "warning", "raise the hard limit to 8,192"),
        (1024, 1024, True, "error", "1,024 open files"),
    ],
)
def test_open_files(soft: int, hard: int, raised: bool, level: str, part: str) -> None:
    """A cluster wants more than a machine of its own, where `ray.init` raises the limit by itself."""
    judged(checks.check_files(facts(files_soft=soft, files_hard=hard), raised), level, part)


@pytest.mark.parametrize(
    ("total", "store", "level", "part"),
    [
        (8 * GB, 4 * GB, "ok", "8 GB for an object store of 4 GB"),
        (-1, 4 * GB, "ok", "not on this system"),
        (2 * GB, 4 * GB, "warning", "on the disk"),
        (0.5 * GB, 0.4 * GB, "warning", "--shm-size"),
        (64e6, 60e6, "error", "batches and weights take up to 100 MB"),
    ],
)
def test_shared_memory(total: float, store: float, level: str, part: str) -> None:
    """It must hold the object store, and what a run puts there at least."""
    judged(checks.check_shm(facts(shm_total=int(total)), store, needed=100e6), level, part)


@pytest.mark.parametrize(("store", "level"), [(400e6, "ok"), (399e6, "warning"), (100e6, "warning"), (99e6, "error")])
def test_object_store(store: float, level: str) -> None:
    """Four times what is needed is enough, less than once is an error."""
    judged(checks.check_store(store, 100e6, "batches"), level, "100 MB of batches")


def test_the_store_that_ray_takes() -> None:
    """30 % of the free memory, or 95 % of /dev/shm if that is less; a Mac has none."""
    assert checks.default_store(facts()) == pytest.approx(0.95 * 8 * GB)
    assert checks.default_store(facts(memory_free=10 * GB)) == 3 * GB
    assert checks.default_store(facts(shm_free=-1)) == 9 * GB


@pytest.mark.parametrize(
    ("total", "free", "level"), [(32, 30, "ok"), (32, 3, "warning"), (4, 3, "error"), (-1e-9, -1, "ok")]
)
def test_memory(total: float, free: float, level: str) -> None:
    """Too little free is a warning, since it is an estimate and may become free; too little at all is an error."""
    found = checks.check_memory(facts(memory_total=int(total * GB), memory_free=int(free * GB)), 5 * GB, "learner")
    judged(found, level, "5 GB needed for learner")


@pytest.mark.parametrize(
    ("changed", "level", "part"),
    [
        ({}, "ok", "100 GB free at /data, replay and checkpoints may take 2.06 GB"),
        ({"disk_free": int(2.1 * GB)}, "warning", "next to nothing"),
        ({"disk_free": int(2 * GB)}, "error", "replay.capacity_gb"),
        ({"disk_free": int(2 * GB), "disk_used": int(1 * GB)}, "ok", "may take 1.06 GB"),
        ({"disk_writable": False}, "error", "may not be written to"),
    ],
)
def test_disk(changed: dict[str, Any], level: str, part: str) -> None:
    """The replay's budget and the checkpoints must fit, less what the run has there already."""
    judged(checks.check_disk(facts(**changed), SETTINGS, SIZES), level, part)


def test_disk_without_a_known_model() -> None:
    """Then the replay's budget alone is judged."""
    judged(checks.check_disk(facts(), SETTINGS, None), "ok", "the replay may take 2 GB")


@pytest.mark.parametrize(
    ("device", "gpus", "sees", "training", "ray_gpus", "level", "part"),
    [
        ("cpu", [A_GPU], True, 1e9, 1.0, "ok", "learner.device is cpu"),
        ("auto", [], None, 1e9, None, "ok", "on the CPU"),
        ("auto", [], None, 1e9, 0.0, "warning", "give the node a GPU"),
        ("cuda", [], None, 1e9, None, "error", "learner.device is cuda"),
        ("auto", [A_GPU], False, 1e9, None, "warning", "torch 2.13.0 does not see it"),
        ("cuda", [A_GPU], False, 1e9, 1.0, "error", "build of torch for CUDA"),
        ("auto", [A_GPU], True, 1e9, 0.0, "error", "Ray has no GPU"),
        ("auto", [A_GPU], True, 1e9, 1.0, "ok", "about 1.6 GB needed to train (an estimate)"),
        ("auto", [A_GPU], True, None, None, "ok", "A GPU, 24 GB"),
        ("auto", [A_GPU | {"free": 1e9}], True, 1e9, 1.0, "warning", "nvidia-smi"),
        ("cuda", [A_GPU], True, 30e9, 1.0, "error", "learner.batch_size"),
    ],
)
def test_gpu(
    device: str, gpus: Any, sees: Any, training: float | None, ray_gpus: float | None, level: str, part: str
) -> None:
    """Found by the driver, seen by torch, known to Ray, and big enough for the model."""
    judged(checks.check_gpu(facts(gpus=gpus, torch_sees_gpu=sees), device, training, ray_gpus), level, part)


@pytest.mark.parametrize(
    ("changed", "usual", "level", "part"),
    [
        ({}, None, "ok", "built in 0.5 s, 20 ms a step (50/s), 10 ms for a picture of 40×60×3"),
        ({}, 0.01, "ok", "20 ms a step"),
        ({}, 0.005, "warning", "4.0 times the other nodes' time"),
        ({"frame": []}, None, "warning", "renders no pictures"),
        ({"error": "no display"}, None, "error", "failed: no display"),
    ],
)
def test_environment(changed: dict[str, Any], usual: float | None, level: str, part: str) -> None:
    """Built, stepped and rendered, in a time like the other nodes'."""
    judged(checks.check_environment("X-v0", STEPPED | changed, usual), level, "X-v0", part)


def test_cores() -> None:
    """More actors than cores is worth a word."""
    judged(checks.check_cores(4, 4), "ok", "4 actors and the learner on 4 cores")
    judged(checks.check_cores(4, 5), "warning", "actors.count to 3")


def test_versions_are_those_of_the_driver() -> None:
    """Missing or different ones are errors; other files of the same version are a warning."""
    versions = facts()["versions"]
    judged(check_fleet.check_versions(facts(), facts()), "ok", "Python 3.11.7, Ray 2.60.0, torch 2.13.0")
    judged(check_fleet.check_versions(facts(code="other"), facts()), "warning", "not the same files")
    for name in versions:
        other = facts(versions=versions | {name: "9.9"})
        judged(check_fleet.check_versions(other, facts()), "error", "9.9 beside the driver's " + versions[name])
    missing = facts(versions=versions | {"dreamfleet": ""})
    judged(check_fleet.check_versions(missing, facts()), "error", "dreamfleet missing", "install dreamfleet")


def test_token() -> None:
    """Off is an error where others join, and a warning on one machine; its file is for nobody else."""
    judged(check_fleet.check_token("token", 4), "ok", "on")
    judged(check_fleet.check_token("disabled", 4), "error", "RAY_AUTH_MODE=token")
    judged(check_fleet.check_token("disabled", 1), "warning", "off")
    judged(check_fleet.check_token("unknown", 4), "warning", "no token authentication")
    judged(check_fleet.check_token_file(facts(), ray_is_up=True), "ok", "auth_token")
    judged(check_fleet.check_token_file(facts(token_mode=0o644), ray_is_up=True), "warning", "mode 644", "chmod 600")
    judged(check_fleet.check_token_file(facts(token_mode=-1), ray_is_up=True), "warning", "not there")
    judged(check_fleet.check_token_file(facts(token_mode=-1), ray_is_up=False), "ok", "at its first start")


@pytest.mark.parametrize(
    ("url", "level"),
    [("", "ok"), ("127.0.0.1:8265", "ok"), ("http://localhost:8265", "ok"), ("[::1]:8265", "ok"),
     ("0.0.0.0:8265", "warning"), ("10.0.0.2:8265", "warning")],
)  # fmt: skip
def test_the_dashboard_is_for_loopback(url: str, level: str) -> None:
    """Whoever reaches it can start jobs."""
    judged(check_fleet.check_dashboard(url), level)


def test_distance_and_clocks() -> None:
    """Far away or at another time is a warning."""
    judged(check_fleet.check_round_trip(0.001, 0.01), "ok", "1 ms from the driver and back, clocks agree")
    judged(check_fleet.check_round_trip(0.08, 0.0), "warning", "80 ms", "steps_per_order")
    judged(check_fleet.check_round_trip(0.001, -7.0), "warning", "7.0 s behind", "NTP")
    judged(check_fleet.check_round_trip(0.001, 7.0), "warning", "7.0 s ahead")


def test_places_for_actors() -> None:
    """None is an error, too few a warning; `auto` takes what there is."""
    judged(check_fleet.check_places(6, [0, 4, 4]), "ok", "6 asked for, room for 8 on 2 nodes")
    judged(check_fleet.check_places(9, [0, 4, 4]), "warning", "9 asked for, room for 8", "autoscaler")
    judged(check_fleet.check_places("auto", [1]), "ok", "auto: room for 1 on 1 node now")
    judged(check_fleet.check_places("auto", [0, 0]), "error", "no node takes any")


def test_the_learner_s_place() -> None:
    """Beside the driver, which has the run directory."""
    judged(check_fleet.check_learner_place("10.0.0.2", "10.0.0.2", declared=True), "ok", "beside the driver")
    judged(check_fleet.check_learner_place("10.0.0.2", "10.0.0.2", declared=False), "ok", "no node declares")
    judged(check_fleet.check_learner_place("10.0.0.3", "10.0.0.2", declared=True), "warning", "the driver is on")


def test_lost_nodes_are_named() -> None:
    """One line for all of them, none if there are none."""
    assert check_fleet.check_dead([]) == []
    judged(check_fleet.check_dead(["10.0.0.7"])[0], "warning", "10.0.0.7")


def test_sizes_need_an_environment_and_a_model_that_fits() -> None:
    """Without the one they are unknown, without the other it is an error that names the setting."""
    assert sizes(SETTINGS, STEPPED)[1] == []
    footprint, lines = sizes(SETTINGS, None)
    assert footprint is None
    judged(lines[0], "warning", "not judged")
    small = STEPPED | {"spaces": {"observations": [{"name": "image", "shape": [32, 32, 3], "dtype": "uint8"}],
                                  "action": {"kind": "discrete", "sizes": [3]}}}  # fmt: skip
    footprint, lines = sizes(SETTINGS, small)
    assert footprint is None
    judged(lines[0], "error", "64×64")


def test_the_learner_s_machine_has_a_line_for_each_thing() -> None:
    """Without sizes, disk and GPU alone; a learner on the CPU takes its memory for training there too."""
    lines = learner_lines(SETTINGS, facts(), SIZES, 4 * GB, 2, 3, None)
    assert [line.subject for line in lines] == ["/dev/shm", "object store", "memory", "disk", "GPU"]  # noqa: S108
    assert "learner, replay and 2 actors" in lines[2].found
    few = learner_lines(SETTINGS, facts(), None, 4 * GB, 2, 3, None)
    assert [line.subject for line in few] == ["disk", "GPU"]


def answer(number: int, resources: dict[str, float], **changed: Any) -> NodeAnswer:
    """Return what a healthy node answered, but for what is changed."""
    node = Node(f"id-{number}", f"10.0.0.{number}", {"CPU": 4.0, "object_store_memory": 4 * GB} | resources)
    healthy: dict[str, Any] = {"machine": facts(), "environment": STEPPED, "round_trip_s": 0.001}
    return NodeAnswer(node, number == 1, **(healthy | changed))


HEAD = {"learner": 1.0, "GPU": 1.0, "node:__internal_head__": 1.0}
WITH_GPU = facts(gpus=[A_GPU], torch_sees_gpu=True)


def test_a_healthy_cluster_has_no_complaint() -> None:
    """The head's node takes learner and replay, the others actors, and each says what it is for."""
    answers = [answer(1, HEAD, machine=WITH_GPU), answer(2, {"actor": 4.0}), answer(3, {"actor": 4.0})]
    sections = ClusterView(SETTINGS, answers, "token").sections("127.0.0.1:8265", [])
    assert [line for section in sections for line in section.lines if line.level != "ok"] == []
    assert [section.heading for section in sections] == [
        "cluster of 3 nodes, counting_environment:make",
        "node 10.0.0.1: head, driver, learner and replay",
        "node 10.0.0.2: 4 actors at most",
        "node 10.0.0.3: 4 actors at most",
    ]
    assert sections[0].lines[0].found == "3 asked for, room for 8 on 2 nodes"
    assert "GPU" in [line.subject for line in sections[1].lines]
    assert "GPU" not in [line.subject for line in sections[2].lines]


def test_a_node_that_does_not_answer_is_an_error_with_its_address() -> None:
    """Whatever it did answer is judged; the other nodes are judged as ever."""
    silent = answer(3, {"actor": 4.0}, machine=None, environment=None, round_trip_s=None,
                    silent={"machine": "no answer within 60 s", "environment": "no answer within 60 s"})  # fmt: skip
    broken = answer(2, {"actor": 4.0}, environment=STEPPED | {"error": "no display"})
    answers = [answer(1, HEAD, machine=WITH_GPU), broken, silent]
    sections = ClusterView(SETTINGS, answers, "token").sections("", ["10.0.0.9"])
    errors = [line for section in sections for line in section.lines if line.level == "error"]
    assert [line.subject for line in errors] == ["environment", "node"]
    assert "10.0.0.3 did not answer: no answer within 60 s" in errors[1].found
    assert "10.0.0.9" in sections[0].lines[-1].found


def test_a_driver_that_does_not_answer_leaves_the_rest_to_be_judged() -> None:
    """Then there are no versions to compare with, and no environment knows the sizes."""
    silent = answer(1, {}, machine=None, environment=None, round_trip_s=None, silent={"machine": "it died"})
    sections = ClusterView(SETTINGS, [silent, answer(2, {}, environment=None)], "disabled").sections("", [])
    subjects = [line.subject for section in sections for line in section.lines]
    assert "versions" not in subjects
    assert {"machine", "model", "open files"} <= set(subjects)


def test_what_is_printed_has_words_and_fits_a_terminal() -> None:
    """Colours only where they are asked for; the last line counts and says what follows."""
    lines = [Line("ok", "one", "fine"), Line("warning", "two", "word " * 40, "do this"), Line("error", "three", "no")]
    text = describe([Section("this machine", lines)], colours=False)
    assert text[0] == "this machine"
    assert max(map(len, text)) <= 100
    assert "ok       one            fine" in text
    assert "                        → do this" in text
    assert text[-1] == "1 ok, 1 warning, 1 error: a run would fail, or do harm, until the errors are mended"
    assert "\x1b" not in "".join(text)
    coloured = describe([Section("this machine", lines)], colours=True)
    assert [re.sub(r"\x1b\[\d+m", "", line) for line in coloured] == text
    assert describe([Section("x", lines[:1])], False)[-1] == "1 ok, 0 warnings, 0 errors: nothing stands in the way"
    assert "look at the warnings" in describe([Section("x", lines[:2])], False)[-1]


def test_this_machine_s_facts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They are this machine's; the disk is that of the nearest directory that exists, and what lies there counts."""
    token = tmp_path / "token"
    token.write_text("secret")
    token.chmod(0o640)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    (tmp_path / "replay" / "shard-0").mkdir(parents=True)
    (tmp_path / "replay" / "shard-0" / "segment-0.log").write_bytes(bytes(1000))
    found = cast("MachineFacts", machine_facts(str(tmp_path)))
    assert found["versions"]["dreamfleet"] == __version__
    assert all(found["versions"].values())
    assert re.fullmatch("[0-9a-f]{8}", found["code"])
    assert (found["token_path"], found["token_mode"]) == (str(token), 0o640)
    assert (found["disk_path"], found["disk_used"], found["disk_writable"]) == (str(tmp_path), 1000, True)
    assert found["memory_total"] > found["memory_free"] > 0
    below = cast("MachineFacts", machine_facts(str(tmp_path / "not" / "yet")))
    assert (below["disk_path"], below["disk_used"]) == (str(tmp_path), 0)


def test_the_gpus_that_the_driver_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As nvidia-smi prints them; one that fails is as none."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA A10G, 23028, 22000'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert check_node._gpus() == [{"name": "NVIDIA A10G", "total": 23028 * 2**20, "free": 22000 * 2**20}]
    program.write_text("#!/bin/sh\nexit 9\n")
    assert check_node._gpus() == []


def test_an_environment_is_built_stepped_and_rendered() -> None:
    """One that fails is a sentence; one that cannot render has no picture."""
    found = environment_facts(SETTINGS.env.model_dump())
    assert found["error"] == ""
    assert found["frame"] == [40, 60, 3]
    assert found["spaces"]["observations"][0]["name"] == "count"
    failing = SETTINGS.env.model_dump() | {"kwargs": {"fail_at": 3}}
    assert environment_facts(failing)["error"] == "RuntimeError: told to fail"


def test_an_environment_that_hangs_or_crashes_does_not_take_the_doctor_along() -> None:
    """It is tried in a process of its own, which is ended."""
    hanging = SETTINGS.model_copy(update={"env": SETTINGS.env.model_copy(update={"kwargs": {"delay_s": 60.0}})})
    assert "not built and stepped within" in try_environment(hanging, timeout_s=0.5)["error"]
    crashing = SETTINGS.model_copy(update={"env": SETTINGS.env.model_copy(update={"id": "os:abort", "kwargs": {}})})
    assert "exit code -6" in try_environment(crashing, timeout_s=60)["error"]


def test_this_machine_is_examined_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each of its lines is there once, and an error makes the exit code 1."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    section = examine_machine(SETTINGS, str(tmp_path))
    subjects = [line.subject for line in section.lines]
    assert subjects == [
        "versions", "token", "open files", "cores", "/dev/shm", "object store", "memory", "disk", "GPU",  # noqa: S108
        "environment",
    ]  # fmt: skip
    assert section.lines[0].level == section.lines[-1].level == "ok"
    failing = SETTINGS.model_copy(update={"env": SETTINGS.env.model_copy(update={"kwargs": {"fail_at": 1}})})
    assert doctor(failing, None, tmp_path) == 1


@pytest.mark.ray
def test_a_local_ray_is_examined_as_a_cluster(local_ray: None, tmp_path: Path) -> None:
    """All questions are asked of its one node by Ray, and answered in seconds."""
    from dreamfleet.deploy.doctor.check_cluster import examine_cluster
    from dreamfleet.deploy.doctor.check_nodes import ask_nodes

    sections = examine_cluster(SETTINGS, str(tmp_path), dashboard="")
    assert sections[0].heading == "cluster of 1 node, counting_environment:make"
    assert "head, driver, learner and replay" in sections[1].heading
    by_subject = {line.subject: line for line in sections[1].lines}
    assert by_subject["versions"].level == "ok"
    assert by_subject["environment"].level == "ok"
    [answered] = ask_nodes(SETTINGS, str(tmp_path))
    assert answered.round_trip_s is not None
    assert 0 < answered.round_trip_s < PATIENCE_S
    hanging = SETTINGS.model_copy(update={"env": SETTINGS.env.model_copy(update={"kwargs": {"delay_s": 120.0}})})
    for answer_s in (5, 60):  # a busy machine answers nothing within 5 s
        [late] = ask_nodes(hanging, str(tmp_path), answer_s=answer_s)
        if late.machine is not None:
            break
    assert late.silent == {"environment": f"no answer within {answer_s} s"}
    assert late.machine is not None


def test_an_address_where_nobody_listens_is_refused_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Ray itself would try for two minutes."""
    assert main(["doctor", "--address", "127.0.0.1:1"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("dreamfleet: flag --address: no Ray cluster answers at '127.0.0.1:1': ")
    assert told.count("\n") == 1


def test_no_cluster_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the address, without a traceback."""
    import ray

    def refuse(**arguments: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nMore of it.")

    monkeypatch.setattr(ray, "init", refuse)
    assert main(["doctor", "--address", "auto"]) == 2
    told = capsys.readouterr().err
    assert told == (
        "dreamfleet: flag --address: no Ray cluster answers at 'auto': Could not find any running Ray instance.\n"
    )
