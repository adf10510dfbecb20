"""Settings from presets, files and flags, and the sentences about what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreamfleet.common.errors import UserError
from dreamfleet.common.settings.presets import preset_names, preset_summary
from dreamfleet.common.settings.resolve import changes, describe_settings, resolve, write_settings
from dreamfleet.common.settings.schema import Settings


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_resolves_and_says_what_it_is(name: str) -> None:
    """Each built-in preset is valid by itself and begins with a comment."""
    assert isinstance(resolve([name]), Settings)
    assert len(preset_summary(name)) > 20


def test_quickstart_is_small_on_car_racing() -> None:
    """What quickstart takes from `small` and its own file comes to these values, and to defaults for all others."""
    expected = {
        "env": {"kwargs": {"continuous": False}, "action_repeat": 4, "grey": True, "time_limit": 100},
        "actors": {"steps_per_order": 32, "hold_max": 8, "action_weights": [1, 2, 2, 4, 0.5]},
        "replay": {"capacity_gb": 1.0, "capacity_steps": 100_000, "held_out_every": 8},
        "model": {"depth": 16},
        "loss": {"reconstruction_scale": 20.0, "free_nats": 1.0},
        "learner": {"batch_size": 8, "sequence_length": 20, "updates_per_order": 5},
        "train": {"env_steps": 8000, "prefill": 400, "ratio": 25.0},
        "records": {"checkpoint_every": 200, "picture_every": 200, "picture_steps": 30},
    }
    assert resolve(["quickstart"]) == Settings.model_validate(expected)


def test_small_leaves_the_environment_alone() -> None:
    """It sets nothing of environment, actors and length of the run: nothing of CarRacing is inherited."""
    settings = resolve(["small"], [("env.id", "x:y")])
    assert settings.env == resolve([], [("env.id", "x:y")]).env
    assert (settings.actors, settings.train) == (Settings().actors, Settings().train)
    assert settings.model == resolve(["quickstart"]).model


def test_a_file_stands_on_the_presets_it_names(tmp_path: Path) -> None:
    """Built-in ones and files beside it, in their order, each over the last and its own values over all."""
    (tmp_path / "mine.yaml").write_text("presets: [small, other.yaml]\nlearner: {clip: 3}\n")
    (tmp_path / "other.yaml").write_text("learner: {clip: 2, batch_size: 5}\n")
    learner = resolve([str(tmp_path / "mine.yaml")]).learner
    assert (learner.clip, learner.batch_size, learner.sequence_length) == (3, 5, 20)


@pytest.mark.parametrize(
    ("presets", "wanted"),
    [
        ("[other.yaml]", ["mine.yaml", "builds on itself"]),
        ("[mine.yaml]", ["mine.yaml", "builds on itself"]),
        ("[smal]", ["mine.yaml: presets", "'smal'", "Did you mean 'small'"]),
        ("[absent.yaml]", ["mine.yaml: presets", "'absent.yaml'", "Built in are"]),
        ("small", ["mine.yaml", "'small'", "a list of names"]),
    ],
)
def test_presets_that_cannot_be_stood_on_are_named(tmp_path: Path, presets: str, wanted: list[str]) -> None:
    """A circle, an unknown name and what is no list are each one sentence with the file they stand in."""
    (tmp_path / "mine.yaml").write_text(f"presets: {presets}\n")
    (tmp_path / "other.yaml").write_text("presets: [mine.yaml]\n")
    with pytest.raises(UserError) as caught:
        resolve([str(tmp_path / "mine.yaml")])
    for part in wanted:
        assert part in str(caught.value)


def test_later_layers_win(tmp_path: Path) -> None:
    """A flag wins over the last preset, the last preset over the first, and what none names keeps its default."""
    (tmp_path / "mine.yaml").write_text("learner: {batch_size: 3, sequence_length: 9}\n")
    settings = resolve(["quickstart", str(tmp_path / "mine.yaml")], [("learner.batch_size", "4")])
    assert (settings.learner.batch_size, settings.learner.sequence_length) == (4, 9)
    assert settings.env.grey is True
    assert settings.model.gru_layers == 1


def test_a_mapping_is_laid_over_key_by_key() -> None:
    """Setting one of the environment's arguments leaves the others."""
    settings = resolve(["quickstart"], [("env.kwargs.lap_complete_percent", "0.9")])
    assert settings.env.kwargs == {"continuous": False, "lap_complete_percent": 0.9}


def test_another_environment_does_not_inherit_arguments() -> None:
    """Arguments of a preset's environment are forgotten with it, and those given for the new one count in any order."""
    assert resolve(["quickstart"], [("env.id", "CartPole-v1")]).env.kwargs == {}
    for flags in ([("env.kwargs.a", "1"), ("env.id", "x:y")], [("env.id", "x:y"), ("env.kwargs.a", "1")]):
        assert resolve(["quickstart"], flags).env.kwargs == {"a": 1}
    assert resolve(["quickstart"], [("env.id", "CarRacing-v3")]).env.kwargs == {"continuous": False}


def test_observations_are_named_by_a_word_or_a_list_and_go_with_the_environment(tmp_path: Path) -> None:
    """Names are those of one environment; numbers, as a Tuple's parts are called, are names too."""
    (tmp_path / "mine.yaml").write_text("env: {id: a:b, pictures: camera, vectors: [0, speed], one_hot: [board]}\n")
    mine = str(tmp_path / "mine.yaml")
    env = resolve([mine]).env
    assert (env.pictures, env.vectors, env.one_hot) == (("camera",), ("0", "speed"), ("board",))
    other = resolve([mine], [("env.id", "CartPole-v1"), ("env.vectors", "x")]).env
    assert (other.pictures, other.vectors, other.one_hot) == ((), ("x",), ())


