"""Values of flags that are not of a setting; argparse names what is wrong with one."""

from __future__ import annotations

import argparse


def name_list(text: str) -> tuple[str, ...]:
    """Return names that are separated by commas."""
    return tuple(map(str.strip, text.strip("[] ").split(",")))


def checkpoint(text: str) -> str:
    """Return which checkpoint of a run is meant."""
    if text not in ("newest", "best") and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is neither newest, nor best, nor a number of updates")
    return text


def natural(text: str, least: int = 0) -> int:
    """Return a whole number, at least `least`."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None
    if value < least:
        raise argparse.ArgumentTypeError(f"{text} is less than {least}")
    return value


def port(text: str) -> int:
    """Return the number of a port, 0 for one that is free."""
    value = natural(text)
    if value > 65_535:
        raise argparse.ArgumentTypeError(f"{text} is greater than 65535; 0 takes a free one")
    return value


def positive(text: str) -> int:
    """Return a whole number from 1 on."""
    return natural(text, least=1)


def side(text: str) -> int:
    """Return the side of a picture, as encoders want it."""
    value = positive(text)
    if value % 16:
        raise argparse.ArgumentTypeError(f"{text} is no multiple of 16, as encoders want it; most take 64")
    return value


def rate(text: str) -> float:
    """Return a number greater than 0."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not greater than 0")
    return value
