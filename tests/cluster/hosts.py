"""Test hosts for trials of a cluster, and the cluster file for them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 60.0
NEEDED_PROGRAMS = ("ip", "sshd", "ssh", "ssh-keygen", "rsync", "unshare", "setsid")


def why_not_here() -> str:
    """Return why this machine cannot start test hosts, or an empty string if it can."""
    if os.geteuid() != 0:
        return "test hosts need root"
    path = os.environ.get("PATH", "") + os.pathsep + "/usr/sbin"
    missing = [name for name in NEEDED_PROGRAMS if not shutil.which(name, path=path)]
    if missing:
        return f"{', '.join(missing)} missing (Debian: apt install iproute2 openssh-server openssh-client rsync)"
    return ""


class Hosts:
    """Hosts on this machine, each with its own network address, processes, home, /tmp/ray and /dev/shm.

    Names are h1, h2, ...; use it in a `with` statement, which ends them all.

    Attributes:
        names: those that were started, in order.
        key: the SSH key that lets root in.

    Args:
        count: how many.
        state: a directory for keys, homes and logs, new or left by a run before; it goes when the hosts do.
    """

    def __init__(self, count: int, state: Path) -> None:
        self.names = [f"h{number}" for number in range(1, count + 1)]
        self.key = state / "id"
        self._script = os.environ.get("DREAMFLEET_TESTHOSTS", str(Path(__file__).with_name("testhosts")))
        self._environment = os.environ | {"TESTHOSTS_STATE": str(state)}

    def __enter__(self) -> Hosts:
        self._call("down")  # what a run that was killed has left
        try:
            self._call("up", str(len(self.names)))
        except BaseException:
            self._call("down")
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._call("down")

    def addresses(self) -> dict[str, str]:
        """Return the address of each host."""
        words = [line.split() for line in self._call("list").splitlines()]
        return {name: address for name, address, _ in words if name in self.names}

    def ssh(self, host: str, command: str, timeout_s: float = START_TIMEOUT_S, check: bool = True) -> str:
        """Run a shell command on a host and return what it printed.

        Raises:
            AssertionError: if it fails and `check` is set.
        """
        return self._call("ssh", host, command, timeout_s=timeout_s, check=check)

    def cut(self, host: str) -> None:
        """Take a host's network away; its processes go on."""
        self._call("cut", host)

    def mend(self, host: str) -> None:
        """Give a host its network back."""
        self._call("mend", host)

    def kill(self, host: str) -> None:
        """End a host at once, as a power cut does."""
        self._call("kill", host)

    def start(self, host: str) -> None:
        """Start a host that was killed; its home is as it was, its memory is empty."""
        self._call("start", host)

    def ray_processes(self, host: str) -> list[str]:
        """Return the command lines of Ray's processes on a host, and of what watches them."""
        lines = self.ssh(host, "ps -eo args=").splitlines()
        return [line for line in lines if re.search(r"raylet|gcs_server|^ray::|ray/_private|ray/dashboard", line)]

    def _call(self, *words: str, timeout_s: float = START_TIMEOUT_S, check: bool = True) -> str:
        done = subprocess.run(  # noqa: S603
            [self._script, *words],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert not check or done.returncode == 0, f"testhosts {' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout


def fill_onprem_file(into: Path, addresses: Sequence[str], key: Path, python: Path, name: str = "dreamfleet") -> Path:
    """Write deploy/onprem.yaml with its marked values filled in, as a user would, and return where.

    Args:
        into: the directory to write to.
        addresses: the head's, then the workers'.
        key: the SSH key for root.
        python: a Python that has all packages on every host, so that nothing is downloaded.
        name: the cluster's name: Ray keeps state on this machine by it.
    """
    text = (ROOT / "deploy" / "onprem.yaml").read_text()
    values = {
        "cluster_name: dreamfleet": f"cluster_name: {name}",
        "head_ip: HEAD": f"head_ip: {addresses[0]}",
        "worker_ips: [WORKER]": f"worker_ips: [{', '.join(addresses[1:])}]",
        "ssh_user: USER": "ssh_user: root",
        "ssh_private_key: ~/.ssh/id_ed25519": f"ssh_private_key: {key}",
        "- bash ~/dreamfleet/deploy/install_node.sh": f"- DREAMFLEET_PYTHON={python} bash "
        "~/dreamfleet/deploy/install_node.sh",
    }
    for marked, value in values.items():
        assert text.count(marked) == 1, f"deploy/onprem.yaml has no single '{marked}'"
        text = text.replace(marked, value)
    yaml.safe_load(text)
    file = into / "onprem.yaml"
    file.write_text(text)
    return file
