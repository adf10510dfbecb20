"""The cluster files: accepted by Ray's own checks, closed to strangers, and in step with each other."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from patience import PATIENCE_S

from dreamfleet.common.settings.resolve import resolve
from dreamfleet.deploy.parser import parse

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
RAY_UP_FILES = ["cluster.yaml", "gcp.yaml", "onprem.yaml"]
CLOUD_FILES = ["cluster.yaml", "gcp.yaml"]
PLACEHOLDERS = re.compile(r"\b(ami-GPU|ami-CPU|PROJECT|FAMILY|HEAD|WORKER|USER|REGISTRY)\b")
"""The placeholder of a value that only the user knows."""
SECRETS = re.compile(r"AKIA|BEGIN [A-Z ]*PRIVATE KEY|[Pp]assword|[0-9a-f]{32}")

# Of KubeRay's custom resources: the keys that RayJob's spec and RayCluster's spec and groups know (KubeRay 1.5 to 1.7).
RAY_JOB_KEYS = {
    "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint", "entrypointNumCpus",
    "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata", "preRunningDeadlineSeconds",
    "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode", "submitterConfig",
    "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished",
}  # fmt: skip
RAY_CLUSTER_KEYS = {
    "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec",
    "headServiceAnnotations", "managedBy", "rayVersion", "suspend", "upgradeStrategy", "workerGroupSpecs",
}  # fmt: skip
HEAD_KEYS = {"enableIngress", "headService", "labels", "rayStartParams", "resources", "serviceType", "template"}
WORKER_KEYS = {
    "groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams",
    "replicas", "resources", "scaleStrategy", "suspend", "template",
}  # fmt: skip


def _load(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / name).read_text()))


def _prepared(config: dict[str, Any]) -> dict[str, Any]:
    """Fill in Ray's defaults and check against its schema, as `ray up` does before it asks a cloud."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return dict(prepared)


def _constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {name.lower(): version for name, _, version in (line.partition("==") for line in lines) if version}


def _exports(text: str) -> dict[str, str]:
    """Return the variables that lines of `export A=1 B=2` set to plain values."""
    lines = re.findall(r"^export (.*?)(?:\s+#.*)?$", text, flags=re.MULTILINE)
    return dict(pair.split("=", 1) for line in lines for pair in line.split() if "$" not in pair)


@pytest.mark.parametrize("name", RAY_UP_FILES)
def test_ray_accepts_the_file(name: str) -> None:
    _prepared(_load(name))


@pytest.mark.parametrize("name", RAY_UP_FILES)
def test_ray_refuses_a_key_that_it_does_not_know(name: str) -> None:
    import jsonschema

    config = _load(name) | {"wrokers": 3}
    with pytest.raises(jsonschema.ValidationError, match="wrokers"):
        _prepared(config)


@pytest.mark.parametrize("name", [*RAY_UP_FILES, "kuberay.yaml"])
def test_every_placeholder_is_marked_and_no_file_holds_a_secret(name: str) -> None:
    lines = (DEPLOY / name).read_text().splitlines()
    settings = [line for line in lines if not line.lstrip().startswith("#")]
    assert [line for line in settings if PLACEHOLDERS.search(line) and "# FILL IN" not in line] == []
    assert any("# FILL IN" in line for line in settings)
    assert [line for line in lines if SECRETS.search(line)] == []


