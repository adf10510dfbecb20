"""The command line: parses, checks the settings and calls the command; only commands import heavy libraries."""

from __future__ import annotations

import argparse
import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from dreamfleet import __version__
from dreamfleet.common.errors import UserError, nearest
from dreamfleet.common.settings import Settings
from dreamfleet.deploy.resolve import describe_settings, known_paths, preset_names, preset_summary, resolve


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 bad input, 130 or 143 stopped by a signal."""
    try:
        return _run(sys.argv[1:] if arguments is None else list(arguments))
    except UserError as error:
        print(f"dreamfleet: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ndreamfleet: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone: nobody is left to tell
        return 1


def _run(arguments: list[str]) -> int:
    parser = _parser()
    if not arguments:
        parser.print_help()
        return 2
    given, rest = parser.parse_known_args(arguments)
    flags = _overrides(rest, takes_settings=given.command == "train", parser_flags=_flags_of(parser, given.command))
    return _COMMANDS[given.command](given, flags)


def _train(given: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    from dreamfleet.deploy.run_directory import RunDirectory

    run = RunDirectory(given.run) if given.run else None
    base = run.config_file if run and run.config_file.exists() else None
    settings = resolve(given.preset, flags, base=base)
    run = run or RunDirectory.new(given.preset[-1] if given.preset else settings.env.id)
    from dreamfleet.deploy.train import train

    return train(run, settings, inline=given.inline, address=given.address)


def _eval(given: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    del flags
    from dreamfleet.deploy.run_directory import RunDirectory

    run = RunDirectory(given.run).existing()
    from dreamfleet.deploy.evaluate import evaluate

    return evaluate(run, episodes=given.episodes, seed=given.seed, videos=given.videos, max_steps=given.max_steps)


def _dream(given: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    del flags
    from dreamfleet.deploy.run_directory import RunDirectory

    run = RunDirectory(given.run).existing()
    from dreamfleet.deploy.dream import dream_command

    return dream_command(run, sequences=given.sequences, context=given.context, horizon=given.horizon)


def _replay(given: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    del flags
    from dreamfleet.deploy.inspect_replay import info, verify

    return {"info": info, "verify": verify}[given.action](given.directory)


def _presets(given: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    del given, flags
    for name in preset_names():
        print(f"{name:<12} {preset_summary(name)}")
    return 0


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, as everything else here does."""

    def error(self, message: str) -> NoReturn:
        """Raise the sentence instead of printing the usage and leaving."""
        wrong = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        hint = nearest(wrong[1], re.findall(r"[a-z]+", wrong[2])) if wrong else ""
        raise UserError(f"{message}.{hint} `{self.prog} --help` tells more.")


_COMMANDS = {"train": _train, "eval": _eval, "dream": _dream, "replay": _replay, "presets": _presets}


def _parser() -> _Parser:
    parser = _Parser(
        prog="dreamfleet",
        allow_abbrev=False,
        description="Learn RSSM world models from pixels with actors and a learner.",
    )
    parser.add_argument("--version", action="version", version=f"dreamfleet {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = _command(commands, "train", "collect and train, or resume a run")
    train.epilog = _settings_help()
    train.formatter_class = argparse.RawDescriptionHelpFormatter
    train.add_argument("--preset", action="append", default=[], metavar="NAME",
                       help="a built-in preset or a YAML file; several: the later over the earlier")  # fmt: skip
    train.add_argument("--run", type=Path, metavar="DIR", help="the run's directory; an existing run is resumed "
                       "(default: a new one under runs/)")  # fmt: skip
    train.add_argument(
        "--inline", action="store_true", help="all in this process, without Ray: repeatable, for debugging"
    )
    train.add_argument("--address", metavar="ADDRESS", help="a running Ray cluster, for example 'auto' "
                       "(default: start Ray on this machine)")  # fmt: skip

    evaluate = _command(commands, "eval", "play episodes with a run's policy: returns and videos")
    evaluate.add_argument("--run", type=Path, required=True, metavar="DIR", help="the run's directory")
    evaluate.add_argument("--episodes", type=_positive, default=5, help="episodes to play (default: 5)")
    evaluate.add_argument("--videos", type=_natural, default=1, help="episodes to film (default: 1)")
    evaluate.add_argument(
        "--seed", type=_natural, default=1_000_000, help="seed of the first episode (default: 1000000)"
    )

    evaluate.add_argument("--max-steps", type=_natural, default=10_000, metavar="STEPS", help="environment steps after "
                          "which an episode is cut; 0: never (default: 10000)")  # fmt: skip

    dream = _command(commands, "dream", "imagine recorded sequences from their actions alone: video and error")
    dream.add_argument("--run", type=Path, required=True, metavar="DIR", help="the run's directory")
    dream.add_argument("--sequences", type=_positive, default=32, help="sequences to imagine (default: 32)")
    dream.add_argument(
        "--context", type=_positive, help="steps seen before imagining (default: records.picture_context)"
    )
    dream.add_argument("--horizon", type=_positive, help="steps imagined (default: records.picture_steps - context)")

    replay = _command(commands, "replay", "look into a replay directory")
    replay.add_argument("action", choices=["info", "verify"], help="info: what it holds; verify: check every record")
    replay.add_argument("directory", type=Path, metavar="DIR", help="a run's directory or a replay directory")

    _command(commands, "presets", "list the built-in presets")
    return parser


def _command(commands: argparse._SubParsersAction, name: str, text: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.",
                                                        allow_abbrev=False)  # fmt: skip
    return made


def _flags_of(parser: argparse.ArgumentParser, command: str) -> list[str]:
    """Return the long flags that a command has beside the settings."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            known = action.choices[command]._option_string_actions
            return [flag.removeprefix("--") for flag in known if flag.startswith("--")]
    return []


def _overrides(rest: list[str], takes_settings: bool, parser_flags: list[str]) -> list[tuple[str, str]]:
    """Return (path, text) for what the parser did not know: `--path value` or `--path=value`.

    Raises:
        UserError: for words that are no settings, with the nearest that is.
    """
    known = [*parser_flags, *(known_paths() if takes_settings else [])]
    flags, words = [], list(rest)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise UserError(f"'{word}' is not understood: settings are given as '--path value'.")
        path, equals, text = word.removeprefix("--").partition("=")
        if not takes_settings or path.split(".", 1)[0] not in {name.split(".", 1)[0] for name in known}:
            raise UserError(f"there is no flag --{path}.{nearest(path, known)}")
        if not equals:
            if not words or (words[0].startswith("--")):
                raise UserError(f"flag --{path}: a value is missing: '--{path} VALUE'.")
            text = words.pop(0)
        flags.append((path, text))
    return flags


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


def _positive(text: str) -> int:
    value = _natural(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def _natural(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return value
