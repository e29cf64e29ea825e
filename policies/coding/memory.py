"""Coded tensors kept from one file to the next: networks that are compared share most of their layers."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from . import kinds
from .entries import Entry
from .kinds import write_tensor
from .stream import Writer
from .tensors import StoredTensor


class CodingMemory:
    """Symbols and models of the tensors that were written last.

    Parameters
    ----------
    capacity_bytes
        Of the symbols kept.
    """

    def __init__(self, capacity_bytes: int = 1 << 26) -> None:
        self.capacity_bytes = capacity_bytes
        self._held_bytes = 0
        self._written: OrderedDict[bytes, Writer] = OrderedDict()

    def write(self, writer: Writer, entry: Entry, tensor: StoredTensor) -> None:
        """Write what ``write_tensor`` does."""
        if kinds.KINDS[entry.form].write is None:
            return
        key = writer.coder.encode() + _digest(entry, tensor)
        if key not in self._written:
            made = Writer(writer.coder)
            write_tensor(made, entry, tensor)
            self._written[key] = made
            self._held_bytes += made.size_bytes
        self._written.move_to_end(key)
        writer.extend(self._written[key])
        while self._held_bytes > self.capacity_bytes:
            self._held_bytes -= self._written.popitem(last=False)[1].size_bytes


def _digest(entry: Entry, tensor: StoredTensor) -> bytes:
    """Of all that the tensor's symbols depend on."""
    described = repr((entry.form, entry.shape, str(entry.dtype), entry.bits, entry.table))
    found = hashlib.blake2b(described.encode(), digest_size=16)
    for array in kinds.KINDS[entry.form].arrays(tensor):
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(array.tobytes())
    return found.digest()
