"""The dated page, and beside it the same as JSON, both written anew whenever a part has found something."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.bench.gpu.findings import Findings, findings_of, write_json


@dataclass
class Result:
    """What became of a part.

    Attributes:
        status: done, skipped, under way, failed, killed, cut (its time was up) or not begun.
        reason: the sentence of why it is not done.
        seconds: that it took.
        last_lines: of its output, where it did not come to its end.
        findings: all that it found, whatever ended it.
        when, commit: filled in by the page.
    """

    status: str
    reason: str = ""
    seconds: float = 0.0
    last_lines: list[str] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)
    when: str = ""
    commit: str = ""


class Page:
    """The page and its results; those of the same day that are not measured now are kept.

    Attributes:
        path: of the page.

    Args:
        folder: where it lies.
        stem: its name without the ending.
        command: what is run now.
        commit: that is measured now.
    """

    def __init__(self, folder: Path, stem: str, command: str, commit: str) -> None:
        self.path = folder / f"{stem}.md"
        self._json = folder / f"{stem}.json"
        self._command, self._commit = command, commit
        self._results: dict[str, Result] = {}
        if self._json.exists():
            for name, saved in json.loads(self._json.read_text()).items():
                self._results[name] = Result(**{**saved, "findings": findings_of(saved["findings"])})

    def put(self, name: str, result: Result) -> None:
        """Take a part's result, or what it has so far, and write the page."""
        result.when = f"{dt.datetime.now().astimezone():%H:%M}"
        result.commit = self._commit
        self._results[name] = result
        write_json(self._json, {name: asdict(result) for name, result in self._results.items()})
        self.path.write_text(self.render(), encoding="utf-8")

    def figures(self) -> dict[str, float]:
        """Return the figures of all parts so far."""
        return {name: value for result in self._results.values() for name, value in result.findings.figures.items()}

    def render(self) -> str:
        """Return the page."""
        from tests.bench.gpu.schedule import NAMED, PARTS

        order = [part.name for part in (*PARTS, *NAMED) if part.name in self._results]
        facts = {name: fact for result in self._results.values() for name, fact in result.findings.facts.items()}
        sections = [
            f"# On a GPU, {self.path.stem.removeprefix('gpu-')}",
            f"`{self._command}`, commit {self._commit}",
            "**A dry run: of tiny sizes, without meaning.**" if self.path.stem.endswith("dry-run") else "",
            "\n".join(f"* {name}: {fact}" for name, fact in facts.items()),
            "## Aims",
            self._render_aims(order),
            "## Parts",
            _table([["part", "how it ended", "seconds", "when"], *(self._summary(name) for name in order)]),
        ]
        for name in order:
            sections += _render_part(name, self._results[name])
        methods: dict[str, list[str]] = {}
        for name in order:
            methods.setdefault(self._results[name].findings.method, []).append(name)
        sections.append("## How it is measured")
        sections += [f"**{', '.join(names)}.** {method}" for method, names in methods.items() if method]
        return "\n\n".join(section for section in sections if section) + "\n"

    def _summary(self, name: str) -> list[str]:
        result = self._results[name]
        at = result.when if result.commit == self._commit else f"{result.when}, commit {result.commit}"
        status = result.status if result.status == "done" else f"**{result.status}**"
        return [name, f"{status}{': ' if result.reason else ''}{result.reason}", f"{result.seconds:.0f}", at]

    def _render_aims(self, order: Sequence[str]) -> str:
        rows = [
            [text, found, "yes" if met else "**no**"]
            for name in order
            for text, found, met in self._results[name].findings.aims
        ]
        return _table([["aim", "found", "met"], *rows]) if rows else "None of them could be measured."


def _render_part(name: str, result: Result) -> list[str]:
    """Return the sections of a part."""
    found = result.findings
    if result.status == "skipped" and not found.tables:
        return []
    sections = [f"## {name}"]
    if result.status != "done":
        sections.append(f"**{result.status}**{': ' if result.reason else ''}{result.reason}")
    if result.last_lines:
        sections.append("Its last lines:\n\n```\n" + "\n".join(result.last_lines) + "\n```")
    sections.append("\n".join(f"* {note}" for note in found.notes))
    for title, rows in found.tables.items():
        sections.append(f"**{title}**\n\n{_table(rows)}")
    sections += [f"![{Path(picture).stem}]({picture})" for picture in found.pictures]
    return sections


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def _cell(text: str) -> str:
    """Return a text that keeps to its cell."""
    return " ".join(text.replace("|", "\\|").split())
