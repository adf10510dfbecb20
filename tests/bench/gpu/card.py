"""The card and what is installed, and what the card's arithmetic, memory and launches take at their best."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from statistics import median

import torch

from tests.bench.gpu import devices
from tests.bench.gpu.devices import wait_for
from tests.bench.gpu.findings import Recorder
from tests.bench.gpu.job import Job
from tests.bench.machine import describe_machine

METHOD = """
Matrix products of 8192×8192 of random numbers, the median of ten after three; a copy of 2 GiB, read and written; and
2,000 additions to 1,024 numbers, one upon the other: from the host, and replayed as one CUDA graph.
"""
_QUERY = "driver_version,memory.total,power.limit,clocks.max.sm,clocks.max.memory"


def measure(job: Job, recorder: Recorder) -> None:
    """Take down what the machine is, and its rates."""
    for name, value in describe_machine().items():
        if name != "commit":
            recorder.fact(name, value)
    device = job.device
    if devices.is_gpu(device):
        recorder.fact("card", _describe_card())
    table, headings = "what the card can do", ("what", "figure")
    for dtype in (torch.bfloat16, torch.float32):
        rate = _product_rate(device, dtype, job)
        name = str(dtype).removeprefix("torch.")
        recorder.figure(f"product {name} FLOP/s", rate)
        recorder.row(table, headings, (f"matrix product in {name}", f"{rate / 1e12:,.4g} TFLOP/s"))
    recorder.row(table, headings, ("copy on the device", f"{_copy_rate(device, job) / 1e9:,.4g} GB/s"))
    host_us, device_us = _launches(device, job, captured=False)
    recorder.row(table, headings, ("a small kernel, launched", f"host {host_us:.3g} µs, device {device_us:.3g} µs"))
    if devices.is_gpu(device):
        _, device_us = _launches(device, job, captured=True)
        recorder.row(table, headings, ("a small kernel, in a graph", f"device {device_us:.3g} µs"))


def _describe_card() -> str:
    properties = torch.cuda.get_device_properties(0)
    shown = f"capability {properties.major}.{properties.minor}, {properties.multi_processor_count} multiprocessors"
    shown += f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    try:
        command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return f"{shown}; nvidia-smi does not answer"
    answer = done.stdout.strip().splitlines()[0]
    return (
        f"{shown}; {', '.join(f'{n} {v.strip()}' for n, v in zip(_QUERY.split(','), answer.split(','), strict=False))}"
    )


def _seconds(device: torch.device, run: Callable[[], object], times: int, warm_up: int) -> float:
    """Return the median seconds of a run."""
    took = []
    for turn in range(warm_up + times):
        wait_for(device)
        begun = time.perf_counter()
        run()
        wait_for(device)
        if turn >= warm_up:
            took.append(time.perf_counter() - begun)
    return median(took)


def _product_rate(device: torch.device, dtype: torch.dtype, job: Job) -> float:
    side = job.choose(8192, 64)
    first, second = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / _seconds(device, lambda: first @ second, job.choose(10, 1), job.choose(3, 1))


def _copy_rate(device: torch.device, job: Job) -> float:
    source = torch.empty(job.choose(2**31, 2**10), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _seconds(device, lambda: target.copy_(source), job.choose(10, 1), job.choose(3, 1))


def _launches(device: torch.device, job: Job, captured: bool) -> tuple[float, float]:
    """Return the microseconds that one of many small kernels takes the host to launch, and until all are done."""
    times, numbers = job.choose(2000, 10), torch.zeros(1024, device=device)

    def launch() -> None:
        for _ in range(times):
            numbers.add_(1.0)

    run: Callable[[], object] = launch
    launch()
    if captured:
        wait_for(device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            launch()
        run = graph.replay
    hosts = []

    def timed() -> None:
        begun = time.perf_counter()
        run()
        hosts.append(time.perf_counter() - begun)

    whole_s = _seconds(device, timed, job.choose(5, 1), 1)
    return 1e6 * median(hosts) / times, 1e6 * whole_s / times
