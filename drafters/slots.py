"""Places in arrays of fixed size for the newest of any number of keys."""

from __future__ import annotations

from array import array


class Slots:
    """A number below `capacity` for each key; when all are taken, the oldest key gives up its own.

    Memory: about 120 bytes a key.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._slots: dict[int, int] = {}
        self._keys = array("q")  # by slot
        self._oldest = 0  # slot of the oldest key, once all are taken
        self.get = self._slots.get

    def __len__(self) -> int:
        return len(self._slots)

    def take(self, key: int) -> int:
        """A slot for a key that has none."""
        slot = len(self._keys)
        if slot < self._capacity:
            self._keys.append(key)
        else:
            slot = self._oldest
            self._oldest = (slot + 1) % self._capacity
            del self._slots[self._keys[slot]]
            self._keys[slot] = key
        self._slots[key] = slot
        return slot
