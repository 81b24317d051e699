"""The zip archive that `torch.save` writes, read from its end: where each storage lies.

Layout: APPNOTE.TXT 6.3.10 (PKWARE) and torch's inline_container.cc: members stored uncompressed, data padded
to 64 bytes or more by the *local* header's extra field, zip64 end records always written, CRC-32 of every member
in the central directory (0 where `torch.serialization.set_crc32_options(False)` was in force).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from types import MappingProxyType
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo
from zlib import crc32

from pythia_dynamics.checkpoints.formats.slices import NeedBytes, quote, wrong_file_hint
from pythia_dynamics.errors import FormatError

__all__ = ["LOCAL_HEADER_BYTES", "ZipDirectory", "ZipMember", "member_data_start", "parse_zip_directory"]

MAX_DIRECTORY_BYTES = 8 * 2**20
"""Longest accepted directory, which bounds the memory: about 120,000 members. That of Pythia 12b has 34 KB."""

MAX_COMMENT = 65_535
MAX_FIELD = 65_535
"""Most bytes of a comment or an extra field, and the disk number of a zip64 entry: 16 bits of the format."""

END = struct.Struct("<4s4H2LH")
LOCATOR = struct.Struct("<4sLQL")
END64 = struct.Struct("<4sQ2H2L4Q")
LOCAL = struct.Struct("<4s2x2H8x2L2H")
LOCAL_HEADER_BYTES = LOCAL.size
"""Bytes of a local header without the member's name and extra field."""

END_SIGNATURE, LOCATOR_SIGNATURE, END64_SIGNATURE = b"PK\x05\x06", b"PK\x06\x07", b"PK\x06\x06"
NO_ENTRY = b"PK\x01\x02" + bytes(42)
"""An entry of the directory without a name."""

LOCAL_SIGNATURE = b"PK\x03\x04"
IN_ZIP64 = 0xFFFFFFFF
ENCRYPTED = 0x0001 | 0x0040 | 0x2000
SIZES_FOLLOW = 0x0008
UTF8 = 0x0800

PICKLED_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # LONG1 of torch.serialization.MAGIC_NUMBER
RESAVE = (
    "re-save it with torch.save(torch.load(path, weights_only=True), path, "
    "_use_new_zipfile_serialization=True) or convert it to safetensors"
)


@dataclass(frozen=True, slots=True)
class ZipMember:
    """One stored member of an archive.

    Parameters
    ----------
    name
        Its full name in the archive.
    header_offset
        Where its local header begins in the file.
    size
        Bytes of its data.
    crc32
        CRC-32 of its data, None where the archive states none.
    file
        Name of the archive, for messages.
    limit
        Where the next local header (or the central directory) begins in the file.
    """

    name: str
    header_offset: int
    size: int
    crc32: int | None
    file: str
    limit: int

    def bounding_range(self) -> tuple[int, int]:
        """A byte range of the file that contains the local header and all the data, however long the extra field is."""
        longest = LOCAL.size + len(self.name.encode()) + MAX_FIELD + self.size
        return self.header_offset, min(self.limit, self.header_offset + longest)


@dataclass(frozen=True, slots=True)
class ZipDirectory:
    """The members of one torch archive.

    Parameters
    ----------
    file
        Name of the archive, for messages.
    members
        By their full name, in the order of the file.
    prefix
        The folder inside the archive that holds all members.
    """

    file: str
    members: Mapping[str, ZipMember]
    prefix: str

    @property
    def pickle(self) -> ZipMember:
        """The member that describes the tensors; `parse_state_dict` reads it."""
        return self.members[f"{self.prefix}/data.pkl"]

    def storage(self, key: str) -> ZipMember:
        """The member that holds the storage `key` of the pickle. Raises `FormatError` when there is none."""
        member = self.members.get(f"{self.prefix}/data/{key}")
        if member is None:
            raise FormatError(f"{self.file} lacks the storage {quote(key)} that its pickle names; it is damaged")
        return member


