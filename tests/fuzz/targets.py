"""What is fuzzed: for each kind of file that dreamfleet reads, inputs and the readers that take them.

A reader may return whatever it likes, or raise one of `REFUSALS`: a sentence for the user, or the project's own error
for a damaged file. Anything else is a crash.
"""

from __future__ import annotations

import json
import shutil
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hypothesis import strategies as st
from make_chunks import cut, make_stream, mixed_format
from mutations import VALUES, changed_bytes, changed_documents, json_texts

from dreamfleet.common.errors import RunFailedError, UserError
from dreamfleet.common.experience import chunk as chunks
from dreamfleet.common.experience.blocks import DamagedChunkError
from dreamfleet.common.settings.presets import PRESET_FOLDER, preset_names
from dreamfleet.common.settings.resolve import describe_settings, resolve
from dreamfleet.common.settings.schema import ReplaySettings, Settings
from dreamfleet.deploy.compare.compare import compare
from dreamfleet.deploy.monitoring.run_status import read_run_status
from dreamfleet.deploy.monitoring.status import describe as describe_status
from dreamfleet.deploy.plan.rates import rates_of_run
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.deploy.state import read_state
from dreamfleet.deploy.submit.cluster import Cluster
from dreamfleet.deploy.submit.submit import learner_resource
from dreamfleet.deploy.sweep.sweep import make_cells
from dreamfleet.deploy.sweep.sweep_file import read_sweep
from dreamfleet.learner.checkpoints.files import DamagedCheckpointError, parse_facts
from dreamfleet.learner.checkpoints.restore import check_fits
from dreamfleet.learner.checkpoints.store import CheckpointStore
from dreamfleet.replay.compressed_batch import decompress
from dreamfleet.replay.episodes import StoredStreams
from dreamfleet.replay.interface import NotEnoughExperienceError
from dreamfleet.replay.repair import repair
from dreamfleet.replay.replay import Replay
from dreamfleet.replay.report import count_steps, describe, verify
from dreamfleet.replay.segment_header import MAGIC, PREFIX, SegmentHeader

REFUSALS = (UserError, RunFailedError, DamagedChunkError, DamagedCheckpointError, NotEnoughExperienceError)
FORMAT = mixed_format()


class Target(NamedTuple):
    """A kind of input: how to draw one, and what to do with it in an empty folder.

    `read` returns how many bytes of arrays the input rightly expands to, beside its own size.
    """

    inputs: st.SearchStrategy[Any]
    read: Callable[[Any, Path], int]
    share: int = 1
    """How many of a round's inputs it gets, relative to the others."""


def attempt(work: Callable[[], Any]) -> Any:
    """Return what a reader returns, None if it refuses in a sentence of one line."""
    try:
        return work()
    except REFUSALS as refusal:
        sentence = str(refusal)
        assert sentence, "a refusal without a word"
        assert len(sentence) < 2000, f"a refusal of {len(sentence)} characters"
        return None


# Settings -----------------------------------------------------------------------------------------------------------


def _flags() -> st.SearchStrategy[list[tuple[str, str]]]:
    paths = [path for path, *_ in describe_settings()]
    texts = (
        VALUES.map(json.dumps)
        | st.text(max_size=20)
        | changed_bytes(b"{a: [1, 2]}").map(lambda data: data.decode(errors="replace"))
    )
    return st.lists(st.tuples(st.sampled_from(paths) | st.text(max_size=12), texts), min_size=1, max_size=3)


def _read_flags(flags: list[tuple[str, str]], folder: Path) -> int:
    attempt(lambda: resolve(flags=flags))
    return 0


def _presets() -> st.SearchStrategy[bytes]:
    texts = [(PRESET_FOLDER / f"{name}.yaml").read_bytes() for name in preset_names()[:6]]
    document = json.loads(json.dumps(Settings().model_dump(mode="json")))
    words = (
        b"&a ",
        b"*a",
        b"<<: ",
        b"!!binary ",
        b"!!timestamp ",
        b"? ",
        b"[",
        b"{",
        b"0x",
        b"- ",
        b"2001-13-99",
        b"1:99",
    )
    tangled = st.sampled_from([b"a: &a [*a]", b"&a {env: *a}", b"{[1]: 2}", b"? {a: 1}\n: 2", b"!!int ''", b"[" * 3000])
    nested = st.integers(2, 40).map(_laughs)
    changed = changed_documents(document).map(lambda d: yaml.safe_dump(d, allow_unicode=True).encode())
    return st.sampled_from(texts).flatmap(lambda text: changed_bytes(text, words)) | changed | tangled | nested


