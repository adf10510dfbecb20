"""What fuzzing found, each as the smallest input that shows it."""

from __future__ import annotations

import json
import struct
import time
import zlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
import zstandard
from make_chunks import counting_format, cut, make_stream

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience import chunk
from dreamfleet.common.experience.blocks import DamagedChunkError
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.settings.resolve import resolve
from dreamfleet.deploy.monitoring.run_status import read_run_status
from dreamfleet.deploy.monitoring.status import describe
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.deploy.submit.cluster import Cluster
from dreamfleet.deploy.submit.submit import learner_resource
from dreamfleet.learner.checkpoints.files import DamagedCheckpointError
from dreamfleet.learner.checkpoints.store import CheckpointStore
from dreamfleet.replay.manifest import DamagedManifestError, Manifest
from dreamfleet.replay.segment_header import DamagedSegmentError, SegmentHeader

FORMAT = counting_format()
LAUGHS = "a0: &a0 [1]\n" + "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("env: {kwargs: &a {b: *a}}", "deeper than 50 levels"),
        (LAUGHS, "more than 100000 values"),
        ("[" * 900, "deeper than 50 levels"),
        ("[" * 500_000, "more than 1000 brackets"),
        ("{[1]: 2}", "a name is no plain value"),
        ("seed: 2001-13-99", "a value in it is not of its type"),
        ("seed: !!int ''", "a value in it is not of its type"),
        ("seed: !!bool x", "a value in it is not of its type"),
        ("seed: !!timestamp x", "a value in it is not of its type"),
    ],
    ids=[
        "names itself",
        "a billion values",
        "deep",
        "brackets",
        "a list as a name",
        "no date",
        "no number",
        "no bool",
        "no time",
    ],
)
def test_a_settings_file_that_yaml_chokes_on(tmp_path: Path, text: str, sentence: str) -> None:
    """PyYAML's own errors for these are of all kinds, and the first two would be gone through for ever."""
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=sentence):
        resolve(presets=[str(file)])


def test_a_flag_with_a_list_as_a_name() -> None:
    """The same for the value of a flag, of which the sentence shows no more than a line."""
    with pytest.raises(UserError, match="is not a valid value: a name is no plain value"):
        resolve(flags=[("env.kwargs", "{[1]: 2}")])
    with pytest.raises(UserError) as raised:
        resolve(flags=[("env.kwargs", "{" * 5000)])
    assert len(str(raised.value)) < 500


def with_first_block(data: bytes, block: bytes) -> bytes:
    """Return a chunk with another first block, and all its checksums right."""
    header = chunk.parse_header(data)
    first = header.blocks[0]
    head = bytearray(data[: first.offset])
    at = len(head) - 8 * len(header.blocks)
    head[at : at + 8] = struct.pack("<II", len(block) | 1 << 31, zlib.crc32(block))
    body = block + data[first.offset + first.stored_bytes :]
    head[8:16] = struct.pack("<II", len(body), zlib.crc32(bytes(head[chunk.PREFIX.size :])))
    return bytes(head) + body


