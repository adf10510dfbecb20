"""The command line's own manners: help, and one sentence for what is wrong, quickly and without heavy imports."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from dreamfleet.common.errors import UserError
from dreamfleet.deploy.command_line import main
from dreamfleet.deploy.run_directory import RunDirectory

PACKAGE = Path(__file__).resolve().parents[2] / ".pkg"


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("dreamfleet: ")
    assert printed.err.count("\n") == 1, "one sentence, on one line"
    return printed.err


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["trian"], ["'trian'", "Did you mean 'train'"]),
        (["train", "--trian.env_steps", "3"], ["--trian.env_steps", "Did you mean '--train.env_steps'"]),
        (["train", "--env.idd", "x"], ["env.idd", "Did you mean 'env.id'"]),
        (["train", "--presett", "article"], ["--presett", "Did you mean '--preset'?"]),
        (["train", "--env.id"], ["--env.id", "a value is missing"]),
        (["train", "--env.id", "--inline"], ["--env.id", "a value is missing"]),
        (["train", "quickstart"], ["'quickstart'", "'--preset quickstart'"]),
        (["train", "runs/mine"], ["'runs/mine'", "'--path value'"]),
        (["presets", "small"], ["'small' is a word too many", "`dreamfleet presets --help`"]),
        (["view", "runs/a", "runs/b"], ["'runs/b' is a word too many"]),
        (["view", "runs/a", "--port", "99999"], ["--port", "99999 is greater than 65535", "0 takes a free one"]),
        (["train", "--preset", "quikstart"], ["'quikstart'", "Did you mean 'quickstart'"]),
        (["train", "--learner.batch_size=few"], ["--learner.batch_size", "'few'", "a whole number"]),
        (["train", "--inline", "--address", "auto"], ["--address", "--inline"]),
        (["eval"], ["--run"]),
        (["eval", "--run", "no/such/run"], ["no/such/run", "does not exist"]),
        (["eval", "--run", "/", "--episodes", "0"], ["--episodes", "0 is less than 1"]),
        (["eval", "--run", "/", "--max-steps", "-1"], ["--max-steps", "-1 is less than 0"]),
        (["eval", "--run", "x", "--env.id", "y"], ["--env.id"]),
        (["dream", "--run", "/"], ["--run: /", "neither a run nor a dataset", "no config.yaml"]),
        (["replay", "inof", "x"], ["'inof'", "Did you mean 'info'"]),
        (["replay", "info", "no/such/replay"], ["no/such/replay", "is no directory"]),
    ],
)
def test_bad_input_is_one_sentence(capsys: pytest.CaptureFixture[str], arguments: list[str], wanted: list[str]) -> None:
    """It goes to stderr, names what was given and what would be right, and the exit code is 2."""
    message = complaint(capsys, *arguments)
    for part in wanted:
        assert part in message


def test_a_run_directory_with_a_typo_suggests_the_nearest(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Where a run of nearly that name lies beside it, it is named."""
    (tmp_path / "walker-1").mkdir()
    (tmp_path / "walker-1" / "config.yaml").write_text("seed: 0\n")
    assert "walker-1'" in complaint(capsys, "eval", "--run", str(tmp_path / "wakler-1"))


def test_what_a_start_left_that_was_killed_at_once_is_no_obstacle(tmp_path: Path) -> None:
    """Before config.yaml is written there is nothing to lose: the next start takes the directory."""
    run = RunDirectory(tmp_path / "run")
    run.create()
    run.log_file.write_text("new run\n")
    run.config_file.with_suffix(".tmp").write_text("seed")
    run.check_usable()
    (run.replay / "shard-0").mkdir()
    with pytest.raises(UserError, match="holds files, but no run"):
        run.check_usable()


def test_spaces_that_cannot_be_read_say_what_to_do(tmp_path: Path) -> None:
    """A file that is spoiled is not taken for one that was never written."""
    run = RunDirectory(tmp_path)
    with pytest.raises(UserError, match="has not trained yet"):
        run.spaces()
    run.spaces_file.write_text('{"observations": ')
    with pytest.raises(UserError, match=r"spaces.json cannot be read \(.*\): remove it, and the next"):
        run.spaces()