def _laughs(levels: int) -> bytes:
    """Return a text of which each line names the one before ten times."""
    lines = ["a0: &a0 [1]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels))]
    return "\n".join(lines).encode()


def _read_preset(data: bytes, folder: Path) -> int:
    file = folder / "mine.yaml"
    file.write_bytes(data)
    attempt(lambda: resolve(presets=[str(file)]))
    attempt(lambda: resolve(base=file))
    return 0


def _read_cluster(data: bytes, folder: Path) -> int:
    file = folder / "cluster.yaml"
    file.write_bytes(data)
    attempt(lambda: learner_resource(Cluster(str(file))))
    return 0


def _clusters() -> st.SearchStrategy[bytes]:
    deploy = Path(__file__).resolve().parents[2] / "deploy"
    texts = [(deploy / f"{name}.yaml").read_bytes() for name in ("cluster", "gcp", "onprem", "kuberay")]
    document = yaml.safe_load(texts[0])
    changed = changed_documents(json.loads(json.dumps(document))).map(lambda d: yaml.safe_dump(d).encode())
    return st.sampled_from(texts).flatmap(changed_bytes) | changed | st.integers(2, 40).map(_laughs)


def _sweeps() -> st.SearchStrategy[bytes]:
    document = {
        "presets": ["small", "debug"], "settings": {"train": {"env_steps": 700}}, "seeds": [0, 1], "inline": True,
        "variants": {"a": {}, "b": {"presets": ["small"], "settings": {"model": {"depth": 8}}}}, "out": "runs/x",
        "resources": {"cores": 2, "memory_gb": 1.5},
    }  # fmt: skip
    changed = changed_documents(document).map(lambda d: yaml.safe_dump(d, allow_unicode=True).encode())
    return changed | changed_bytes(yaml.safe_dump(document).encode()) | st.integers(2, 40).map(_laughs)


def _read_sweep(data: bytes, folder: Path) -> int:
    file = folder / "table.yaml"
    file.write_bytes(data)
    attempt(lambda: make_cells(read_sweep(file), folder, has_gpus=True))
    return 0


# Chunks and segments ------------------------------------------------------------------------------------------------


@cache
def _good_chunks() -> list[bytes]:
    return cut(FORMAT, make_stream(FORMAT, [40, 60, 91]))


def _reseal(data: bytes, prefix: struct.Struct = chunks.PREFIX) -> bytes:
    """Return a chunk whose header's checksum is right."""
    header_bytes = int.from_bytes(data[4:8], "little")
    header = data[prefix.size : prefix.size + header_bytes]
    return data[: prefix.size - 4] + zlib.crc32(header).to_bytes(4, "little") + data[prefix.size :]


@st.composite
def _chunks(draw: st.DrawFn) -> bytes:
    data = draw(st.sampled_from(_good_chunks()))
    if draw(st.booleans()):
        return draw(changed_bytes(data, (chunks.MAGIC,)))
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):  # in prefix or header, where the sense lies
        at = draw(st.integers(4, chunks.parse_header(data).blocks[0].offset - 4))
        changed[at : at + 4] = draw(st.sampled_from([0, 1, 2, 63, 64, 65, 2**31 - 1, 2**31, 2**32 - 1])).to_bytes(
            4, "little"
        )
    return _reseal(bytes(changed))