@pytest.mark.parametrize("name", RAY_UP_FILES)
def test_strangers_stay_out(name: str) -> None:
    config = _load(name)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"  # noqa: S105
    starts = [c for kind in ("head", "worker") for c in config[f"{kind}_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 2
    for command in starts:
        assert command.startswith(". ~/dreamfleet/deploy/environment.sh &&")  # which turns the token on
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert _exports((DEPLOY / "environment.sh").read_text())["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize("name", RAY_UP_FILES)
def test_every_node_gets_what_the_project_is_made_of(name: str) -> None:
    config = _load(name)
    shipped = {local for remote, local in config["file_mounts"].items() if remote == f"~/dreamfleet/{local}"}
    links = {link.name for link in (ROOT / ".pkg" / "dreamfleet").iterdir() if link.is_symlink()}
    assert links <= shipped
    assert {".pkg", "constraints.txt", "pyproject.toml", "README.md"} <= shipped
    assert all((ROOT / local).exists() for local in shipped)
    assert config["rsync_exclude"] == ["__pycache__"]
    assert config["setup_commands"][-1] == "bash ~/dreamfleet/deploy/install_node.sh"
    assert ":" not in config["cluster_name"]


@pytest.mark.parametrize("name", CLOUD_FILES)
def test_the_learner_has_the_gpu_and_spot_machines_have_the_actors(name: str) -> None:
    config = _load(name)
    learner, actors = config["available_node_types"]["learner"], config["available_node_types"]["actors"]
    assert config["head_node_type"] == "learner"
    assert learner["resources"]["GPU"] == learner["resources"]["learner"] == 1
    assert "actor" not in learner["resources"]
    assert actors["resources"]["actor"] == actors["resources"]["CPU"]
    assert 0 < actors["min_workers"] < actors["max_workers"] <= config["max_workers"]
    assert "spot" in json.dumps(actors["node_config"]).lower()
    assert "spot" not in json.dumps(learner["node_config"]).lower()
    assert config["provider"]["cache_stopped_nodes"] is False


def test_on_premises_each_kind_of_node_names_its_resource() -> None:
    config = _load("onprem.yaml")
    assert any("""--resources='{"learner":1}'""" in command for command in config["head_start_ray_commands"])
    assert any(r"--resources=\"{\\\"actor\\\":" in json.dumps(c) for c in config["worker_start_ray_commands"])


def test_the_versions_named_are_those_of_the_constraints() -> None:
    spec = _ray_job()["spec"]["rayClusterSpec"]
    assert spec["rayVersion"] == _constraints()["ray"]
    files = [file for file in DEPLOY.iterdir() if file.suffix in (".yaml", ".sh") or file.name == "Dockerfile"]
    for file in files:
        for package, version in re.findall(r"([A-Za-z][\w.-]*)==([\w.]+)", file.read_text()):
            assert _constraints()[package.lower()] == version, f"{file.name}: {package}=={version}"


def test_the_image_has_the_environment_of_the_nodes() -> None:
    wanted = _exports((DEPLOY / "environment.sh").read_text())
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    words = [word for line in re.findall(r"^ENV (.*)$", text, flags=re.MULTILINE) for word in line.split()]
    assert {word for word in words if word.split("=")[0] in wanted} == {f"{k}={v}" for k, v in wanted.items()}


def test_the_image_is_not_run_by_root() -> None:
    users = re.findall(r"^USER (.*)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert users
    assert users[-1].split(":")[0] not in ("0", "root")


def test_the_linter_finds_nothing_in_the_dockerfile() -> None:
    done = _run(_tool("hadolint"), str(DEPLOY / "Dockerfile"))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "name", ["environment.sh", "install_node.sh", "end_with_raylet.sh", "../tests/cluster/testhosts"]
)
def test_the_shell_can_read_the_script(name: str) -> None:
    done = _run("bash", "-n", str(DEPLOY / name))
    assert done.returncode == 0, done.stderr


def test_sourcing_the_environment_twice_changes_nothing_and_never_fails(tmp_path: Path) -> None:
    source = f". {DEPLOY / 'environment.sh'}"
    script = f"set -eu; ulimit -n 512; {source}; env >{tmp_path}/once; {source}; env >{tmp_path}/twice; ulimit -Sn"
    done = _run("bash", "-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "512"  # all that the hard limit allows
    assert (tmp_path / "once").read_text() == (tmp_path / "twice").read_text()


def test_a_node_without_token_is_told_how_to_get_one(tmp_path: Path) -> None:
    done = _run("env", f"HOME={tmp_path}", "bash", str(DEPLOY / "install_node.sh"))
    assert done.returncode == 1
    assert "ray get-auth-token --generate" in done.stderr


def test_a_node_takes_the_python_that_is_named(tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("token")
    (tmp_path / "dreamfleet").symlink_to(ROOT)
    for _ in range(2):  # the second time changes nothing
        install = str(tmp_path / "dreamfleet" / "deploy" / "install_node.sh")
        done = _run("env", f"HOME={tmp_path}", f"DREAMFLEET_PYTHON={sys.executable}", "bash", install)
        assert done.returncode == 0, done.stderr
    assert len((tmp_path / ".bashrc").read_text().splitlines()) == 1
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o077 == 0
    done = _run("env", f"HOME={tmp_path}", "bash", "-c", ". ~/.bashrc && dreamfleet presets && which ray")
    assert done.returncode == 0, done.stderr
    assert "small" in done.stdout
    assert f"{tmp_path}/.dreamfleet/venv/bin/ray" in done.stdout


def test_kuberay_knows_the_keys_of_the_job() -> None:
    spec = _ray_job()["spec"]
    cluster = spec["rayClusterSpec"]
    assert set(spec) <= RAY_JOB_KEYS
    assert set(cluster) <= RAY_CLUSTER_KEYS
    assert set(cluster["headGroupSpec"]) <= HEAD_KEYS
    assert all(set(group) <= WORKER_KEYS for group in cluster["workerGroupSpecs"])
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_kuberay_scales_authenticates_and_cleans_up() -> None:
    spec = _ray_job()["spec"]
    cluster = spec["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert spec["shutdownAfterJobFinishes"] is True
    assert 0 < workers["minReplicas"] < workers["maxReplicas"]
    # KubeRay writes the value into a command line: quotes for the shell around JSON with its quotes escaped.
    for group, resources in ((cluster["headGroupSpec"], {"learner": 1}), (workers, {"actor": 16})):
        assert json.loads(json.loads(group["rayStartParams"]["resources"])) == resources


def test_kubernetes_pods_have_shared_memory_and_the_head_keeps_its_runs() -> None:
    claim, job = yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text())
    cluster = job["spec"]["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"  # noqa: S108
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["resources"]["limits"]["cpu"] == group["rayStartParams"]["num-cpus"]
    head = cluster["headGroupSpec"]["template"]["spec"]
    assert head["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    program, *words = job["spec"]["entrypoint"].split()
    given = parse(words)
    assert (program, given.command, given.address) == ("dreamfleet", "train", "auto")
    assert resolve(given.preset, given.flags).actors.count == "auto"
    assert str(given.run).startswith(head["containers"][0]["volumeMounts"][0]["mountPath"])


def test_kubernetes_accepts_the_pods() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    claim, job = yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text())
    validate.validate(claim, validate.latest_version(), strict=True)
    cluster = job["spec"]["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": group["template"]["spec"]}
        validate.validate(pod, validate.latest_version(), strict=True)


def _ray_job() -> dict[str, Any]:
    (job,) = (one for one in yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text()) if one["kind"] == "RayJob")
    return dict(job)


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, check=False)  # noqa: S603


def _tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if not found:
        pytest.skip(f"{name} is not installed")
    return found
