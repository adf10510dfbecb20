"""The command line: reads arguments and calls the command; only commands import heavy libraries.

All but the standard library is imported within `main`, which makes one line of a Ctrl-C, also in the first second.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from dreamfleet.common.errors import OBSTACLES, RunFailedError, UserError, obstacle_in_words
from dreamfleet.deploy.import_interrupt import INTERRUPTED, imports_interrupted_at_once

if TYPE_CHECKING:
    import argparse

    from dreamfleet.common.settings.schema import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 bad input, 130 or 143 stopped by a signal."""
    try:
        with imports_interrupted_at_once():
            return _run(sys.argv[1:] if arguments is None else list(arguments))
    except UserError as error:
        print(f"dreamfleet: {error}", file=sys.stderr)
        return 2
    except RunFailedError:  # the log has said why, on the terminal too
        return 1
    except OBSTACLES as error:
        print(f"dreamfleet: {obstacle_in_words(error)}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(INTERRUPTED)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # whatever read our output is gone
        return 1


def _run(arguments: list[str]) -> int:
    from dreamfleet.deploy.parser import make_parser, parse
    from dreamfleet.deploy.workers.address import use_token

    if not arguments:
        make_parser().print_help()
        return 2
    given = parse(arguments)
    if getattr(given, "address", None):
        use_token()
    return _COMMANDS[given.command](given)


def _train(given: argparse.Namespace) -> int:
    from dreamfleet.common.settings.resolve import resolve_with_sources
    from dreamfleet.deploy.run_directory import RunDirectory

    run = RunDirectory(given.run) if given.run else None
    base = run.config_file if run and run.config_file.exists() else None
    flags = [*given.flags, ("train.dataset", str(given.dataset))] if given.dataset else given.flags
    if given.checkpoint != "newest" and not given.origin:
        raise UserError("flag --checkpoint: it is of --from RUN, which is not given.")
    if run and not run.path.exists() and not (given.preset or flags or given.origin):  # most likely it is mistyped
        try:
            run.existing()
        except UserError as error:
            raise UserError(f"{error} For a new run say what it is to be: --preset NAME or --env.id ID.") from None
    if given.origin:
        from dreamfleet.deploy.run.origin import check_same_origin, settings_from

        origin = RunDirectory(given.origin).existing("--from")
        if run and base:
            check_same_origin(run, origin)
    if given.origin and not base:
        settings, sources = settings_from(origin, given.checkpoint, given.preset, flags)
    else:
        settings, sources = resolve_with_sources(given.preset, flags, base=base)
    run = run or RunDirectory.new(given.preset[-1] if given.preset else settings.env.id)
    from dreamfleet.deploy.run.prepare_training import check_environment_flags

    check_environment_flags(settings, flags)
    if given.dry_run:
        from dreamfleet.deploy.run.dry_run import dry_run

        return dry_run(run, settings, sources, inline=given.inline, address=given.address)
    from dreamfleet.deploy.run.runs import train

    return train(settings, directory=run.shown, inline=given.inline, address=given.address).exit_code


def _collect(given: argparse.Namespace) -> int:
    from dreamfleet.deploy.run.prepare_collecting import settings_to_collect
    from dreamfleet.deploy.run.runs import collect
    from dreamfleet.deploy.run_directory import RunDirectory

    if given.checkpoint != "newest" and not given.policy:
        raise UserError("flag --checkpoint: it is of --policy RUN, which is not given.")
    run = RunDirectory(given.out)
    policy = RunDirectory(given.policy).existing("--policy") if given.policy else None
    result = collect(
        settings_to_collect(given.preset, given.flags, run, policy),
        directory=given.out,
        steps=given.steps,
        policy=given.policy,
        checkpoint=given.checkpoint,
        inline=given.inline,
        address=given.address,
    )
    return result.exit_code


def _sweep(given: argparse.Namespace) -> int:
    from dreamfleet.deploy.sweep.sweep import sweep

    return sweep(given.file, given.out, given.jobs, given.address, is_dry=given.dry_run)


def _compare(given: argparse.Namespace) -> int:
    from dreamfleet.deploy.compare.compare import print_comparison

    return print_comparison(given.runs, given.out, given.against)


def _submit(given: argparse.Namespace) -> int:
    from dreamfleet.deploy.submit.submit import submit

    return submit(given.target, given.arguments, given.working_dir, follow=given.follow, stop=given.stop, on=given.on)


def _status(given: argparse.Namespace) -> int:
    from dreamfleet.deploy.monitoring.status import status
    from dreamfleet.deploy.run_directory import RunDirectory

    return status(RunDirectory(given.directory), as_json=given.json)


def _doctor(given: argparse.Namespace) -> int:
    from dreamfleet.deploy.doctor.doctor import doctor

    return doctor(_settings_of(given), address=given.address, directory=given.run)


def _plan(given: argparse.Namespace) -> int:
    from dreamfleet.deploy.plan.plan import plan

    return plan(
        _settings_of(given),
        run=given.run,
        env_steps_per_s=given.env_steps_per_s,
        updates_per_s=given.updates_per_s,
        compression=given.compression,
    )


def _settings_of(given: argparse.Namespace) -> Settings:
    """Return the settings of --run if it exists, under those of presets and flags."""
    from dreamfleet.common.settings.resolve import resolve
    from dreamfleet.deploy.run_directory import RunDirectory

    base = RunDirectory(given.run).existing().config_file if given.run and given.run.exists() else None
    return resolve(given.preset, given.flags, base=base)


def _eval(given: argparse.Namespace) -> int:
    from dreamfleet.deploy.run_directory import RunDirectory

    RunDirectory(given.run).existing()  # said before torch is imported
    from dreamfleet.deploy.run.evaluate import evaluate

    evaluate(
        given.run,
        episodes=given.episodes,
        seed=given.seed,
        videos=given.videos,
        max_steps=given.max_steps,
        checkpoint=given.checkpoint,
        say=partial(print, flush=True),
    )
    return 0


def _dream(given: argparse.Namespace) -> int:
    from dreamfleet.deploy.run_directory import RunDirectory

    RunDirectory(given.run).existing()  # said before torch is imported
    from dreamfleet.deploy.run.runs import dream

    dreamt = dream(given.run, sequences=given.sequences, context=given.context, horizon=given.horizon)
    print(dreamt.describe(), *dreamt.files, sep="\n")
    return 0


def _view(given: argparse.Namespace) -> int:
    from dreamfleet.deploy.run_directory import RunDirectory

    RunDirectory(given.directory).existing("")  # said before torch is imported
    from dreamfleet.deploy.view.view import view

    return view(given.directory, given.host, given.port, given.device, given.checkpoint, opens=given.open)


def _replay(given: argparse.Namespace) -> int:
    from dreamfleet.replay.report import print_faults, print_info

    if given.action == "info":
        return print_info(given.directory)
    if given.action == "verify":
        return print_faults(given.directory)
    if given.action == "repair":
        from dreamfleet.replay.repair import print_repair

        return print_repair(given.directory)
    from dreamfleet.actors.spaces.entries import NamedEntries
    from dreamfleet.deploy.minari import exchange

    if given.action == "export":
        return exchange.export_replay(given.directory, given.out)
    named = NamedEntries(given.pictures, given.vectors, given.one_hot, prefix="")
    change = exchange.PictureChange(given.image_size, given.grey)
    return exchange.import_replay(given.directory, given.out, named, change)


def _presets(_: argparse.Namespace) -> int:
    from dreamfleet.common.settings.presets import preset_names, preset_summary

    names = preset_names()
    width = max(map(len, names))
    for name in names:
        print(f"{name:<{width}} {preset_summary(name)}")
    return 0


_COMMANDS = {
    "train": _train,
    "collect": _collect,
    "sweep": _sweep,
    "compare": _compare,
    "submit": _submit,
    "status": _status,
    "doctor": _doctor,
    "plan": _plan,
    "eval": _eval,
    "dream": _dream,
    "view": _view,
    "replay": _replay,
    "presets": _presets,
}
