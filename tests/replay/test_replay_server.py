"""The replay as a Ray process: killed at any moment, it restarts with all it acknowledged and nothing twice."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from make_chunks import counting_format, cut, image_format, make_stream
from patience import PATIENCE_S, wait_until

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.blocks import DamagedChunkError
from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.replay.batch_reader import BatchReader
from dreamfleet.replay.compressed_batch import decompress
from dreamfleet.replay.interface import DirectChunkWriter, NotEnoughExperienceError, ReplayLostError
from dreamfleet.replay.mapped_cache import this_machine
from dreamfleet.replay.ray_replay import RayChunkWriter, RayReplay, start_replay_servers
from dreamfleet.replay.replay import Replay
from dreamfleet.replay.report import verify
from dreamfleet.replay.segment import segment_paths
from dreamfleet.replay.shards import ShardPlan

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]
FORMAT = counting_format()
SETTINGS = ReplaySettings(held_out_every=0)
Start = Callable[[], Any]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start servers on the test's directory, and end them with the test."""
    servers = []

    def begin() -> Any:
        servers.extend(start_replay_servers([ShardPlan(tmp_path, SETTINGS, seed=0)], FORMAT, 20))
        return servers[-1]

    yield begin
    for server in servers:
        ray.kill(server)


def process_of(server: Any) -> int:
    """Return the id of the server's process."""
    return int(ray.get(server.health.remote(), timeout=PATIENCE_S))


def test_the_client_does_what_the_replay_does(start: Start, tmp_path: Path) -> None:
    """Appending, counting and sampling through Ray give what they give in the same process."""
    replay = RayReplay(start())
    chunks = cut(FORMAT, make_stream(FORMAT, [150]), incarnation=3)
    assert [replay.append(chunk) for chunk in [*chunks, chunks[0]]] == [True, True, True, False]
    assert replay.counters() == (150, 131, 4)
    assert replay.stats()["duplicates"] == 1
    assert replay.sample_held_out(0, 4, 10) is None
    replay.sync()
    through_ray = decompress(replay.sample(7, 5), FORMAT)
    replay.close()
    direct = Replay(tmp_path, FORMAT, SETTINGS, 20, 0, lock_wait_s=PATIENCE_S)
    for name, array in decompress(direct.sample(7, 5), FORMAT).items():
        np.testing.assert_array_equal(array, through_ray[name])
    direct.close()


def test_errors_arrive_as_what_they_are(start: Start) -> None:
    """What the replay raises reaches the caller without a Ray traceback around it."""
    server = start()
    with pytest.raises(NotEnoughExperienceError, match="0 steps"):
        RayReplay(server).sample(0, 1)
    with pytest.raises(DamagedChunkError, match="format"):
        RayReplay(server).append(cut(image_format(16), make_stream(image_format(16), [5]))[0])
    writer = RayChunkWriter(server)
    writer.append(b"rubbish")
    with pytest.raises(DamagedChunkError):
        writer.flush(PATIENCE_S)


def test_a_directory_at_fault_is_the_user_s_error(tmp_path: Path, start: Start) -> None:
    """A server that may not open its directory says why, in one sentence."""
    RayReplay(start()).close()
    with pytest.raises(UserError, match="its action was discrete"):
        start_replay_servers([ShardPlan(tmp_path, SETTINGS, seed=0)], image_format(16), 20)


def test_a_writer_acknowledges_everything_once(start: Start) -> None:
    """After a flush all chunks are stored, in order, though several were on their way at once."""
    server = start()
    writer = RayChunkWriter(server, in_flight=3)
    for chunk in cut(FORMAT, make_stream(FORMAT, [64 * 30])):
        writer.append(chunk)
    writer.flush(PATIENCE_S)
    assert RayReplay(server).counters() == (64 * 30, 64 * 30 - 19, 1)


def test_nothing_is_lost_or_doubled_by_sigkill_of_the_server(start: Start, tmp_path: Path) -> None:
    """The server is killed twice while two writers push and a learner samples: all arrives once, sampling continues."""
    server = start()
    streams = [cut(FORMAT, make_stream(FORMAT, [64 * 150], tag=k), stream=k) for k in range(2)]
    writers = [RayChunkWriter(server), RayChunkWriter(server)]
    stored: list[int] = []
    faults: list[BaseException] = []

    def push(number: int) -> None:
        try:
            for chunk in streams[number]:
                writers[number].append(chunk)
                stored.append(number)
                time.sleep(0.01)
            writers[number].flush(PATIENCE_S)
        except BaseException as fault:  # noqa: BLE001 - handed to the test's own thread
            faults.append(fault)

    pushers = [threading.Thread(target=push, args=(number,)) for number in range(2)]
    for pusher in pushers:
        pusher.start()
    replay = RayReplay(server)
    for mark in (40, 160):
        wait_until(lambda mark=mark: len(stored) >= mark or faults)
        killed = process_of(server)
        os.kill(killed, signal.SIGKILL)
        assert decompress(replay.sample(mark, 4), FORMAT)["reward"].shape == (4, 20)
        assert process_of(server) != killed
    for pusher in pushers:
        pusher.join()
    assert faults == []
    assert replay.counters()[:2] == (2 * 64 * 150, 2 * (64 * 150 - 19))
    replay.close()
    assert verify(tmp_path) == []


