"""Whether anything grows with the orders that are given: `python -m tests.bench.orders_soak --minutes 60`.

A few actors on Ray answer at once, two orders in flight each, as in the loop's benchmark, but for as long as is asked.
Every minute the resident memory of the driver and of all processes that it started is printed, by what they are.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter

import psutil

from tests.bench.loop import order_about, sizes, start_calls
from tests.bench.ray_session import local_ray

ORDERS_AT_A_TIME = 500


def main() -> None:
    """Give orders for some minutes, and print what all processes take."""
    parser = argparse.ArgumentParser(description="Give orders on Ray for a long time, and see whether anything grows.")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=1000.0, help="orders a second, at most")
    parser.add_argument("--actors", type=int, default=2)
    given = parser.parse_args()
    with local_ray():
        pool, workers, weights = start_calls(given.actors)
        begun, orders, due = time.monotonic(), 0, 0.0
        while time.monotonic() - begun < 60 * given.minutes:
            order_about(pool, workers, weights, ORDERS_AT_A_TIME)
            orders += ORDERS_AT_A_TIME
            time.sleep(max(0.0, begun + orders / given.rate - time.monotonic()))
            if time.monotonic() >= due:
                due = time.monotonic() + 60.0
                say_sizes(time.monotonic() - begun, orders)
        say_sizes(time.monotonic() - begun, orders)


def say_sizes(passed_s: float, orders: int) -> None:
    """Print a line: minutes, orders, and megabytes of each kind of process."""
    found: Counter[str] = Counter({"driver": psutil.Process().memory_info().rss})
    for name, size in sizes().items():
        found[name.rsplit(" ", 1)[0]] += size
    listed = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in sorted(found.items()))
    print(f"{passed_s / 60:5.1f} min, {orders:,} orders ({orders / max(passed_s, 1):,.0f}/s), MB: {listed}", flush=True)


if __name__ == "__main__":
    main()
