"""The doctor's judgement of a fleet of nodes: versions, token, places for actors and learner, distance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dreamfleet.deploy.doctor.check_node import MachineFacts
from dreamfleet.deploy.doctor.checks import Line

FAR_S = 0.05
"""A round trip of more than this makes orders of a few dozen steps wait for the network."""
CLOCK_S = 1.0
"""Clocks further apart than this make logs hard to read side by side."""
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_NAMES = {"python": "Python", "ray": "Ray", "torch": "torch", "dreamfleet": "dreamfleet"}


def check_own_versions(facts: MachineFacts) -> Line:
    """Say which versions this machine has; one that is missing is an error."""
    versions = facts["versions"]
    missing = [name for name, version in versions.items() if not version]
    found = ", ".join(f"{_NAMES[name]} {version or 'missing'}" for name, version in versions.items())
    if missing:
        return Line("error", "versions", found, f"install {' and '.join(missing)} on this machine")
    return Line("ok", "versions", found)


def check_versions(facts: MachineFacts, driver: MachineFacts) -> Line:
    """Judge a node's versions by those of the driver's node: they must be the same."""
    own = check_own_versions(facts)
    if own.level == "error":
        return own
    theirs = driver["versions"]
    others = [f"{_NAMES[name]} {version} beside the driver's {theirs[name]}"
              for name, version in facts["versions"].items() if version != theirs[name]]  # fmt: skip
    if others:
        return Line("error", "versions", ", ".join(others), "install the same versions on all nodes, then restart Ray")
    if facts["code"] != driver["code"]:
        return Line("warning", "versions", f"dreamfleet {theirs['dreamfleet']}, but not the same files as the driver's",
                    "install the same checkout on all nodes")  # fmt: skip
    return own


def check_token(mode: str, nodes: int) -> Line:
    """Judge whether Ray asks for a token.

    Args:
        mode: `token`, `disabled`, or `unknown` where this Ray has none.
        nodes: of the cluster; 1 for a machine of its own.
    """
    if mode == "token":
        return Line("ok", "token", "on: nobody gets in without it")
    if mode == "unknown":
        return Line("warning", "token", "this Ray knows no token authentication", "install Ray 2.60 or newer")
    advice = "set RAY_AUTH_MODE=token on all nodes, with one token (`ray get-auth-token --generate`)"
    found = "off: whoever reaches Ray's ports can run anything here"
    return Line("error" if nodes > 1 else "warning", "token", found, advice)


def check_token_file(facts: MachineFacts, ray_is_up: bool) -> Line:
    """Judge the file of the token, where tokens are on: nobody else may read it."""
    path, mode = facts["token_path"], facts["token_mode"]
    if mode < 0 and not ray_is_up:
        return Line("ok", "token's file", f"Ray makes {path} at its first start")
    if mode < 0:
        return Line("warning", "token's file", f"{path} is not there, the token must be elsewhere",
                    "ship the token to this node's home, or set RAY_AUTH_TOKEN_PATH")  # fmt: skip
    if mode & 0o077:
        return Line("warning", "token's file", f"others may read {path} (mode {mode:o})", f"chmod 600 {path}")
    return Line("ok", "token's file", path)


def check_dashboard(url: str) -> Line:
    """Judge where the dashboard listens: it takes jobs from whoever reaches it."""
    if not url:
        return Line("ok", "dashboard", "off")
    host = url.removeprefix("http://").rsplit(":", 1)[0]
    if host in LOOPBACK:
        return Line("ok", "dashboard", f"on loopback, {url}")
    return Line("warning", "dashboard", f"listens on {url}, for whoever reaches that",
                "start Ray with --dashboard-host 127.0.0.1 and use an SSH tunnel (`ray dashboard`)")  # fmt: skip


def check_round_trip(round_trip_s: float, clock_ahead_s: float) -> Line:
    """Judge how far a node is from the driver, and whether its clock agrees."""
    found = f"{1e3 * round_trip_s:.2g} ms from the driver and back"
    if round_trip_s > FAR_S:
        return Line("warning", "distance", found, "raise actors.steps_per_order, or take nodes closer by")
    if abs(clock_ahead_s) > CLOCK_S + round_trip_s:
        return Line("warning", "distance", f"{found}; its clock is {abs(clock_ahead_s):.1f} s "
                    f"{'ahead' if clock_ahead_s > 0 else 'behind'}", "let NTP set the clocks of all nodes")  # fmt: skip
    return Line("ok", "distance", f"{found}, clocks agree")


def check_places(count: int | str, places_by_node: Sequence[int]) -> Line:
    """Judge how many actors the cluster holds against how many the settings ask for."""
    total, nodes = sum(places_by_node), sum(places > 0 for places in places_by_node)
    room = f"room for {total} on {nodes} node{'s' * (nodes != 1)}"
    if total == 0:
        return Line("error", "actors", f"{count} asked for, but no node takes any",
                    "declare the resource `actor` and enough CPUs where actors are to run")  # fmt: skip
    if count == "auto":
        return Line("ok", "actors", f"auto: {room} now")
    if total < int(count):
        return Line("warning", "actors", f"{count} asked for, {room}",
                    "add nodes (an autoscaler may do so), or set actors.count to auto")  # fmt: skip
    return Line("ok", "actors", f"{count} asked for, {room}")


def check_learner_place(home: str, driver: str, declared: bool) -> Line:
    """Judge where learner and replay go, and with them the run directory.

    Args:
        home: address of the node that is chosen.
        driver: address of the driver's node.
        declared: whether that node declares the resource `learner`.
    """
    why = "which declares the resource `learner`" if declared else "since no node declares the resource `learner`"
    if home == driver:
        return Line("ok", "learner", f"with the replay on {home}, beside the driver, {why}")
    return Line("warning", "learner", f"with the replay on {home}, {why}, but the driver is on {driver}",
                "run the command on the learner's node, or have the run directory on a file system that both "
                "share")  # fmt: skip


def check_dead(addresses: Sequence[str]) -> list[Line]:
    """Name the nodes that Ray lost without their having said goodbye."""
    if not addresses:
        return []
    return [Line("warning", "lost nodes", ", ".join(addresses), "see on them why Ray ended, and start it again")]


def check_silence(address: str, silent: Mapping[str, str]) -> list[Line]:
    """Name a node that left questions unanswered: in one line, if it answered neither for itself nor otherwise.

    Args:
        address: of the node.
        silent: for each question without an answer, why.
    """
    advice = "see whether the node is up and reached (`ray list nodes`), and that dreamfleet is installed there"
    if {"machine", "environment"} <= set(silent):
        return [Line("error", "node", f"{address} did not answer: {silent['machine']}", advice)]
    return [Line("error", question, f"{address} did not answer: {why}", advice) for question, why in silent.items()]