def test_scientific_notation_is_a_number() -> None:
    """1e-4 and 1e5 are numbers, though YAML takes the first for text."""
    settings = resolve([], [("learner.learning_rate", "1e-4"), ("train.env_steps", "1e5")])
    assert settings.learner.learning_rate == 1e-4
    assert settings.train.env_steps == 100_000


def test_resolved_settings_can_be_given_back(tmp_path: Path) -> None:
    """What is written to a run's directory resolves to the same settings."""
    settings = resolve(["article"], [("env.kwargs", "{continuous: true}")])
    write_settings(settings, tmp_path / "config.yaml")
    assert resolve(base=tmp_path / "config.yaml") == settings


def test_changes_name_path_old_and_new() -> None:
    """A difference between two settings is described by its path and both values."""
    assert changes(Settings(), resolve([], [("seed", "7")])) == ["seed: 0 → 7"]


@pytest.mark.parametrize(
    ("flag", "text", "wanted"),
    [
        ("learner.batch_sizes", "3", ["--learner.batch_sizes", "Did you mean 'learner.batch_size'"]),
        ("batch_size", "3", ["--batch_size", "Did you mean 'learner.batch_size'"]),
        ("train.env_steps", "many", ["--train.env_steps", "'many'", "a whole number"]),
        ("train.env_steps", "0", ["--train.env_steps", "0", "at least 1"]),
        ("model.encoder", "plannet", ["--model.encoder", "'plannet'", "Did you mean 'planet'"]),
        ("env.grey", "maybe", ["--env.grey", "'maybe'", "true or false"]),
        ("learner", "3", ["--learner", "3", "a group of settings"]),
        ("env.kwargs", "[1", ["--env.kwargs", "not a valid value"]),
        ("train.prefill", "2e6", ["train.prefill 2000000", "train.env_steps 1000000", "--train.prefill"]),
        ("model.batch_norm", "true", ["model.batch_norm", "strided"]),
        ("actors.hold_min", "3", ["hold_min 3", "hold_max 1"]),
        ("learner.batch_size", "true", ["--learner.batch_size", "is true", "a whole number"]),
        ("train.ratio", "true", ["--train.ratio", "is true", "a number"]),
        ("train.ratio", ".inf", ["--train.ratio", "inf", "a finite number"]),
        ("learner.learning_rate", ".nan", ["--learner.learning_rate", "nan", "a finite number"]),
        ("learner.batch_size", ".inf", ["--learner.batch_size", "inf", "a finite number"]),
        ("replay.held_out_every", "1", ["--replay.held_out_every", "held_out_every 1", "0 keeps none", "2 or more"]),
        ("env.image_size", "96", ["--env.image_size", "model.encoder planet", "64×64", "is 96", "strided"]),
    ],
)
def test_a_bad_flag_is_one_sentence(flag: str, text: str, wanted: list[str]) -> None:
    """It names the flag, the value and what would be right, on a single line."""
    with pytest.raises(UserError) as caught:
        resolve([], [(flag, text)])
    message = str(caught.value)
    assert "\n" not in message
    for part in wanted:
        assert part in message


def test_pictures_of_their_own_size_are_not_judged_here() -> None:
    """With env.image_size 0 the environment says how big its pictures are."""
    assert resolve([], [("env.image_size", "0")]).model.encoder == "planet"


def test_the_strided_encoder_needs_sides_divisible_by_16() -> None:
    """128 is, 100 is not, and that is said before anything starts."""
    strided = ("model.encoder", "strided")
    assert resolve([], [strided, ("env.image_size", "128")]).env.image_size == 128
    with pytest.raises(UserError, match=r"divisible by 16, but env\.image_size is 100 .*--env\.image_size"):
        resolve([], [strided, ("env.image_size", "100")])


def test_episodes_too_short_for_any_sequence_are_refused() -> None:
    """An episode of this many actions has one step more; sequences of as many steps fit, longer ones do not."""
    within = [("replay.across_episodes", "false"), ("learner.sequence_length", "20")]
    assert resolve([], [*within, ("env.time_limit", "19")]).env.time_limit == 19
    assert resolve([], [*within, ("env.time_limit", "0")]).env.time_limit == 0
    assert resolve([], [within[1], ("env.time_limit", "18")]).replay.across_episodes
    with pytest.raises(
        UserError, match=r"env\.time_limit 18 leaves no room.* 19 steps, learner\.sequence_length is 20"
    ):
        resolve([], [*within, ("env.time_limit", "18")])


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("seed: 1\nseed: 2\n", ["line 2", "'seed' is there twice"]),
        ("seed: [1\n", ["not valid YAML"]),
        ("- 1\n", ["list"]),
        ("env: {idd: x}\n", ["'env.idd'", "Did you mean 'env.id'"]),
        ("learner: {batch_size: 2.5}\n", ["learner.batch_size", "2.5", "a whole number"]),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: str, wanted: list[str]) -> None:
    """The sentence names the file."""
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(UserError) as caught:
        resolve([str(file)])
    for part in [str(file), *wanted]:
        assert part in str(caught.value)


def test_an_unknown_preset_suggests_the_nearest() -> None:
    """A typo in a preset's name is reported with the name meant."""
    with pytest.raises(UserError, match=r"'quikstart'.*Did you mean 'quickstart'"):
        resolve(["quikstart"])


def test_every_setting_has_a_meaning() -> None:
    """`--help` has something to say of each setting."""
    assert all(len(meaning) > 10 and meaning.endswith(".") for _, _, _, meaning in describe_settings())