def test_a_mistyped_run_is_no_new_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing says what a new run is to be, the nearest that there is is named."""
    monkeypatch.chdir(tmp_path)
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/config.yaml").write_text("seed: 1\n")
    said = complaint(capsys, "train", "--run", "runs/mien")
    assert "runs/mien does not exist. Did you mean 'runs/mine'? For a new run say what it is to be" in said


def test_a_folder_with_other_files_is_no_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Training refuses to write among files that are no run of its own."""
    (tmp_path / "thesis.tex").write_text("important")
    assert "holds files, but no run" in complaint(capsys, "train", "--run", str(tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_presets_are_listed_with_their_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    """Each built-in preset has a line."""
    assert main(["presets"]) == 0
    listed = capsys.readouterr().out
    for name in ("quickstart", "small", "article", "planet"):
        assert f"\n{name} " in f"\n{listed}"
    begins = {re.match(r"\w+ +", line)[0] for line in listed.splitlines()}
    assert len(set(map(len, begins))) == 1, "the meanings stand below each other"


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    """`train --help` names each setting with its type and default."""
    with pytest.raises(SystemExit) as left:
        main(["train", "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert "--learner.batch_size  [whole number; default: 50]" in text
    assert "--model.encoder  [strided | planet | dreamer; default: planet]" in text
    assert text.index("learner: The process that trains.") < text.index("--learner.batch_size")
    assert (
        text.index("--learner.order_timeout_s") < text.index("train: How long to train") < text.index("--train.ratio")
    )


def test_an_episode_that_does_not_end_is_cut_and_said_to_be(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`eval --max-steps` ends it, each episode has a line that says so, and the results count the cuts."""
    (tmp_path / "config.yaml").write_text(
        "env: {id: 'counting_environment:make', kwargs: {length: 1000000}, image_size: 0}\n"
    )
    (tmp_path / "spaces.json").write_text("{}")
    assert main(["eval", "--run", str(tmp_path), "--episodes", "2", "--max-steps", "4", "--videos", "0"]) == 0
    printed = capsys.readouterr().out
    assert "  episode 0: return 10.00, 4 steps, cut there by --max-steps\n  episode 1: " in printed
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert (results["lengths"], results["cut_short"]) == ([4, 4], 2)


@pytest.mark.parametrize(
    "arguments", [["train", "--help"], ["train", "--env.idd", "x"], ["train", "--env.image_size", "96"], ["presets"]]
)
def test_help_and_errors_import_nothing_heavy(arguments: list[str]) -> None:
    """Neither torch nor Ray nor Gymnasium is imported on the way to a help text or a complaint."""
    code = (
        "import sys\nfrom dreamfleet.deploy.command_line import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "print('heavy:', sorted({'torch', 'ray', 'gymnasium', 'cv2'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)  # noqa: S603
    assert done.stdout.endswith("heavy: []\n")


@pytest.mark.parametrize(
    "arguments",
    [("status", "run"), ("collect", "--out", "run"), ("train", "--run", "run"), ("train", "--dataset", "run"),
     ("plan", "--run", "run"), ("eval", "--run", "run"), ("replay", "info", "run")],
)  # fmt: skip
def test_what_may_not_be_read_is_a_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """Another user's run or dataset is named, instead of a traceback."""

    def refuse(path: Path, *_: Any, **__: Any) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    denied = tmp_path / "run"
    for question in ("exists", "is_file", "is_dir", "iterdir"):
        plain = getattr(Path, question)
        ask = lambda path, plain=plain: refuse(path) if path.absolute().is_relative_to(denied) else plain(path)  # noqa: E731
        monkeypatch.setattr(Path, question, ask)
    message = complaint(capsys, *arguments)
    assert "run" in message
    assert "may not be read or written: permission denied." in message
