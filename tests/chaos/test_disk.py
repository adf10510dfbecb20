"""Full disks and damaged files: a run ends with a sentence, or goes on; what was acknowledged and is whole stays."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chaos_run import FAULTS, ChaosRun, chaos_settings
from conftest import SEED

from dreamfleet.deploy.command_line import main
from dreamfleet.deploy.run.runs import train

NewRun = Callable[..., ChaosRun]
STEPS = 601


# Full disks -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def mount() -> Iterator[Callable[[Path, int], None]]:
    """Return a function that mounts a small file system of some kilobytes on a directory, or resizes it."""
    mounted: list[Path] = []

    def on(directory: Path, kilobytes: int) -> None:
        options = f"size={kilobytes}k" + (",remount" if directory in mounted else "")
        directory.mkdir(parents=True, exist_ok=True)
        command = ["/usr/bin/mount", "-t", "tmpfs", "-o", options, "chaos", str(directory)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
        mounted.append(directory)

    yield on
    for directory in dict.fromkeys(mounted):
        subprocess.run(["/usr/bin/umount", "-l", str(directory)], check=False)  # noqa: S603


@pytest.mark.parametrize(
    ("part", "kilobytes"),
    [
        ("replay", 60),
        pytest.param(".", 260, marks=pytest.mark.chaos),
        pytest.param(".", 120, marks=pytest.mark.chaos),
        pytest.param(".", 40, marks=pytest.mark.chaos),
        pytest.param(".", 4, marks=pytest.mark.chaos),
        pytest.param("replay", 4, marks=pytest.mark.chaos),
        pytest.param("checkpoints", 100, marks=pytest.mark.chaos),
        pytest.param("checkpoints", 8, marks=pytest.mark.chaos),
        pytest.param("tensorboard", 4, marks=pytest.mark.chaos),
        pytest.param("pictures", 4, marks=pytest.mark.chaos),
    ],
)
def test_a_full_disk_is_one_sentence_and_what_was_stored_stays(
    new_run: NewRun, mount: Callable[[Path, int], None], part: str, kilobytes: int
) -> None:
    """The run ends by a sentence, or does without; once there is room it completes what it owes."""
    settings = chaos_settings(
        env={"kwargs": {"length": 20, "image": 16}},
        train={"env_steps": STEPS},
        records={"picture_every": 10, "picture_context": 3, "picture_steps": 12},
    )
    run = new_run(settings, inline=True)
    place = run.directory / part
    if part != ".":
        run.directory.mkdir()
    mount(place, kilobytes)
    FAULTS[f"disk full at {kilobytes} kB of {'the whole run' if part == '.' else part}"] += 1
    run.start()
    code = run.end(within_s=300)
    assert code in {0, 1}, run.printed
    assert "Traceback" not in run.printed, run.printed
    if code:
        assert "space" in run.printed or "full" in run.printed, run.printed
    mount(place, 20_000)
    run.start()
    assert run.end(within_s=300) == 0, run.printed
    run.check(is_complete=True)


# Damaged files --------------------------------------------------------------------------------------------------------


def _cut(file: Path, rng: random.Random) -> None:
    os.truncate(file, rng.randrange(file.stat().st_size + 1))


def _empty(file: Path, rng: random.Random) -> None:
    os.truncate(file, 0)


def _flip(file: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(3 if content else 0):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def _fill(file: Path, rng: random.Random) -> None:
    file.write_bytes(rng.randbytes(file.stat().st_size))


def _append(file: Path, rng: random.Random) -> None:
    file.write_bytes(file.read_bytes() + rng.randbytes(100))


def _delete(file: Path, rng: random.Random) -> None:
    file.unlink()


def _replace_by_directory(file: Path, rng: random.Random) -> None:
    file.unlink()
    file.mkdir()


DAMAGES = [_cut, _empty, _flip, _fill, _append, _delete, _replace_by_directory]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run that was stopped half way, with files of every kind."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    settings = chaos_settings(
        train={"env_steps": STEPS},
        records={"picture_every": 10, "picture_context": 3, "picture_steps": 12, "evaluate_every": 300},
    )
    assert train(settings, directory=directory, inline=True).exit_code == 0
    return directory


def kinds_of_files(directory: Path) -> dict[str, list[Path]]:
    """Return the files of a run, relative to it, by the kind of file they are."""
    kinds: dict[str, list[Path]] = {}
    for file in sorted(path.relative_to(directory) for path in directory.rglob("*") if path.is_file()):
        name = "".join("#" if letter.isdigit() else letter for letter in file.as_posix())
        kind = name if "tfevents" not in name else "tensorboard"
        kinds.setdefault(kind, []).append(file)
    return kinds


def complaint_of(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return what is wrong with how a command ended: it must have worked, or said in a sentence why not."""
    try:
        code = main(command)
    except BaseException as error:  # noqa: BLE001 (whatever comes out of it, the user would see as a traceback)
        return f"{command} raised {type(error).__name__}: {error}"
    printed = capsys.readouterr()
    if code not in {0, 1, 2}:
        return f"{command} returned {code}"
    if "Traceback" in printed.out + printed.err:
        return f"{command} printed a traceback: {printed.err[-2000:]}"
    return f"{command} returned {code} without a sentence" if code and not (printed.err + printed.out).strip() else ""


@pytest.mark.parametrize(
    "times", [1, pytest.param(len(DAMAGES), marks=[pytest.mark.chaos, pytest.mark.hangs_after(3600)])]
)
def test_a_damaged_file_is_a_sentence_or_no_harm(
    whole: Path, tmp_path: Path, times: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command that reads a run, and the run itself, says what is wrong, or goes on without the file."""
    rng = random.Random(SEED)
    complaints = []
    for turn in range(times):
        for kind, files in kinds_of_files(whole).items():
            file, damage = rng.choice(files), DAMAGES[turn % len(DAMAGES)] if times > 1 else rng.choice(DAMAGES)
            broken = tmp_path / "run"
            shutil.copytree(whole, broken)
            damage(broken / file, rng)
            FAULTS[f"damaged: {kind}"] += 1
            more = ["--train.env_steps", str(STEPS + 60)]
            for command in (
                ["status", str(broken)],
                ["replay", "info", str(broken)],
                ["replay", "verify", str(broken)],
                ["train", "--run", str(broken), "--inline", *more],
            ):
                complaint = complaint_of(command, capsys)
                if complaint:
                    complaints.append(f"seed {SEED}, {damage.__name__} of {file}: {complaint}")
            shutil.rmtree(broken, ignore_errors=True)
    assert not complaints, "\n".join(complaints)