@st.composite
def _bombs(draw: st.DrawFn) -> bytes:
    """Return chunks with a block whose compressed form says another size than it has, all checksums right."""
    import zstandard

    data = draw(st.sampled_from(_good_chunks()))
    header = chunks.parse_header(data)
    size = draw(st.sampled_from([0, 1, 1000, 10**6, 10**8]))
    block = zstandard.ZstdCompressor(level=1).compress(bytes(size))
    head = bytearray(data[: header.blocks[0].offset])
    table = len(head) - 8 * len(header.blocks)
    head[table : table + 8] = struct.pack("<II", len(block) | 1 << 31, zlib.crc32(block))
    body = block + data[header.blocks[0].offset + header.blocks[0].stored_bytes :]
    head[8:12] = len(body).to_bytes(4, "little")
    return _reseal(bytes(head) + body)


def _read_chunk(data: bytes, folder: Path) -> int:
    attempt(lambda: chunks.parse_header(data))
    attempt(lambda: chunks.check_chunk(FORMAT, data))
    found = attempt(lambda: chunks.decode_chunk(FORMAT, data))
    return chunks.CHUNK_STEPS * FORMAT.step_bytes * 2 if found is None or found else 0


def _segment_header() -> dict[str, Any]:
    header: dict[str, Any] = json.loads(SegmentHeader(FORMAT.to_json(), number=1, oldest=1).encode()[PREFIX.size :])
    return header


def _seal_segment(text: bytes) -> bytes:
    return PREFIX.pack(MAGIC, len(text), zlib.crc32(text)) + text


@cache
def _good_segments() -> dict[str, bytes]:
    """Return the files of a small replay of three segments."""
    folder = _scratch("segments")
    settings = ReplaySettings(held_out_every=3, capacity_steps=1024)
    with closing(Replay(folder, FORMAT, settings, 20, seed=1)) as replay:
        for piece in _good_chunks():
            replay.append(piece)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def _scratch(name: str) -> Path:
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    _SCRATCH.append(folder)
    return folder


_SCRATCH: list[Path] = []


def remove_scratch() -> None:
    """Remove the folders that inputs were made in."""
    while _SCRATCH:
        shutil.rmtree(_SCRATCH.pop(), ignore_errors=True)


@st.composite
def _replays(draw: st.DrawFn) -> dict[str, bytes | None]:
    """Return the files of a replay, one to three of them changed, lost, renamed or copied; None is a directory."""
    files: dict[str, bytes | None] = dict(_good_segments())
    segments = sorted(name for name in files if name.endswith(".dfl"))
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(files)))
        data = files[name]
        other = draw(
            st.sampled_from([*segments, "segment-00000009.dfl", "segment-abc.dfl", "segment-1.dfl", "manifest.json"])
        )
        what = draw(st.sampled_from(["change", "change", "header", "lose", "rename", "copy", "swap", "directory"]))
        if what == "change" and data:
            files[name] = draw(changed_bytes(data, (chunks.MAGIC, MAGIC)))
        elif what == "header" and data and data[:4] == MAGIC:
            size = int.from_bytes(data[4:8], "little")
            try:
                header = json.loads(data[PREFIX.size : PREFIX.size + size])
            except ValueError:  # it was changed before
                continue
            changed = draw(changed_documents(header) | VALUES)
            files[name] = _seal_segment(json.dumps(changed).encode()) + data[PREFIX.size + size :]
        elif what == "lose":
            files.pop(name)
        elif what in ("rename", "copy"):
            files[other] = files[name] if what == "copy" else files.pop(name)
        elif what == "swap":
            files[name], files[other] = files.get(other), files[name]
        elif what == "directory":
            files[other] = None
        if not files:
            break
    return files


def _read_replay(files: dict[str, bytes | None], folder: Path) -> int:
    """Report on a replay, read it, open it to write, repair it; the repaired one must be without a fault."""
    home = folder / "replay"
    home.mkdir()
    for name, data in files.items():
        if data is None:
            (home / name).mkdir()
        else:
            (home / name).write_bytes(data)
    copy = folder / "copy"
    shutil.copytree(home, copy)
    for report in (describe, verify, count_steps):
        attempt(lambda report=report: report(home))  # type: ignore[misc]
    attempt(lambda: _read_streams(home))
    for read_only in (True, False):
        attempt(lambda read_only=read_only: _use(home, read_only))  # type: ignore[misc]
    if attempt(lambda: repair(copy)) is not None:
        left = attempt(lambda: verify(copy))
        assert not left, f"repaired, and yet: {left}"
        attempt(lambda: _use(copy, read_only=False))
    return 1 << 22


