"""The lane of a GPU: what it asks of CUDA, in which order, seen on stand-ins for streams and events."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from dreamfleet.learner.lane import CudaLane, HiddenWork, Lane, make_lane


class FakeCuda:
    """Streams and events that only tell what was asked of them, in `told`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[str] = []
        self.events = 0
        self.current = "updates"
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream(self, "lane"))
        monkeypatch.setattr(torch.cuda, "Event", partial(FakeEvent, self))
        monkeypatch.setattr(torch.cuda, "stream", self.on_stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: FakeStream(self, self.current))

    @contextmanager
    def on_stream(self, stream: FakeStream) -> Iterator[None]:
        """Be on a stream."""
        before, self.current = self.current, stream.name
        yield
        self.current = before


class FakeStream:
    """A stream with a name."""

    def __init__(self, cuda: FakeCuda, name: str) -> None:
        self.name = name
        self._told = cuda.told

    def wait_stream(self, other: FakeStream) -> None:
        self._told.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event: FakeEvent) -> None:
        self._told.append(f"{self.name} waits for event {event.number}")


class FakeEvent:
    """An event with a number."""

    def __init__(self, cuda: FakeCuda, enable_timing: bool, blocking: bool) -> None:
        assert enable_timing
        assert blocking, "a thread that waits must not spin"
        cuda.events += 1
        self.number = cuda.events
        self._told = cuda.told

    def record(self, stream: FakeStream) -> None:
        self._told.append(f"event {self.number} on {stream.name}")

    def synchronize(self) -> None:
        self._told.append(f"host waits for event {self.number}")

    def elapsed_time(self, other: FakeEvent) -> float:
        return 5.0 * (other.number - self.number)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Return stand-ins for what a build without CUDA lacks."""
    return FakeCuda(monkeypatch)


def test_a_copy_is_on_the_lane_and_the_updates_wait_for_it(cuda: FakeCuda) -> None:
    """The event is recorded where the copy is, and followed where it is read."""
    lane = CudaLane(torch.device("cuda", 0), HiddenWork())
    target, source = torch.zeros(2), torch.ones(2)
    with lane.side():
        begun = lane.mark()
        lane.copy(target, source)
        copied = lane.mark()
    lane.follow(copied)
    assert target.tolist() == [1, 1]
    assert lane.seconds_between(begun, copied) == 0.005
    assert cuda.told == ["event 1 on lane", "event 2 on lane", "updates waits for event 2", "host waits for event 2"]


def test_memory_on_the_device_is_the_lanes_and_the_updates(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lane writes to it only after its last owner, and it is not given away while the lane writes."""
    recorded: list[Any] = []
    monkeypatch.setattr(torch, "empty_like", lambda host, device: host.new_empty(host.shape))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: recorded.append(tensor))
    lane = CudaLane(torch.device("cuda", 0), HiddenWork())
    tensor = lane.on_device(torch.ones(3))
    assert tensor is recorded[0]
    assert cuda.told == ["lane waits for updates"]


def test_weights_leave_through_pinned_memory(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lane waits for the updates' mark, and the thread for the copy."""
    pinned: list[bool] = []

    def empty(shape: Any, dtype: torch.dtype, pin_memory: bool) -> torch.Tensor:
        pinned.append(pin_memory)
        return torch.zeros(shape, dtype=dtype)

    monkeypatch.setattr(torch, "empty", empty)
    lane = CudaLane(torch.device("cuda", 0), HiddenWork())
    values = lane.to_host(torch.arange(3.0), lane.mark())
    assert values.tolist() == [0, 1, 2]
    assert pinned == [True]
    assert cuda.told == [
        "event 1 on updates",
        "lane waits for event 1",
        "event 2 on lane",
        "host waits for event 2",
    ]


def test_work_in_a_thread_brings_its_result_or_its_error(cuda: FakeCuda) -> None:
    """Its seconds are added up under its name."""
    hidden = HiddenWork()
    lane = CudaLane(torch.device("cuda", 0), hidden)
    assert lane.start("save", lambda: 7).result(60) == 7
    with pytest.raises(ZeroDivisionError):
        lane.start("save", lambda: 1 // 0).result(60)


def test_a_plain_lane_does_everything_at_once() -> None:
    """On a CPU nothing is copied, and nothing is measured."""
    hidden = HiddenWork()
    for device, beside in (("cpu", True), ("cpu", False), ("cuda", False)):
        lane = make_lane(torch.device(device), hidden, beside)
        assert type(lane) is Lane
        assert not lane.is_beside
    lane = make_lane(torch.device("cpu"), hidden, beside=True)
    host = lane.on_host((2,), "uint8")
    assert lane.on_device(host) is host
    assert lane.start("publish", lambda: 3).result(0) == 3
    assert np.array_equal(lane.to_host(torch.ones(2), lane.mark()), np.ones(2))
    assert lane.seconds_between(lane.mark(), lane.mark()) == 0
    assert hidden.take() == {}


def test_hidden_work_is_added_up_and_taken() -> None:
    """Each name has a sum since the last look."""
    hidden = HiddenWork()
    hidden.add("fetch", 1.0)
    hidden.add("fetch", 2.0)
    hidden.add("transfer", 0.0)
    assert hidden.take() == {"fetch": 3.0}
    assert hidden.take() == {}
