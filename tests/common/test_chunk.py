"""The chunk format: what is encoded is decoded unchanged, and damage never goes unnoticed."""

from __future__ import annotations

import numpy as np
import pytest
from make_chunks import counting_format, cut, image_format, make_stream, mixed_format

from dreamfleet.common.experience.blocks import DamagedChunkError, block_numbers, read_small_fields, read_steps
from dreamfleet.common.experience.chunk import PREFIX, ChunkKey, check_chunk, decode_chunk, encode_chunk, parse_header
from dreamfleet.common.experience.spaces import ActionSpec
from dreamfleet.common.experience.steps import StepFormat

BOX = ActionSpec("box", (2,), (-1, -1), (1, 1), (2,))
FORMATS = {
    "discrete": mixed_format(ActionSpec("discrete", (5,))),
    "multi_discrete": mixed_format(ActionSpec("multi_discrete", (3, 4))),
    "box": mixed_format(BOX),
    "vector": counting_format(),
    "grey": image_format(32, 1),
    "two channels": image_format(24, 2),
    "stacked": image_format(16, 12),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("steps", [1, 15, 16, 17, 64])
def test_every_field_comes_back_bit_for_bit(name: str, steps: int) -> None:
    """Every dtype and shape survives, in chunks that end within, at and after a block."""
    step_format = FORMATS[name]
    arrays = make_stream(step_format, [steps], seed=steps)
    decoded = decode_chunk(step_format, cut(step_format, arrays)[0])
    assert set(decoded) == {field.name for field in step_format.fields}
    for field in step_format.fields:
        assert decoded[field.name].dtype == np.dtype(field.dtype)
        np.testing.assert_array_equal(decoded[field.name], arrays[field.name])


def test_special_numbers_come_back() -> None:
    """Not a number, infinity and negative zero are stored as they are."""
    step_format = counting_format()
    arrays = make_stream(step_format, [5])
    arrays["reward"][:] = [np.nan, np.inf, -np.inf, -0.0, 1e-42]
    decoded = decode_chunk(step_format, cut(step_format, arrays)[0])
    assert decoded["reward"].tobytes() == arrays["reward"].tobytes()


def test_header_tells_the_chunk_without_its_body() -> None:
    """Key, counters, flags and versions are read from the header alone."""
    step_format = mixed_format()
    arrays = make_stream(step_format, [10, 20, 7], first_episode=3)
    arrays["version"][:] = np.arange(37) + 5
    chunk = encode_chunk(step_format, ChunkKey(1, 2, 3, 2**40), 2**41, arrays)
    header_bytes = PREFIX.unpack_from(chunk)[1]
    header = parse_header(chunk[: PREFIX.size + header_bytes])
    assert header.key == (1, 2, 3, 2**40)
    assert (header.first_step, header.episode, header.steps) == (2**41, 3, 37)
    assert header.first_mask == 1 | 1 << 10 | 1 << 30
    assert header.last_mask == 1 << 9 | 1 << 29 | 1 << 36
    assert header.terminal_mask == 1 << 9 | 1 << 36
    assert (header.oldest_version, header.newest_version) == (5, 41)
    assert header.chunk_bytes == len(chunk)


@pytest.mark.parametrize("bounds", [(0, 1), (0, 40), (3, 14), (15, 17), (16, 32), (5, 40), (39, 40)])
def test_part_of_a_chunk_is_read_from_its_blocks_alone(bounds: tuple[int, int]) -> None:
    """Any range of steps is decoded from no more blocks than `block_numbers` names."""
    step_format, (start, stop) = mixed_format(), bounds
    arrays = make_stream(step_format, [40])
    chunk = memoryview(cut(step_format, arrays)[0])
    header = parse_header(chunk)
    blocks = {}
    for number in block_numbers(step_format, 40, start, stop):
        block = header.blocks[number]
        blocks[number] = (block, chunk[block.offset : block.offset + block.stored_bytes])
    out = {f.name: np.empty((stop - start, *f.shape), f.dtype) for f in step_format.fields}
    read_steps(step_format, 40, start, stop, blocks, out)
    for name, array in out.items():
        np.testing.assert_array_equal(array, arrays[name][start:stop])


def test_steps_are_decoded_into_arrays_of_any_layout() -> None:
    """An array that is not contiguous is filled like any other."""
    step_format = mixed_format()
    arrays = make_stream(step_format, [20])
    chunk = memoryview(cut(step_format, arrays)[0])
    blocks = {n: (b, chunk[b.offset : b.offset + b.stored_bytes]) for n, b in enumerate(parse_header(chunk).blocks)}
    out = {f.name: np.empty((10, *f.shape, 2), f.dtype)[..., 0] for f in step_format.fields}
    read_steps(step_format, 20, 5, 15, blocks, out)
    for name, array in out.items():
        np.testing.assert_array_equal(array, arrays[name][5:15])


def test_small_fields_are_read_without_the_pictures() -> None:
    """The first block alone gives rewards and flags."""
    step_format = image_format(16)
    arrays = make_stream(step_format, [30])
    chunk = memoryview(cut(step_format, arrays)[0])
    block = parse_header(chunk).blocks[0]
    stored = chunk[block.offset : block.offset + block.stored_bytes]
    small = read_small_fields(step_format, 30, [(block, stored), (block, stored)])
    assert "image" not in small
    for copy in range(2):
        np.testing.assert_array_equal(small["reward"][copy], arrays["reward"])
        np.testing.assert_array_equal(small["action"][copy], arrays["action"])


def test_every_flipped_bit_is_noticed() -> None:
    """No byte of a chunk can change without `check_chunk` saying so."""
    step_format = mixed_format()
    chunk = cut(step_format, make_stream(step_format, [3]))[0]
    check_chunk(step_format, chunk)
    for position in range(len(chunk)):
        damaged = bytearray(chunk)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(DamagedChunkError):
            check_chunk(step_format, bytes(damaged))


def test_every_torn_record_is_noticed() -> None:
    """A chunk cut off anywhere, or with something after it, is refused."""
    step_format = counting_format()
    chunk = cut(step_format, make_stream(step_format, [3]))[0]
    for size in range(len(chunk)):
        with pytest.raises(DamagedChunkError):
            check_chunk(step_format, chunk[:size])
    with pytest.raises(DamagedChunkError):
        check_chunk(step_format, chunk + b"x")


def test_another_format_is_refused() -> None:
    """A chunk of other shapes is not decoded as something it is not."""
    chunk = cut(image_format(16), make_stream(image_format(16), [3]))[0]
    for read in (check_chunk, decode_chunk):
        with pytest.raises(DamagedChunkError, match="format"):
            read(image_format(32), chunk)


@pytest.mark.parametrize("steps", [0, 65])
def test_a_chunk_of_the_wrong_length_is_not_made(steps: int) -> None:
    """A chunk holds 1 to 64 steps."""
    step_format = counting_format()
    arrays = {field.name: np.zeros((steps, *field.shape), field.dtype) for field in step_format.fields}
    with pytest.raises(ValueError, match="1 to 64"):
        encode_chunk(step_format, ChunkKey(0, 0, 0, 0), 0, arrays)


def test_an_array_of_the_wrong_type_is_not_stored() -> None:
    """A float64 reward is refused by name, not converted."""
    step_format = counting_format()
    arrays = make_stream(step_format, [3]) | {"reward": np.zeros(3)}
    with pytest.raises(ValueError, match="'reward' is float64"):
        encode_chunk(step_format, ChunkKey(0, 0, 0, 0), 0, arrays)


def test_noise_is_stored_raw_and_stripes_small() -> None:
    """What does not compress costs its own size and a small header; what does compress is small."""
    step_format = image_format(32)
    arrays = make_stream(step_format, [64])
    arrays["image"][:] = np.random.default_rng(0).integers(0, 256, arrays["image"].shape, np.uint8)
    assert len(cut(step_format, arrays)[0]) < arrays["image"].nbytes + 4000
    arrays["image"][:] = 7
    assert len(cut(step_format, arrays)[0]) < arrays["image"].nbytes / 50


def test_the_format_survives_json() -> None:
    """A format rebuilt from its JSON has the same identity, and another box has another."""
    step_format = mixed_format(BOX)
    assert StepFormat.from_json(step_format.to_json()).identity == step_format.identity
    assert mixed_format(ActionSpec("box", (2,), (-2, -1), (1, 1), (2,))).identity != step_format.identity