@pytest.mark.parametrize("size", [0, 10**9])
def test_a_block_that_says_it_is_larger(size: int) -> None:
    """Zstd takes as much memory as a frame's header asks for, whatever the limit that it is given."""
    frame = bytearray(zstandard.ZstdCompressor().compress(b""))
    if size:
        frame = bytearray(b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", size) + b"\x01\x00\x00")
        assert zstandard.frame_content_size(bytes(frame)) == size
    data = with_first_block(cut(FORMAT, make_stream(FORMAT, [30]))[0], bytes(frame))
    chunk.check_chunk(FORMAT, data)
    with pytest.raises(DamagedChunkError, match="a block does not expand to"):
        chunk.decode_chunk(FORMAT, data)


@pytest.mark.parametrize(
    "change",
    [
        {"observations": 3},
        {"observations": [{"name": "a", "shape": [10**6, 10**6], "dtype": "uint8"}]},
        {"observations": [{"name": "a", "shape": [float("inf")], "dtype": "uint8"}]},
        {"observations": [{"name": "a", "shape": [-1], "dtype": "uint8"}]},
        {"observations": [{"name": "a", "shape": [3], "dtype": "object"}]},
        {"observations": [{"name": 3, "shape": [3], "dtype": "uint8"}]},
        {"action": None},
        {"action": {"kind": "box", "sizes": [], "low": [], "high": []}},
        {"action": {"kind": "dance", "sizes": [3]}},
    ],
)
def test_spaces_that_cannot_be(change: dict[str, Any]) -> None:
    """They are refused before anything is made of them."""
    with pytest.raises(ValueError, match="these are no spaces"):
        Spaces.from_json(FORMAT.spaces.to_json() | change)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metrics.jsonl", '{"fleet/ratio": "three", "loss/total": [1], "env_steps": {}}'),
        ("metrics.jsonl", '{"seconds_left": Infinity, "time": "now"}'),
        ("metrics.jsonl", '{"env_steps": 1' + "0" * 400 + "}"),
        ("metrics.jsonl", '{"\\ud800": 1}'),
        ("metrics.jsonl", "[" * 50_000),
        ("evaluations.jsonl", "{}"),
        ("evaluations.jsonl", '{"mean": [], "std": 0.5, "returns": [1.0], "env_steps": 1, "updates": 2}'),
        ("evaluations.jsonl", '{"mean": null, "std": null, "returns": [null], "env_steps": 1, "updates": 2}'),
        ("checkpoints/checkpoint-000000007.json", '{"updates": 1' + "0" * 400 + "}"),
        ("checkpoints/checkpoint-000000007.json", "[" * 50_000),
        ("state.json", '{"kind": "train", "pid": 1, "host": "h", "started_unix": 1e308, "counters": {}}'),
    ],
)
def test_status_of_a_run_with_odd_files(tmp_path: Path, name: str, text: str) -> None:
    """What cannot be a figure is passed over."""
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / name).write_text(text + "\n")
    found = read_run_status(RunDirectory(tmp_path))
    assert found.model_dump_json()
    assert describe(found, time.time())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, "does not say how many episodes"),  # Minari reads them as it is asked for them
        ({"minari_version": ["0.5.4"]}, r"minari_version is \['0\.5\.4'\], which Minari"),
        ({"minari_version": "9" * 10**6}, "minari_version is '9{199}…, which Minari"),
    ],
)
def test_minari_metadata_of_other_kinds(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    """Each is refused with what it is, as far as a sentence bears it."""
    from dreamfleet.actors.spaces.entries import NamedEntries
    from dreamfleet.deploy.minari.dataset import MinariDataset

    text = {"observation_space": "{}", "action_space": "{}", "minari_version": "0.5.4", "total_steps": 3} | change
    (tmp_path / "metadata.json").write_text(json.dumps(text))
    with pytest.raises(UserError, match=sentence):
        MinariDataset(tmp_path, NamedEntries())


@pytest.mark.parametrize("value", [{}, [], "1", None, 1.5, True, -1, (1 << 32) + 1])
def test_a_segment_header_whose_incarnation_is_no_number(value: Any) -> None:
    """It is a damaged header, as is a larger one than a chunk's header has room for."""
    text = json.dumps({"step_format": {}, "next_incarnation": value}).encode()
    with pytest.raises(DamagedSegmentError, match="not of the right kinds"):
        SegmentHeader.parse(text)


@pytest.mark.parametrize("place", range(5))
def test_a_manifest_whose_link_lacks_a_number(tmp_path: Path, place: int) -> None:
    """Only the checksum of a header may be unknown."""
    link: list[int | None] = [3, 11, 64, 12, 13]
    link[place] = None
    inner = json.dumps({"oldest": 1, "newest": 3, "link": link}, separators=(",", ":"))
    (tmp_path / "manifest.json").write_text(f'{{"manifest":{inner},"crc32":{zlib.crc32(inner.encode())}}}')
    with pytest.raises(DamagedManifestError) if place != 1 else nullcontext():
        assert Manifest.read(tmp_path)


@pytest.mark.parametrize("commands", [True, "ray start", [1], {"a": "b"}, 3.5])
def test_a_cluster_file_whose_commands_are_no_list(tmp_path: Path, commands: Any) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump({"cluster_name": "x", "provider": {}, "head_start_ray_commands": commands}))
    with pytest.raises(UserError, match=r"head_start_ray_commands is .*, but must be a list of commands"):
        Cluster(str(file))


@pytest.mark.parametrize("types", [{"a": 3}, {"a": [1]}, {"a": {"resources": True}}, {"a": None}, [1]])
def test_a_cluster_file_whose_node_types_are_odd(tmp_path: Path, types: Any) -> None:
    """None of them declares a resource for the learner."""
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump({"cluster_name": "x", "provider": {}, "available_node_types": types}))
    assert learner_resource(Cluster(str(file))) == ""


def test_a_cluster_file_whose_head_is_no_name(tmp_path: Path) -> None:
    """It is not the node type that declares the resource."""
    file = tmp_path / "cluster.yaml"
    types = {"a": {"resources": {"learner": 1}}}
    text = {"cluster_name": "x", "provider": {}, "available_node_types": types, "head_node_type": []}
    file.write_text(yaml.safe_dump(text))
    assert learner_resource(Cluster(str(file))) == "learner"


@pytest.mark.parametrize("setting", ["env.wrappers", "actors.count", "replay.cache_gb", "learner.gpus"])
def test_a_wrong_value_of_any_length_is_a_short_sentence(setting: str) -> None:
    with pytest.raises(UserError, match="but must be") as caught:
        resolve(flags=[(setting, json.dumps({"a": list(range(5000))}))])
    assert len(str(caught.value)) < 500


def test_minari_spaces_that_do_not_fit_their_type(tmp_path: Path) -> None:
    """Minari raises an OverflowError there, which is one of many."""
    from dreamfleet.actors.spaces.entries import NamedEntries
    from dreamfleet.deploy.minari.dataset import MinariDataset

    box = {"type": "Box", "dtype": "uint8", "shape": [1], "low": [0], "high": [355]}
    text = {"observation_space": json.dumps(box), "action_space": json.dumps(box), "minari_version": "0.5.4"}
    counts = {"total_steps": 3, "total_episodes": 1, "data_format": "hdf5"}
    (tmp_path / "metadata.json").write_text(json.dumps(text | counts))
    with pytest.raises(UserError, match="cannot be read as a Minari dataset: OverflowError"):
        MinariDataset(tmp_path, NamedEntries())


def test_a_checkpoint_that_was_renamed(tmp_path: Path) -> None:
    """Its facts say another number of updates than its name."""
    store = CheckpointStore(tmp_path, kept=1)
    store.save(7, {"updates": 7}, {})
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_name(path.name.replace("7", "9")))
    with pytest.raises(DamagedCheckpointError, match="was written at update 7: it was renamed or copied"):
        store.load(9)