def _read_streams(home: Path) -> int:
    with StoredStreams([home]) as streams:
        return sum(len(episode) for episode in streams.episodes())


def _use(home: Path, read_only: bool) -> None:
    settings = ReplaySettings(held_out_every=3, capacity_steps=1024)
    with closing(Replay(home, FORMAT, settings, 20, seed=1, read_only=read_only)) as replay:
        replay.stats()
        decompress(replay.sample(0, 4), FORMAT)
        replay.sample_held_out(0, 2, 20)
        if not read_only:
            replay.append(_good_chunks()[0])


def _manifests() -> st.SearchStrategy[bytes]:
    text = _good_segments()["manifest.json"]
    assert text
    document = json.loads(text)

    def seal(values: Any) -> bytes:
        inner = json.dumps(values, separators=(",", ":"))
        return f'{{"manifest":{inner},"crc32":{zlib.crc32(inner.encode())}}}'.encode()

    return changed_documents(document["manifest"]).map(seal) | json_texts(document) | changed_bytes(text)


def _read_manifest(data: bytes, folder: Path) -> int:
    files = {**_good_segments(), "manifest.json": data}
    return _read_replay(dict(files), folder)


# Checkpoints and a run's small files --------------------------------------------------------------------------------


@cache
def _good_checkpoint() -> tuple[bytes, dict[str, Any]]:
    import torch

    folder = _scratch("checkpoints")
    store = CheckpointStore(folder, kept=2)
    state = {
        "updates": 7,
        "model": {"a.weight": torch.arange(6.0).reshape(2, 3)},
        "optimiser": {"state": {}, "n": [1, 2]},
    }
    facts = store.save(7, state, {"env_steps": 640, "held_out_loss": 1.5, "spaces": FORMAT.spaces.to_json()})
    return (folder / "checkpoint-000000007.pt").read_bytes(), facts


@st.composite
def _checkpoints(draw: st.DrawFn) -> tuple[bytes, bytes]:
    import hashlib

    tensors, facts = _good_checkpoint()
    if draw(st.booleans()):
        tensors = draw(changed_bytes(tensors))
        facts = facts | {"bytes": len(tensors), "sha256": hashlib.sha256(tensors).hexdigest()}
        return tensors, json.dumps(facts).encode()
    return tensors, draw(json_texts(facts))


def _read_checkpoint(data: tuple[bytes, bytes], folder: Path) -> int:
    (folder / "checkpoint-000000007.pt").write_bytes(data[0])
    (folder / "checkpoint-000000007.json").write_bytes(data[1])
    store = CheckpointStore(folder, kept=1)
    attempt(lambda: parse_facts(data[1], "facts"))
    attempt(store.load_newest)
    attempt(store.best)
    attempt(lambda: check_fits(folder, Settings(), FORMAT.spaces))
    attempt(store.remove_unfinished)
    attempt(lambda: store.record_evaluation(7, {"evaluation_return": 1.0}))
    return 1 << 22


