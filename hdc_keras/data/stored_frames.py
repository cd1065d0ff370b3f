"""Writes and finds the frames of one video in a record of a prepared set, a serialised `tf.train.SequenceExample`.

The context of a record has a table: the size and the CRC-32 of each JPEG. The JPEGs are at the end of the record, so
their sizes say where each of them is, and a few frames are read without the others. Records of version 0.1.0 have no
table and are read whole.
"""

import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from hdc_keras.data.records import StoredVideo
from hdc_keras.data.storage import near, read_ranges

FRAMES = "frames"
TABLE = "frame_table"
# A record of a TFRecord file: length of the data (8 bytes), checksum of the length (4), data, checksum of the data (4).
HEADER_BYTES, FOOTER_BYTES = 12, 4
# Messages around each JPEG: Feature, BytesList and bytes.
_LEVELS = 3
_VARINT_BITS = 7


def table_of(jpegs: Sequence[bytes]) -> bytes:
    """The table of a video: the sizes of its JPEGs, then their CRC-32, as little-endian 32-bit integers."""
    return np.array([[*map(len, jpegs)], [*map(zlib.crc32, jpegs)]], "<u4").tobytes()


def frame_starts(sizes: np.ndarray, end: int) -> np.ndarray:
    """Where each JPEG of a record begins, if the last one ends at byte `end`."""
    with_tags = sizes.astype(np.int64)
    for _ in range(_LEVELS):
        varint = 1 + sum(with_tags >= 1 << bits for bits in range(_VARINT_BITS, 35, _VARINT_BITS))
        with_tags = 1 + varint + with_tags
    after = np.cumsum(with_tags[::-1])[::-1] - with_tags  # bytes from the end of a JPEG to the end of the record
    return end - after - sizes


def read_jpegs(stored: StoredVideo, positions: Sequence[int]) -> list[memoryview]:
    """The JPEGs of some frames of a video, read without the others.

    Args:
        stored: location of the video.
        positions: frame numbers, ascending and without repetition.

    Raises:
        OSError: the record cannot be read.
        ValueError: it is damaged.
        IndexError: it has no such frame.
        DataError: the store of the record refuses, or cannot be reached.
    """
    record = stored.offset, stored.offset + stored.size
    if not stored.table:
        (data,) = read_ranges(stored.shard, [record])
        jpegs = list(_feature_list(data[HEADER_BYTES:-FOOTER_BYTES], FRAMES))
        if len(jpegs) != stored.frames:
            raise ValueError(f"contains {len(jpegs)} frames, but its index says {stored.frames}")
        return [jpegs[position] for position in positions]
    # One read of the record is faster than two if it is short, or if most of it is needed.
    at_once = stored.size <= near(stored.shard) or 2 * len(positions) >= stored.frames
    whole = read_ranges(stored.shard, [record])[0] if at_once else None

    def read(ranges: list[tuple[int, int]]) -> list[memoryview]:
        if whole is None:
            return read_ranges(stored.shard, ranges)
        return [whole[first - record[0] : end - record[0]] for first, end in ranges]

    begin = stored.offset + stored.table
    (table,) = read([(begin, begin + 8 * stored.frames)])
    sizes, checksums = np.frombuffer(table, "<u4").reshape(2, stored.frames).astype(np.int64)
    starts = frame_starts(sizes, record[1] - FOOTER_BYTES)
    if starts[0] < begin + len(table):
        raise ValueError("its table of frames is damaged")
    chosen = np.asarray(positions)
    jpegs = read([*zip(starts[chosen].tolist(), (starts + sizes)[chosen].tolist(), strict=True)])
    for position, jpeg in zip(positions, jpegs, strict=True):
        if zlib.crc32(jpeg) != checksums[position]:
            raise ValueError(f"frame {position} is damaged")
    return jpegs


def _feature_list(example: memoryview, name: str) -> Iterator[memoryview]:
    """Yield the byte strings of one feature list of a serialised `SequenceExample`.

    Parses the wire format of protocol buffers, which needs neither TensorFlow nor generated classes. Every message on
    the way to the bytes (FeatureLists 2, entry 1, FeatureList 2, Feature 1, BytesList 1, bytes 1) is a length-delimited
    field.
    """
    for lists in _fields(example, 2):
        for entry in _fields(lists, 1):
            if bytes(_field(entry, 1)) == name.encode():
                for feature in _fields(_field(entry, 2), 1):
                    yield _field(_field(feature, 1), 1)


def _fields(message: memoryview, number: int) -> Iterator[memoryview]:
    """Yield the contents of the fields with that number. All fields of the message must be length-delimited."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        if tag & 7 != 2:
            raise ValueError("is not a SequenceExample")
        size, position = _varint(message, position)
        if position + size > len(message):
            raise ValueError("is truncated")
        if tag >> 3 == number:
            yield message[position : position + size]
        position += size


def _field(message: memoryview, number: int) -> memoryview:
    content = next(_fields(message, number), None)
    if content is None:
        raise ValueError("is not a SequenceExample of frames")
    return content


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Read a variable-length integer. Returns it and the position after it."""
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if not byte & 0x80:
            return value, position
