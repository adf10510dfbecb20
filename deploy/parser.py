"""What the command line takes: each command, its flags and its help."""

from __future__ import annotations

import argparse
import inspect
import re
import shutil
import textwrap
from pathlib import Path
from typing import Any, NoReturn

from dreamfleet import __version__
from dreamfleet.common.errors import UserError, nearest
from dreamfleet.common.settings.resolve import describe_settings
from dreamfleet.common.settings.schema import Settings

TAKE_SETTINGS = ("train", "collect", "doctor", "plan")
"""Commands that take settings as flags."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, as everything else here does."""

    def error(self, message: str) -> NoReturn:
        """Raise the sentence instead of printing the usage and leaving."""
        wrong = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        hint = nearest(wrong[1], re.findall(r"[a-z]+", wrong[2])) if wrong else ""
        raise UserError(f"{message}.{hint} `{self.prog} --help` tells more.")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = _Parser(
        prog="dreamfleet",
        allow_abbrev=False,
        description="Learn RSSM world models from pixels with actors and a learner.",
    )
    parser.add_argument("--version", action="version", version=f"dreamfleet {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_train, _add_collect, _add_submit, _add_status, _add_doctor, _add_plan, _add_eval, _add_dream,
                _add_replay):  # fmt: skip
        add(commands)
    _command(commands, "presets", "list the built-in presets")
    return parser


def _add_train(commands: Any) -> None:
    train = _command(commands, "train", "collect and train, or resume a run")
    _takes_settings(train)
    train.add_argument("--run", type=Path, metavar="DIR", help="the run's directory; an existing run is resumed "
                       "(default: a new one under runs/)")  # fmt: skip
    train.add_argument("--dataset", type=Path, metavar="DIR", help="train on what `dreamfleet collect` stored there, "
                       "without environments")  # fmt: skip
    train.add_argument("--dry-run", action="store_true", help="print the settings, what each came from, and how long "
                       "it will take by a first measurement, and end; nothing is written")  # fmt: skip
    _takes_inline(train)
    _takes_address(train)


def _add_collect(commands: Any) -> None:
    collect = _command(commands, "collect", "only collect, into a dataset that `train --dataset` trains from")
    _takes_settings(collect)
    collect.add_argument("--out", type=Path, required=True, metavar="DIR", help="the dataset's directory; one that "
                         "holds less than --steps is continued")  # fmt: skip
    collect.add_argument("--steps", type=_positive, help="environment steps that the dataset is to hold "
                         "(default: train.env_steps)")  # fmt: skip
    collect.add_argument("--policy", type=Path, metavar="RUN", help="a run whose learned policy acts, exploring as it "
                         "did; its settings are the new dataset's (default: actions by chance)")  # fmt: skip
    collect.add_argument("--checkpoint", choices=["newest", "best"], default="newest", help="of --policy; best: by "
                         "evaluation return, or held-out loss if nothing was evaluated (default: newest)")  # fmt: skip
    collect.add_argument("--actors", metavar="COUNT", help="short for --actors.count")
    _takes_inline(collect)
    _takes_address(collect)


def _add_submit(commands: Any) -> None:
    submit = _command(commands, "submit", "run a dreamfleet command on a cluster and follow its log")
    submit.usage = "dreamfleet submit TARGET [flags] -- COMMAND ..."
    submit.epilog = "example: dreamfleet submit deploy/cluster.yaml -- train --preset small --env.id Pendulum-v1"
    submit.add_argument("target", metavar="TARGET", help="the file that `ray up` was given, or the address "
                        "http://HOST:8265 of a cluster's dashboard")  # fmt: skip
    submit.add_argument("--working-dir", type=Path, metavar="DIR", help="a directory whose modules all nodes are to "
                        "have, for an environment of your own")  # fmt: skip
    submit.add_argument("--on", metavar="RESOURCE", help="run the command on a node with this resource, for example "
                        "'learner' (default: the head, unless only others are declared to have it)")  # fmt: skip
    submit.add_argument("--follow", metavar="ID", help="follow the log of a job submitted before")
    submit.add_argument("--stop", metavar="ID", help="end a job submitted before: it writes a checkpoint first")


def _add_status(commands: Any) -> None:
    status = _command(commands, "status", "say how a run stands, from its files alone")
    status.add_argument("directory", type=Path, metavar="DIR", help="the run's directory")
    status.add_argument("--json", action="store_true", help="as one JSON object")


def _add_doctor(commands: Any) -> None:
    doctor = _command(commands, "doctor", "check this machine or a cluster before a run")
    _takes_settings(doctor)
    doctor.add_argument("--run", type=Path, metavar="DIR", help="where the run is to be, or is: its disk is checked")
    _takes_address(doctor)


def _add_plan(commands: Any) -> None:
    plan = _command(commands, "plan", "work out traffic, memory and what saturates first, from settings and rates")
    _takes_settings(plan)
    plan.add_argument("--run", type=Path, metavar="DIR", help="a run whose settings and measured rates are taken")
    plan.add_argument("--env-steps-per-s", type=_rate, metavar="RATE", help="environment steps per second of one actor")
    plan.add_argument("--updates-per-s", type=_rate, metavar="RATE", help="updates per second of the learner")
    plan.add_argument("--compression", type=_rate, metavar="FACTOR", help="raw bytes per stored byte of a step")


