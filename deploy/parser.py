"""The command line's grammar: each command, its flags and its help, and settings as further flags."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any, NoReturn

from dreamfleet import __version__
from dreamfleet.common.errors import UserError, nearest
from dreamfleet.deploy.flag_values import checkpoint, name_list, natural, port, positive, rate, side
from dreamfleet.deploy.setting_flags import read_settings, settings_help

TAKE_SETTINGS = ("train", "collect", "doctor", "plan")
"""Commands that take settings as flags."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the command and its flags.

    `flags` holds the settings as (path, text), and `arguments` what follows `--` for `submit`.

    Raises:
        UserError: for an unknown command or flag, or a word that is neither, with the nearest that exists.
    """
    parser = make_parser()
    split = arguments.index("--") if arguments[0] == "submit" and "--" in arguments else len(arguments)
    given, rest = parser.parse_known_args(arguments[:split])
    given.arguments = arguments[split + 1 :]
    if given.command == "submit" and rest and not rest[0].startswith("--"):
        raise UserError(f"'{rest[0]}' is not understood: the command to run follows '--'.")
    if given.command not in TAKE_SETTINGS and rest and not rest[0].startswith("--"):
        command = f"{given.command} --help"
        raise UserError(f"'{rest[0]}' is a word too many. See `dreamfleet {command}`.")
    given.flags = read_settings(rest, given.command in TAKE_SETTINGS, _long_flags(parser, given.command))
    return given


class Parser(argparse.ArgumentParser):
    """Keeps its arguments, and its commands by name; its errors are one sentence."""

    def __init__(self, **options: Any) -> None:
        self.arguments: list[argparse.Action] = []
        self.commands, self.command_dest = dict[str, Parser](), ""
        super().__init__(**options)

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """Add an argument, as argparse does, and keep it."""
        self.arguments.append(super().add_argument(*names, **options))
        return self.arguments[-1]

    def add_commands(self, dest: str, metavar: str) -> Any:
        """Return what commands are added to, of which one must be given; it is kept under `dest`."""
        commands = self.add_subparsers(dest=dest, required=True, metavar=metavar)
        self.commands, self.command_dest = commands.choices, dest
        return commands

    def error(self, message: str) -> NoReturn:
        """Raise one sentence instead of printing the usage and exiting."""
        wrong = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        hint = nearest(wrong[1], re.findall(r"[a-z]+", wrong[2])) if wrong else ""
        raise UserError(f"{message}.{hint} See `{self.prog} --help`.")


def make_parser() -> Parser:
    """Return the parser of all commands."""
    parser = Parser(
        prog="dreamfleet",
        allow_abbrev=False,
        description="Learn RSSM world models from pixels with distributed actors and a learner.",
    )
    parser.add_argument("--version", action="version", version=f"dreamfleet {__version__}")
    commands = parser.add_commands("command", "COMMAND")
    _add_train(commands)
    _add_collect(commands)
    _add_sweep(commands)
    _add_submit(commands)
    _add_checks(commands)
    _add_eval_and_dream(commands)
    _add_view(commands)
    _add_replay(commands)
    _command(commands, "presets", "list the built-in presets")
    return parser


def _add_train(commands: Any) -> None:
    train = _command(commands, "train", "collect and train, or resume a run")
    _takes_settings(train)
    _path(train, "--run", "directory of the run; an existing run is resumed (default: a new one under runs/)")
    _path(train, "--dataset", "train on a dataset from `dreamfleet collect`, without environments")
    text = (
        "begin a new run with the model and the actor of another, and with its settings, below presets and flags; it "
        "does not explore, unless --preset explore asks for it"
    )
    _path(train, "--from", text, metavar="RUN", dest="origin")
    _takes_checkpoint(train, "of --from: ")
    text = (
        "print the settings, where each comes from, and an estimate of the time from a short measurement, and exit; "
        "nothing is written"
    )
    train.add_argument("--dry-run", action="store_true", help=text)
    _takes_mode(train)


def _add_collect(commands: Any) -> None:
    collect = _command(commands, "collect", "collect a dataset, for `train --dataset`")
    _takes_settings(collect)
    text = "directory of the dataset; an existing one is continued up to --steps"
    _path(collect, "--out", text, required=True)
    text = "environment steps in the finished dataset (default: train.env_steps)"
    collect.add_argument("--steps", type=positive, help=text)
    text = (
        "a run whose learned policy acts, with the run's exploration; the dataset takes the run's settings "
        "(default: random actions)"
    )
    _path(collect, "--policy", text, metavar="RUN")
    _takes_checkpoint(collect, "of --policy: ")
    _takes_mode(collect)


def _add_sweep(commands: Any) -> None:
    sweep = _command(commands, "sweep", "run a table of settings and seeds, each cell as a run of its own; resumable")
    _path(sweep, "file", "a YAML file with variants and seeds, see docs/sweeps.md", metavar="FILE")
    _path(sweep, "--out", "folder of the runs; cells that are complete there are kept (default: the file's)")
    text = "cells at a time at most (default: as many as cores, memory and GPUs hold)"
    sweep.add_argument("--jobs", type=positive, metavar="COUNT", help=text)
    text = "print the cells and an estimate of the time from a short measurement of each variant, and exit"
    sweep.add_argument("--dry-run", action="store_true", help=text)
    _takes_address(
        sweep, "address of a running Ray cluster, or 'auto': its nodes take the cells (default: this machine)"
    )

    compare = _command(commands, "compare", "draw returns of runs against steps and time, beside published scores")
    text = "a run, a variant of a sweep (its seeds are one curve), or a sweep's folder"
    compare.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=text)
    text = "folder for comparison.png, .json and .md (default: that of the only RUN, or comparison/)"
    _path(compare, "--out", text)
    compare.add_argument("--against", metavar="NAME", help="the group that the others are held against")


def _add_submit(commands: Any) -> None:
    submit = _command(commands, "submit", "run a dreamfleet command on a cluster and follow its log")
    submit.usage = "dreamfleet submit TARGET [flags] -- COMMAND ..."
    submit.epilog = "example: dreamfleet submit deploy/cluster.yaml -- train --preset small --env.id Pendulum-v1"
    text = "the cluster file given to `ray up`, or the address http://HOST:8265 of a cluster's dashboard"
    submit.add_argument("target", metavar="TARGET", help=text)
    text = "a directory to send to all nodes, with the modules of your own environment"
    _path(submit, "--working-dir", text)
    text = (
        "run the command on a node with this resource, for example 'learner' (default: 'learner' if only other nodes "
        "than the head declare it, else the head)"
    )
    submit.add_argument("--on", metavar="RESOURCE", help=text)
    submit.add_argument("--follow", metavar="ID", help="follow the log of an earlier job")
    submit.add_argument("--stop", metavar="ID", help="stop an earlier job; it writes a checkpoint first")


def _add_checks(commands: Any) -> None:
    status = _command(commands, "status", "show the state of a run, from its files")
    _path(status, "directory", "directory of the run or dataset")
    status.add_argument("--json", action="store_true", help="print one JSON object")

    doctor = _command(commands, "doctor", "check this machine or a cluster before a run")
    _takes_settings(doctor)
    _path(doctor, "--run", "directory of the run, new or existing: its disk is checked")
    _takes_address(doctor, "address of a running Ray cluster, or 'auto': every node is checked (default: this machine)")

    plan = _command(commands, "plan", "calculate traffic, memory and the first bottleneck, from settings and rates")
    _takes_settings(plan)
    _path(plan, "--run", "a run whose settings and measured rates are used")
    plan.add_argument("--env-steps-per-s", type=rate, metavar="RATE", help="environment steps per second of one actor")
    plan.add_argument("--updates-per-s", type=rate, metavar="RATE", help="updates per second of the learner")
    plan.add_argument("--compression", type=rate, metavar="FACTOR", help="raw bytes per stored byte of a step")


def _add_eval_and_dream(commands: Any) -> None:
    evaluate = _command(commands, "eval", "play episodes with a run's policy: returns and videos")
    _path(evaluate, "--run", "directory of the run", required=True)
    evaluate.add_argument("--episodes", type=positive, default=5, help="episodes to play (default: 5)")
    evaluate.add_argument("--videos", type=natural, default=1, help="episodes to film (default: 1)")
    text = "seed of the first episode (default: 1000000)"
    evaluate.add_argument("--seed", type=natural, default=1_000_000, help=text)
    _takes_checkpoint(evaluate)
    text = "environment steps after which an episode is cut; 0: never (default: 10000)"
    evaluate.add_argument("--max-steps", type=natural, default=10_000, metavar="STEPS", help=text)

    dream = _command(commands, "dream", "imagine recorded sequences from their actions: video and errors")
    _path(dream, "--run", "directory of the run", required=True)
    dream.add_argument("--sequences", type=positive, default=32, help="sequences to imagine (default: 32)")
    text = "steps that the model sees first (default: records.picture_context)"
    dream.add_argument("--context", type=positive, help=text)
    dream.add_argument("--horizon", type=positive, help="steps imagined (default: records.picture_steps - context)")


def _add_view(commands: Any) -> None:
    view = _command(commands, "view", "see a run or dataset in the browser: its dreams, episodes and agent")
    _path(view, "directory", "directory of the run or dataset; it may be training meanwhile")
    view.add_argument("--port", type=port, default=0, help="port to listen on (default: 0, one that is free)")
    text = "address to listen on (default: 127.0.0.1, which only this machine reaches)"
    view.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help=text)
    text = "cpu, or cuda for a GPU that is free (default: cpu, which leaves the GPU to training)"
    view.add_argument("--device", default="cpu", help=text)
    _takes_checkpoint(view)
    view.add_argument("--open", action="store_true", help="open the page in this machine's browser")


def _add_replay(commands: Any) -> None:
    replay = _command(commands, "replay", "inspect, verify, export or import a replay")
    actions = replay.add_commands("action", "ACTION")
    info = _command(actions, "info", "show what it holds")
    verify = _command(actions, "verify", "check every chunk, and that none is missing")
    repair = _command(actions, "repair", "make a consistent replay of what is left; what is wrong is put aside")
    export = _command(actions, "export", "write it as a dataset for other tools, without loss")
    take = _command(actions, "import", "create a dataset from one that another tool wrote")
    for command in (info, verify, repair, export):
        _path(command, "directory", "of a run, a dataset or a replay")
    text = "the other tool's dataset: its directory, or the id of one in Minari, such as D4RL/door/human-v2"
    _path(take, "directory", text, metavar="FROM")
    text = "height and width to resize pictures to, as env.image_size does (default: unchanged)"
    take.add_argument("--image-size", type=side, default=0, metavar="SIDE", help=text)
    take.add_argument("--grey", action="store_true", help="convert pictures to grey, as env.grey does")
    for name, kind in (("pictures", "pictures"), ("vectors", "plain numbers"), ("one-hot", "one-hots")):
        text = f"observations to treat as {kind}, as in env.{name.replace('-', '_')}"
        take.add_argument(f"--{name}", type=name_list, default=(), metavar="NAMES", help=text)
    for command in (export, take):
        command.add_argument("--format", choices=["minari"], default="minari", help="(default: minari)")
        _path(command, "--out", "a new directory", required=True)


def _command(commands: Any, name: str, text: str) -> Parser:
    description = f"{text[0].upper()}{text[1:]}."
    added: Parser = commands.add_parser(name, help=text, description=description, allow_abbrev=False)
    return added


def _path(command: argparse.ArgumentParser, name: str, text: str, metavar: str = "DIR", **options: Any) -> None:
    command.add_argument(name, type=Path, metavar=metavar, help=text, **options)


def _takes_settings(command: argparse.ArgumentParser) -> None:
    command.epilog = settings_help()
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    text = "a built-in preset or a YAML file; may be repeated, later ones override"
    command.add_argument("--preset", action="append", default=[], metavar="NAME", help=text)


def _takes_checkpoint(command: argparse.ArgumentParser, of: str = "") -> None:
    text = (
        f"{of}newest, best (by evaluation return, or by held-out loss without evaluations), or a number of updates "
        "(default: newest)"
    )
    command.add_argument("--checkpoint", type=checkpoint, default="newest", metavar="NAME", help=text)


def _takes_mode(command: argparse.ArgumentParser) -> None:
    text = "run everything in this process, without Ray: repeatable, for debugging"
    command.add_argument("--inline", action="store_true", help=text)
    _takes_address(command)


def _takes_address(
    command: argparse.ArgumentParser,
    text: str = "address of a running Ray cluster, or 'auto' (default: start Ray on this machine)",
) -> None:
    command.add_argument("--address", metavar="ADDRESS", help=text)


def _long_flags(parser: Parser, command: str) -> list[str]:
    known = (name for argument in parser.commands[command].arguments for name in argument.option_strings)
    return [flag.removeprefix("--") for flag in known if flag.startswith("--")]
