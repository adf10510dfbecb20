"""What a part found, written to a file whenever something is added, so that a part cut short leaves what it has."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


class SkippedError(Exception):
    """A part cannot be measured here, and the text says why."""


@dataclass
class Findings:
    """What a part found.

    Attributes:
        facts: of the machine, ready to print.
        figures: numbers that later parts use, by name.
        tables: by title: the headings, and then the rows.
        aims: what was aimed at, what was found, and whether that is met.
        notes: sentences.
        pictures: file names beside the page.
        method: how the part measures.
        error: the sentence of what ended the part.
        skipped: why it cannot be measured here.
    """

    facts: dict[str, str] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    aims: list[tuple[str, str, bool]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    method: str = ""
    error: str = ""
    skipped: str = ""


class Recorder:
    """Takes down what a part finds.

    Attributes:
        findings: so far.

    Args:
        path: the file that always has all of it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.findings = Findings()

    def method(self, text: str) -> None:
        """Take down how the part measures."""
        self.findings.method = " ".join(text.split())
        self._write()

    def fact(self, name: str, value: str) -> None:
        """Take down what the machine is."""
        self.findings.facts[name] = value
        self._write()

    def figure(self, name: str, value: float) -> None:
        """Take down a number that later parts need."""
        self.findings.figures[name] = value
        self._write()

    def row(self, table: str, headings: Sequence[str], cells: Sequence[object]) -> None:
        """Add a row to the table of this title."""
        assert len(headings) == len(cells), f"{table}: {len(cells)} cells under {len(headings)} headings"
        rows = self.findings.tables.setdefault(table, [list(headings)])
        rows.append([str(cell) for cell in cells])
        say(" | ".join(map(str, cells)))
        self._write()

    def aim(self, text: str, found: str, met: bool) -> None:
        """Take down whether an aim is met."""
        self.findings.aims.append((text, found, met))
        self._write()

    def note(self, sentence: str) -> None:
        """Take down a sentence."""
        self.findings.notes.append(sentence)
        say(sentence)
        self._write()

    def picture(self, name: str) -> None:
        """Take down that there is a picture of this name beside the page."""
        self.findings.pictures.append(name)
        self._write()

    def failed(self, error: BaseException) -> None:
        """Take down what ended the part."""
        if isinstance(error, SkippedError):
            self.findings.skipped = str(error)
        else:
            self.findings.error = f"{type(error).__name__}: {error}"
        self._write()

    def _write(self) -> None:
        write_json(self._path, asdict(self.findings))


def read_findings(path: Path) -> Findings:
    """Return what a part has written; nothing if it has not come so far."""
    return findings_of(json.loads(path.read_text())) if path.exists() else Findings()


def findings_of(saved: dict[str, Any]) -> Findings:
    """Return what was saved as JSON."""
    return Findings(**{**saved, "aims": [tuple(aim) for aim in saved["aims"]]})


def write_json(path: Path, value: Any) -> None:
    """Replace a file in one step: whoever reads it sees the old or the new one, whole."""
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(beside, path)  # noqa: PTH105 (one step, where Path.rename is another word for the same)


_BEGUN = time.monotonic()


def say(text: str) -> None:
    """Report progress."""
    print(f"[{time.monotonic() - _BEGUN:6.1f} s] {text}", flush=True)