def mapped_caches() -> set[str]:
    """Return the caches that this process has mapped, by their files' numbers."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split()[4] for line in lines if "memfd:dreamfleet-replay" in line}


def test_what_a_server_keeps_decoded_is_read_without_it_and_goes_with_it(start: Start) -> None:
    """Batches lie in its memory, which this process maps; killed, it begins anew, and the old memory is let go."""
    server = start()
    replay = RayReplay(server)
    for chunk in cut(FORMAT, make_stream(FORMAT, [64 * 20])):
        replay.append(chunk)
    expected = [decompress(replay.sample(number, 8), FORMAT) for number in range(40)]
    reader = BatchReader(replay, FORMAT, 8, ahead=True)
    before, numbers, found = mapped_caches(), itertools.count(100), []
    for _ in range(2):
        wait_until(
            lambda: reader.read(next(numbers)) and replay.stats()["decoded_steps"] == 64 * 20, "all steps are decoded"
        )
        for number in range(40):
            for name, array in reader.read(number).items():
                np.testing.assert_array_equal(array, expected[number][name])
        assert not len(replay.sample_several([3], [8], this_machine())[0].data)
        wait_until(  # batches that were drawn before the kill may still be read from the old memory for a second
            lambda: (
                reader.read(next(numbers))
                and len(mapped_caches() - before) == 1
                and mapped_caches() - before not in found
            ),
            "the old memory is let go for the new",
        )
        found.append(mapped_caches() - before)
        os.kill(process_of(server), signal.SIGKILL)
    assert found[0] != found[1]
    replay.close()


def test_a_server_that_is_gone_for_good_is_reported_soon(start: Start) -> None:
    """Callers get one clear error instead of waiting for ever."""
    server = start()
    writer = RayChunkWriter(server)
    ray.kill(server)
    begun = time.monotonic()
    with pytest.raises(ReplayLostError, match="replay server"):
        RayReplay(server, timeout_s=PATIENCE_S).sample(0, 1)
    writer.append(cut(FORMAT, make_stream(FORMAT, [5]))[0])
    with pytest.raises(ReplayLostError, match="replay server"):
        writer.flush(PATIENCE_S)
    assert time.monotonic() - begun < PATIENCE_S / 2


def test_a_server_that_hangs_is_reported_after_the_time_limit(start: Start) -> None:
    """A stopped process makes no caller wait beyond its limit; once it continues, the chunks arrive after all."""
    server = start()
    process = process_of(server)
    os.kill(process, signal.SIGSTOP)
    try:
        with pytest.raises(ReplayLostError, match="did not answer 'counters' within 1 s"):
            RayReplay(server, timeout_s=1).counters()
        writer = RayChunkWriter(server, in_flight=2, timeout_s=1)
        chunks = cut(FORMAT, make_stream(FORMAT, [64 * 3]))
        writer.append(chunks[0])
        writer.append(chunks[1])
        with pytest.raises(ReplayLostError, match="did not acknowledge 2 chunks"):
            writer.append(chunks[2])
    finally:
        os.kill(process, signal.SIGCONT)
    writer.flush(PATIENCE_S)
    assert RayReplay(server).counters()[0] == 128


def test_the_server_s_log_is_handed_out_once(tmp_path: Path, start: Start) -> None:
    """What its process has to say of a torn file comes with the next question, from the opening on, and only then."""
    replay = Replay(tmp_path, FORMAT, SETTINGS, 20, 0)
    replay.append(cut(FORMAT, make_stream(FORMAT, [64]))[0])
    replay.close()
    with segment_paths(tmp_path)[0].open("ab") as file:
        file.write(b"DFCK")
    client = RayReplay(start())
    assert client.counters()[0] == 64
    (level, text), *others = client.log_records()
    assert (level, others) == (logging.WARNING, [])
    assert "4 bytes of a torn chunk at its end were cut off" in text
    assert client.log_records() == []


def test_the_server_takes_no_gpu(start: Start) -> None:
    """Its process sees no accelerator, whatever the machine has."""
    environment = Path(f"/proc/{process_of(start())}/environ").read_bytes().split(b"\0")
    assert b"CUDA_VISIBLE_DEVICES=" in environment


def test_a_direct_writer_stores_at_once(tmp_path: Path) -> None:
    """In one process a chunk is stored when `append` returns."""
    replay = Replay(tmp_path, FORMAT, SETTINGS, 20, 0)
    writer = DirectChunkWriter(replay)
    writer.append(cut(FORMAT, make_stream(FORMAT, [64]))[0])
    assert replay.counters().total_steps == 64
    writer.flush(0)
    replay.close()