def parse_zip_directory(tail: bytes, *, file: str, file_size: int) -> ZipDirectory:
    """The members of a torch archive, from the end of the file.

    Torch writes no archive comment, so a tail of 22 bytes contains the end record; 64 KiB mostly contain everything.

    Parameters
    ----------
    tail
        The last bytes of the file.
    file
        Its name, for messages.
    file_size
        Its size in bytes.

    Raises
    ------
    NeedBytes
        When the directory begins before the tail; call again with those bytes put before it.
    FormatError
        For anything but an intact little-endian archive of uncompressed members as `torch.save` writes it.
    """
    if len(tail) > file_size:
        raise FormatError(f"{file} has {file_size} bytes by its size, but {len(tail)} arrived")
    base = file_size - len(tail)
    if base == 0 and (other := wrong_file_hint(tail)):
        raise FormatError(f"{file} is not a torch checkpoint: {other}")
    if base == 0 and tail[:1] == b"\x80" and tail[2 : 2 + len(PICKLED_MAGIC)] == PICKLED_MAGIC:
        raise FormatError(f"{file} is in torch's legacy format, of which no range can be read; {RESAVE}")
    if len(tail) < min(END.size, file_size):
        raise NeedBytes(max(0, file_size - END.size - MAX_COMMENT), base)
    end = _find_end(tail, file)
    start, size, count = _directory_bounds(tail, end, base, file)
    if start < base:
        raise NeedBytes(start, base)
    entries = _read_entries(tail[start - base : start - base + size], count, file)
    return _build_directory(entries, start, file)


def _find_end(tail: bytes, file: str) -> int:
    """Position in `tail` of the end-of-central-directory record."""
    lowest, position = max(0, len(tail) - END.size - MAX_COMMENT), len(tail)
    while (position := tail.rfind(END_SIGNATURE, lowest, position + len(END_SIGNATURE) - 1)) >= 0:
        comment = position + END.size
        if comment + int.from_bytes(tail[comment - 2 : comment], "little") == len(tail):
            return position
    raise FormatError(f"{file} does not end as a zip archive: it is cut short, or in torch's legacy format; {RESAVE}")


def _directory_bounds(tail: bytes, end: int, base: int, file: str) -> tuple[int, int, int]:
    """Absolute offset, length in bytes and number of entries of the central directory."""
    _, disk, first_disk, here, count, size, start, _ = END.unpack_from(tail, end)
    directory_stop = base + end
    disks = 1
    locator = end - LOCATOR.size
    if locator < 0 < base:
        raise NeedBytes(max(0, base + locator - END64.size), base)
    if locator >= 0 and tail.startswith(LOCATOR_SIGNATURE, locator):
        _, end_disk, directory_stop, disks = LOCATOR.unpack_from(tail, locator)
        if not END64.size <= base + locator - directory_stop <= END64.size + MAX_FIELD:
            raise FormatError(f"{file}: the zip64 end record is out of place; the file is damaged")
        if directory_stop < base:
            raise NeedBytes(directory_stop, base)
        record = END64.unpack_from(tail, directory_stop - base)
        signature, length, _, _, disk, first_disk, here, count, size, start = record
        if signature != END64_SIGNATURE or directory_stop + 12 + length != base + locator:
            raise FormatError(f"{file}: the zip64 end record is damaged")
        disk = max(disk, end_disk)
    if disk or first_disk or disks > 1 or here != count:
        raise FormatError(f"{file} is one part of a zip archive split over several files; join them first")
    if start + size != directory_stop:
        raise FormatError(f"{file}: the zip directory does not end where its end record begins; the file is damaged")
    if size > MAX_DIRECTORY_BYTES or count * len(NO_ENTRY) > size:
        raise FormatError(f"{file}: a zip directory of {size} bytes cannot be that of a checkpoint of {count} members")
    return start, size, count


def _read_entries(directory: bytes, count: int, file: str) -> list[ZipInfo]:
    """The entries of a central directory, which `zipfile` reads.

    It gets the directory alone: end records and bounds have been checked here. An empty entry follows the last one. It
    is still the last one only if no entry is longer than the directory, and it keeps `zipfile` from taking the comment
    of the entry before it for a zip64 record.
    """
    content = directory + NO_ENTRY
    try:
        with ZipFile(BytesIO(content + END.pack(END_SIGNATURE, 0, 0, 0, 0, len(content), 0, 0))) as archive:
            *entries, last = archive.infolist()
    except UnicodeDecodeError as error:
        raise FormatError(f"{file}: a member's name {quote(error.object)} is not valid UTF-8; it is damaged") from None
    except (BadZipFile, NotImplementedError) as error:
        raise FormatError(f"{file}: the zip directory is damaged ({quote(str(error))})") from None
    if len(entries) != count or last.orig_filename:
        raise FormatError(f"{file}: the zip directory does not hold the {count} entries it counts; it is damaged")
    return entries


