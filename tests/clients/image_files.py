"""Images for the client programs: generates small ones to send, and says what a received one is.

    python3 image_files.py FILE        prints what FILE is, as JSON
    python3 image_files.py --write FILE writes a small PNG there
"""

import json
import struct
import sys
import zlib


def make(width=96, height=64, colour=(200, 80, 40)):
    """A PNG of one colour fading to black, from top to bottom."""

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = b"".join(
        b"\0" + bytes(channel * (height - y) // height for channel in colour) * width for y in range(height)
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def describe(data):
    """Format, width, height and size of an image, from its bytes; fails for what is none."""
    format, (width, height) = _identify(data)
    return {"format": format, "width": width, "height": height, "bytes": len(data)}


def _identify(data):
    if data.startswith(b"\x89PNG\r\n\x1a\n") and data.endswith(b"IEND\xaeB`\x82"):
        return "png", struct.unpack(">II", data[16:24])
    if data.startswith(b"\xff\xd8\xff") and data.rstrip(b"\0").endswith(b"\xff\xd9"):
        return "jpeg", _jpeg_size(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp", _webp_size(data)
    raise ValueError(f"not a whole PNG, JPEG or WebP: {len(data)} bytes beginning {data[:12]!r}")


def _jpeg_size(data):
    at = 2
    while at < len(data):
        marker, length = data[at + 1], struct.unpack(">H", data[at + 2 : at + 4])[0]
        # The frame headers; C4, C8 and CC in their midst are tables.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        at += 2 + length
    raise ValueError("a JPEG without a frame")


def _webp_size(data):
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack("<HH", data[26:30])
    return width & 0x3FFF, height & 0x3FFF


if __name__ == "__main__":
    if sys.argv[1] == "--write":
        with open(sys.argv[2], "wb") as file:
            file.write(make())
    else:
        with open(sys.argv[1], "rb") as file:
            print(json.dumps(describe(file.read())))
