"""Takes the uncompressed ELF kernel out of a bzImage.

QEMU enters an ELF kernel directly (PVH), so that an emulated CPU does not spend 3 s on decompressing it. Layout: the kernel's
Documentation/arch/x86/boot.rst ("Details of header fields").
"""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

from .errors import RunnerError

SETUP_SECTS = 0x1F1
PAYLOAD_OFFSET = 0x248
PAYLOAD_LENGTH = 0x24C
SECTOR = 512
DEFAULT_SETUP_SECTS = 4  # what 0 means, for old boot loaders

ELF = b"\x7fELF"
MAGIC = {b"\x28\xb5\x2f\xfd": "zstd", b"\x02\x21\x4c\x18": "lz4", b"\xfd7zX": "xz"}


def extract(image: Path, decompress: Callable[[str, bytes], bytes]) -> bytes:
    """The ELF image; `decompress(tool, data)` runs zstd, lz4 or xz and may leave trailing bytes alone."""
    data = image.read_bytes()
    setup = data[SETUP_SECTS] or DEFAULT_SETUP_SECTS
    offset, length = struct.unpack_from("<II", data, PAYLOAD_OFFSET)
    start = (setup + 1) * SECTOR + offset
    payload = data[start : start + length - 4]  # the last 4 bytes are the uncompressed size
    tool = MAGIC.get(payload[:4])
    if tool:
        elf = decompress(tool, payload)
    elif payload[:2] == b"\x1f\x8b":
        elf = gzip.decompress(payload)
    else:
        raise RunnerError(f"{image}: the kernel is compressed in an unknown way, its first bytes are {payload[:6].hex()}")
    if not elf.startswith(ELF):
        raise RunnerError(f"{image}: {tool or 'gzip'} did not yield an ELF kernel")
    return elf
