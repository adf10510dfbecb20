"""Inputs that are almost right: documents and files with something changed, each with its checksums made right again.

What is entirely random is refused at the first byte; what is found behind a checksum is found by changing a value and
computing the checksum anew.
"""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

ODD_NUMBERS = st.sampled_from(
    [
        0,
        1,
        -1,
        2,
        7,
        63,
        64,
        65,
        255,
        2**31 - 1,
        2**31,
        2**32,
        2**53,
        2**63,
        -(2**63),
        10**30,
        10**400,
        0.5,
        -0.0,
        1e308,
    ]
)
ODD_TEXTS = st.sampled_from(
    ["", "0", "nan", "inf", "-inf", "\x00", "é", "☃", "a" * 300, "float32", "uint8", "../..", "null"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | ODD_NUMBERS | st.floats() | ODD_TEXTS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ODD_TEXTS | st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
"""JSON values of any kind, small."""


def places_of(document: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value in a JSON document, its own first."""
    found = [at]
    if isinstance(document, dict):
        for key, value in document.items():
            found += places_of(value, (*at, key))
    elif isinstance(document, list):
        for number, value in enumerate(document):
            found += places_of(value, (*at, number))
    return found


@st.composite
def changed_documents(draw: st.DrawFn, document: Any) -> Any:
    """Return a JSON document with one to three of its values replaced, removed, doubled or moved."""
    found = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        *above, last = draw(st.sampled_from(places_of(found)[1:] or [()])) or [None]
        if last is None:
            return draw(VALUES)
        parent = found
        for key in above:
            parent = parent[key]
        what = draw(st.sampled_from(["replace", "replace", "replace", "remove", "double", "take another's"]))
        if what == "remove":
            del parent[last]
        elif what == "double" and isinstance(parent, list):
            parent.insert(last, copy.deepcopy(parent[last]))
        elif what == "take another's":
            other = found
            for key in draw(st.sampled_from(places_of(found))):
                other = other[key]
            parent[last] = copy.deepcopy(other)
        else:
            parent[last] = draw(VALUES)
    return found


@st.composite
def changed_bytes(draw: st.DrawFn, data: bytes, words: tuple[bytes, ...] = ()) -> bytes:
    """Return bytes with one to four edits: flipped, replaced, removed, inserted, doubled or cut off."""
    found = bytearray(data)
    pieces = st.binary(min_size=1, max_size=8) | st.sampled_from([b"\x00" * 8, b"\xff" * 8, *words])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(found)))
        size = draw(st.integers(1, 64))
        what = draw(st.sampled_from(["flip", "replace", "remove", "insert", "double", "cut"]))
        if what == "flip" and at < len(found):
            found[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "replace":
            piece = draw(pieces)
            found[at : at + len(piece)] = piece
        elif what == "remove":
            del found[at : at + size]
        elif what == "insert":
            found[at:at] = draw(pieces)
        elif what == "double":
            found[at:at] = found[at : at + size]
        elif what == "cut":
            del found[at:]
    return bytes(found)


def json_texts(document: Any) -> st.SearchStrategy[bytes]:
    """Return texts of a changed document, and of the document with changed bytes."""
    text = json.dumps(document).encode()
    return changed_documents(document).map(_dump) | changed_bytes(text) | st.binary(max_size=60)


def _dump(document: Any) -> bytes:
    return json.dumps(document).encode()