def _build_directory(entries: list[ZipInfo], directory_start: int, file: str) -> ZipDirectory:
    """The directory, checked: one state dict, members that can be read and do not overlap."""
    names = {entry.orig_filename for entry in entries}
    if len(names) != len(entries):
        raise FormatError(f"{file} holds two members of the same name; it is damaged or hostile")
    prefixes = [name.removesuffix("/data.pkl") for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(prefixes) != 1:
        raise FormatError(f"{file} is a zip, but torch.save did not write it: it has {len(prefixes)} data.pkl, not 1")
    (prefix,) = prefixes
    if f"{prefix}/constants.pkl" in names or any(name.startswith(f"{prefix}/code/") for name in names):
        raise FormatError(f"{file} is a TorchScript program; save torch.jit.load(path).state_dict() instead")
    members: dict[str, ZipMember] = {}
    ordered = sorted(entries, key=lambda entry: entry.header_offset)
    limits = [entry.header_offset for entry in ordered[1:]] + [directory_start]
    for entry, limit in zip(ordered, limits, strict=True):
        name, offset, size = entry.orig_filename, entry.header_offset, entry.file_size
        if entry.flag_bits & ENCRYPTED:
            raise FormatError(f"{file}: {quote(name)} is encrypted; decrypt the archive first")
        if entry.compress_type != ZIP_STORED or entry.compress_size != size:
            raise FormatError(f"{file}: {quote(name)} is compressed, so no range of it can be read; {RESAVE}")
        if entry.volume not in (0, MAX_FIELD):
            raise FormatError(f"{file}: {quote(name)} lies in another part of a split archive; join the parts first")
        if offset + LOCAL.size + size > limit:
            raise FormatError(f"{file}: {quote(name)} overlaps the next member; the file is damaged")
        # torch states a CRC-32 of 0 when it was told not to compute it
        members[name] = ZipMember(name, offset, size, entry.CRC or None, file, limit)
    order, little = members.get(f"{prefix}/byteorder"), crc32(b"little")
    if order and (order.size, order.crc32 or little) != (6, little):
        raise FormatError(f"{file} was saved on a big-endian machine; re-save it on a little-endian one")
    return ZipDirectory(file, MappingProxyType(members), prefix)


def member_data_start(local: bytes, member: ZipMember) -> int:
    """Offset in the file at which a member's data begin.

    Parameters
    ----------
    local
        Bytes of the file from `member.header_offset` on.
    member
        The member, from `parse_zip_directory`.

    Raises
    ------
    NeedBytes
        When `local` does not contain the whole local header.
    FormatError
        When the local header contradicts the directory.
    """
    name = member.name.encode()
    if len(local) < LOCAL.size + len(name):
        raise NeedBytes(member.header_offset + len(local), member.header_offset + LOCAL.size + len(name))
    where = f"{member.file}: the header of {quote(member.name)}"
    signature, flags, method, packed, size, n_name, n_extra = LOCAL.unpack_from(local)
    if signature != LOCAL_SIGNATURE:
        raise FormatError(f"{where} is not where the zip directory states; the file is damaged")
    if flags & ENCRYPTED or method != 0:
        raise FormatError(f"{where} says encrypted or compressed, the zip directory does not; it is damaged")
    raw = local[LOCAL.size : LOCAL.size + n_name]
    if n_name != len(raw) or raw.decode("utf-8" if flags & UTF8 else "cp437", "replace") != member.name:
        raise FormatError(f"{where} has another name ({quote(raw)}); the file is damaged")
    sizes = {packed, size} - ({0, IN_ZIP64} if flags & SIZES_FOLLOW else {IN_ZIP64})
    if sizes - {member.size}:
        raise FormatError(f"{where} states another size than the zip directory; the file is damaged")
    start: int = member.header_offset + LOCAL.size + n_name + n_extra
    if start + member.size > member.limit:
        raise FormatError(f"{where} puts the data into the next member; the file is damaged")
    return start