def _run_files() -> st.SearchStrategy[dict[str, bytes]]:
    now = 1.7e9
    state = {
        "format": 1, "kind": "train", "dreamfleet": "1", "pid": 3, "process_start": 4, "process_space": "x",
        "host": "h", "pause_s": 5.0, "started": "then", "started_unix": now, "counters": {
        "env_steps": 640, "updates": 7, "wanted/env_steps": 1000, "fleet/env_steps_per_s": 3.5, "seconds_left": 3.0},
        "counted": "then", "counted_unix": now, "state": "running",
        "reason": "", "updated": "then", "updated_unix": now,
        "complaints": {"count": 1, "last": [{"time": "then", "level": "warning", "text": "x"}]},
    }  # fmt: skip
    row = {
        "time": now, "env_steps": 640, "updates": 7, "fleet/actors": 2, "fleet/actors_wanted": 2, "fleet/ratio": 3.0,
        "fleet/env_steps_per_s": 4.0, "fleet/updates_per_s": 1.0, "fleet/actors_wait_fraction": 0.5,
        "fleet/learner_wait_fraction": 0.1, "replay/bytes_raw": 5, "replay/bytes_stored": 3, "replay/steps": 5,
        "replay/shards": 2, "loss/total": 3.0, "loss/kl": 1.0, "staleness/mean": 1.0, "staleness/max": 2.0,
        "episode/return": 1.0, "episode/length": 10.0, "fleet/restarts": 1,
    }  # fmt: skip
    evaluation = {"time": now, "env_steps": 640, "updates": 7, "mean": 1.0, "std": 0.5, "returns": [1.0, 2.0]}

    def lines(document: dict[str, Any]) -> st.SearchStrategy[bytes]:
        return st.lists(json_texts(document), min_size=1, max_size=3).map(b"\n".join)

    return st.fixed_dictionaries(
        {},
        optional={
            "state.json": json_texts(state),
            "metrics.jsonl": lines(row),
            "evaluations.jsonl": lines(evaluation),
            "spaces.json": json_texts(FORMAT.spaces.to_json()),
            "config.yaml": json_texts(Settings().model_dump(mode="json")),
            "checkpoints/checkpoint-000000007.json": json_texts(_good_checkpoint()[1]),
        },
    )


def _read_run(files: dict[str, bytes], folder: Path) -> int:
    (folder / "checkpoints").mkdir()
    (folder / "config.yaml").write_text("seed: 1\n")
    for name, data in files.items():
        (folder / name).write_bytes(data)
    run = RunDirectory(folder)
    attempt(lambda: read_state(folder))
    found = read_run_status(run)
    found.model_dump_json()
    assert describe_status(found, time.time())
    for reader in (run.settings, run.spaces, run.kind, lambda: rates_of_run(run), lambda: compare([folder])):
        attempt(reader)
    return 1 << 22


# Minari -------------------------------------------------------------------------------------------------------------


@cache
def _good_minari() -> dict[str, bytes]:
    """Return the files of a small dataset that dreamfleet exported, by their path."""
    from minari_datasets import fragmented_run

    from dreamfleet.deploy.minari.exchange import export_replay

    folder = _scratch("minari")
    run = fragmented_run(folder / "run", FORMAT)
    export_replay(run.path, folder / "out")
    return {
        str(path.relative_to(folder / "out")): path.read_bytes()
        for path in (folder / "out").rglob("*")
        if path.is_file()
    }


@st.composite
def _minari(draw: st.DrawFn) -> dict[str, bytes]:
    files = dict(_good_minari())
    name = draw(st.sampled_from(sorted(files)))
    is_document = name.endswith(".json")
    files[name] = draw(json_texts(json.loads(files[name])) if is_document else changed_bytes(files[name]))
    return files


def _read_minari(files: dict[str, bytes], folder: Path) -> int:
    from dreamfleet.actors.spaces.entries import NamedEntries
    from dreamfleet.deploy.minari.dataset import MinariDataset

    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    def read() -> None:
        found = MinariDataset(folder, NamedEntries())
        assert found.settings is None or isinstance(found.settings, str)
        found.environment  # noqa: B018
        for _ in found.episodes():
            pass

    attempt(read)
    return 1 << 24


def targets() -> dict[str, Target]:
    """Return all kinds of input, by name."""
    return {
        "flags": Target(_flags(), _read_flags, 8),
        "presets": Target(_presets(), _read_preset, 2),
        "sweeps": Target(_sweeps(), _read_sweep),
        "cluster files": Target(_clusters(), _read_cluster, 2),
        "chunks": Target(_chunks(), _read_chunk, 40),
        "compressed blocks": Target(_bombs(), _read_chunk, 1),
        "replays": Target(_replays(), _read_replay, 2),
        "manifests": Target(_manifests(), _read_manifest),
        "checkpoints": Target(_checkpoints(), _read_checkpoint, 4),
        "run files": Target(_run_files(), _read_run, 8),
        "Minari datasets": Target(_minari(), _read_minari, 1),
    }