def _add_eval(commands: Any) -> None:
    evaluate = _command(commands, "eval", "play episodes with a run's policy: returns and videos")
    evaluate.add_argument("--run", type=Path, required=True, metavar="DIR", help="the run's directory")
    evaluate.add_argument("--episodes", type=_positive, default=5, help="episodes to play (default: 5)")
    evaluate.add_argument("--videos", type=_natural, default=1, help="episodes to film (default: 1)")
    evaluate.add_argument(
        "--seed", type=_natural, default=1_000_000, help="seed of the first episode (default: 1000000)"
    )
    evaluate.add_argument("--checkpoint", choices=["newest", "best"], default="newest", help="best: by evaluation "
                          "return, or held-out loss where nothing was evaluated (default: newest)")  # fmt: skip
    evaluate.add_argument("--max-steps", type=_natural, default=10_000, metavar="STEPS", help="environment steps after "
                          "which an episode is cut; 0: never (default: 10000)")  # fmt: skip


def _add_dream(commands: Any) -> None:
    dream = _command(commands, "dream", "imagine recorded sequences from their actions alone: video and error")
    dream.add_argument("--run", type=Path, required=True, metavar="DIR", help="the run's directory")
    dream.add_argument("--sequences", type=_positive, default=32, help="sequences to imagine (default: 32)")
    dream.add_argument(
        "--context", type=_positive, help="steps seen before imagining (default: records.picture_context)"
    )
    dream.add_argument("--horizon", type=_positive, help="steps imagined (default: records.picture_steps - context)")


def _add_replay(commands: Any) -> None:
    replay = _command(commands, "replay", "look into a replay, give it away or take one in")
    actions = replay.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in (("info", "say what it holds"), ("verify", "check every record")):
        _command(actions, name, text).add_argument("directory", type=Path, metavar="DIR",
                                                   help="a run's, a dataset's or a replay's directory")  # fmt: skip
    export = _command(actions, "export", "write it as a dataset that other tools read, without loss")
    export.add_argument("directory", type=Path, metavar="DIR", help="a run's, a dataset's or a replay's directory")
    take = _command(actions, "import", "make a dataset of one that another tool wrote")
    take.add_argument("directory", type=Path, metavar="FROM", help="the other tool's dataset: its directory, or "
                      "the id of one that Minari has here or can download, as D4RL/door/human-v2")  # fmt: skip
    take.add_argument("--image-size", type=_side, default=0, metavar="SIDE", help="resize pictures to this side, by "
                      "area, as env.image_size does (default: as they are)")  # fmt: skip
    take.add_argument("--grey", action="store_true", help="turn pictures grey, as env.grey does")
    for flag, text in (("pictures", "pictures"), ("vectors", "plain numbers"), ("one-hot", "one-hots")):
        setting = f"env.{flag.replace('-', '_')}"
        take.add_argument(f"--{flag}", type=_name_list, default=(), metavar="NAMES",
                          help=f"observations that are {text}, as {setting} names them")  # fmt: skip
    for command in (export, take):
        command.add_argument("--format", choices=["minari"], default="minari", help="(default: minari)")
        command.add_argument("--out", type=Path, required=True, metavar="DIR", help="a directory that is not there yet")


def _takes_settings(command: argparse.ArgumentParser) -> None:
    command.epilog = _settings_help()
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.add_argument("--preset", action="append", default=[], metavar="NAME",
                         help="a built-in preset or a YAML file; several: the later over the earlier")  # fmt: skip


def _takes_inline(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--inline", action="store_true", help="all in this process, without Ray: repeatable, for debugging"
    )


def _takes_address(command: argparse.ArgumentParser) -> None:
    command.add_argument("--address", metavar="ADDRESS", help="a running Ray cluster, for example 'auto' "
                         "(default: this machine alone)")  # fmt: skip


def _command(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.",
                                                        allow_abbrev=False)  # fmt: skip
    return made


def _settings_help() -> str:
    """Return all settings, their types, defaults and meanings, as text."""
    width = min(shutil.get_terminal_size((100, 20)).columns, 120)
    lines = ["settings (give as '--path value'; presets set several at once, see `dreamfleet presets`):", ""]
    section = ""
    for path, kind, default, meaning in describe_settings():
        head = path.split(".", 1)[0] if "." in path else ""
        if head != section:
            heading = inspect.getdoc(Settings.model_fields[head].annotation)
            lines += ["", f"{head}: {heading}", ""]
            section = head
        lines.append(f"  --{path}  [{kind}; default: {default}]")
        lines += textwrap.wrap(meaning, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _name_list(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.strip("[] ").split(","))


def _positive(text: str) -> int:
    value = _natural(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def _side(text: str) -> int:
    value = _positive(text)
    if value % 16:
        raise argparse.ArgumentTypeError(f"{text} is no multiple of 16, as encoders want it; most take 64")
    return value


def _natural(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return value


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not greater than 0")
    return value
