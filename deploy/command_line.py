"""The command line: parses, checks the settings and calls the command; only commands import heavy libraries."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from dreamfleet.common.errors import UserError, nearest
from dreamfleet.common.settings.resolve import known_paths, preset_names, preset_summary, resolve, resolve_with_sources
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.parser import TAKE_SETTINGS, make_parser
from dreamfleet.deploy.workers.token import use_token


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 bad input, 130 or 143 stopped by a signal."""
    try:
        return _run(sys.argv[1:] if arguments is None else list(arguments))
    except UserError as error:
        print(f"dreamfleet: {error}", file=sys.stderr)
        return 2
    except PermissionError as error:
        what = error.filename or "a file"
        print(f"dreamfleet: {what} may not be read or written: permission denied.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ndreamfleet: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone: nobody is left to tell
        return 1


def _run(arguments: list[str]) -> int:
    if not arguments:
        make_parser().print_help()
        return 2
    given, flags = parse(arguments)
    if getattr(given, "address", None):
        use_token()
    return _COMMANDS[given.command](given, flags)


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """Return what the parser knows, and the settings as (path, text).

    Raises:
        UserError: for an unknown command or flag, or a word that is none, with the nearest that is.
    """
    parser = make_parser()
    split = arguments.index("--") if arguments[0] == "submit" and "--" in arguments else len(arguments)
    given, rest = parser.parse_known_args(arguments[:split])
    given.arguments = arguments[split + 1 :]
    if given.command == "submit" and rest and not rest[0].startswith("--"):
        raise UserError(f"'{rest[0]}' is not understood: the command to run stands after '--'.")
    flags = _overrides(
        rest, takes_settings=given.command in TAKE_SETTINGS, parser_flags=_flags_of(parser, given.command)
    )
    return given, flags


def _train(given: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    from dreamfleet.deploy.run_directory import RunDirectory

    run = RunDirectory(given.run) if given.run else None
    base = run.config_file if run and run.config_file.exists() else None
    flags = [*flags, ("train.dataset", str(given.dataset))] if given.dataset else flags
    settings, sources = resolve_with_sources(given.preset, flags, base=base)
    run = run or RunDirectory.new(given.preset[-1] if given.preset else settings.env.id)
    from dreamfleet.deploy.run.train import check_environment_flags, train

    check_environment_flags(settings, flags)
    if given.dry_run:
        from dreamfleet.deploy.run.dry_run import dry_run

        return dry_run(run, settings, sources, inline=given.inline, address=given.address)
    return train(run, settings, inline=given.inline, address=given.address)


def _eval(given: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    del flags
    from dreamfleet.deploy.run_directory import RunDirectory

    run = RunDirectory(given.run).existing()
    from dreamfleet.deploy.run.evaluate import evaluate

    return evaluate(
        run,
        episodes=given.episodes,
        seed=given.seed,
        videos=given.videos,
        max_steps=given.max_steps,
        checkpoint=given.checkpoint,
    )


def _dream(given: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    del flags
    from dreamfleet.deploy.run_directory import RunDirectory

    run = RunDirectory(given.run).existing()
    from dreamfleet.deploy.run.dream import dream_command

    return dream_command(run, sequences=given.sequences, context=given.context, horizon=given.horizon)


def _collect(given: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    from dreamfleet.deploy.run.collect import collect, settings_to_collect
    from dreamfleet.deploy.run_directory import RunDirectory

    run = RunDirectory(given.out)
    policy = RunDirectory(given.policy).existing("--policy") if given.policy else None
    flags = [*flags, ("actors.count", given.actors)] if given.actors else flags
    return collect(
        run,
        settings_to_collect(given.preset, flags, run, policy),
        steps=given.steps,
        inline=given.inline,
        address=given.address,
        policy=policy,
        checkpoint=given.checkpoint,
    )


def _submit(given: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    del flags
    from dreamfleet.deploy.submit.submit import submit

    return submit(given.target, given.arguments, given.working_dir, follow=given.follow, stop=given.stop, on=given.on)


def _status(given: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    del flags
    from dreamfleet.deploy.monitoring.status import status
    from dreamfleet.deploy.run_directory import RunDirectory

    return status(RunDirectory(given.directory), as_json=given.json)


def _doctor(given: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    from dreamfleet.deploy.doctor.doctor import doctor

    return doctor(_settings_of(given, flags), address=given.address, directory=given.run)


def _plan(given: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    from dreamfleet.deploy.plan.plan import plan

    return plan(
        _settings_of(given, flags),
        run=given.run,
        env_steps_per_s=given.env_steps_per_s,
        updates_per_s=given.updates_per_s,
        compression=given.compression,
    )


def _settings_of(given: argparse.Namespace, flags: list[tuple[str, str]]) -> Settings:
    """Return the settings of a run that is there, or of presets and flags."""
    from dreamfleet.deploy.run_directory import RunDirectory

    base = RunDirectory(given.run).existing().config_file if given.run and given.run.exists() else None
    return resolve(given.preset, flags, base=base)


def _replay(given: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    del flags
    from dreamfleet.deploy.run import inspect_replay

    if given.action in ("info", "verify"):
        return {"info": inspect_replay.info, "verify": inspect_replay.verify}[given.action](given.directory)
    from dreamfleet.actors.spaces.entries import NamedEntries
    from dreamfleet.deploy.minari import exchange
    from dreamfleet.deploy.minari.picture_change import PictureChange

    if given.action == "export":
        return exchange.export_replay(given.directory, given.out)
    named = NamedEntries(given.pictures, given.vectors, given.one_hot, prefix="")
    change = PictureChange(given.image_size, given.grey)
    return exchange.import_replay(given.directory, given.out, named, change)


def _presets(given: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    del given, flags
    for name in preset_names():
        print(f"{name:<12} {preset_summary(name)}")
    return 0


_COMMANDS = {
    "train": _train,
    "collect": _collect,
    "submit": _submit,
    "status": _status,
    "doctor": _doctor,
    "plan": _plan,
    "eval": _eval,
    "dream": _dream,
    "replay": _replay,
    "presets": _presets,
}


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
