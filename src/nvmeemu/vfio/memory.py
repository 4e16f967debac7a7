"""The guest's memory as the VMM shares it: DMA regions, each a file mapped into this process."""

from __future__ import annotations

import logging
from bisect import bisect_right, insort

from nvmeemu.ports import HostMemoryError, MemoryMirror
from nvmeemu.vfio.binding import DmaRegion

log = logging.getLogger(__name__)

LIBRARY_REGIONS = 65536  # NVMEEMU_DMA_REGIONS in shim.h
DEFAULT_MAPPINGS = 65530  # vm.max_map_count where it cannot be read
OUR_MAPPINGS = 4096
LARGE = 1 << 20  # a region of this size without a file may be guest RAM; firmware ROMs and BARs are mostly smaller


def most_regions() -> int:
    """How many regions all clients together may map: each is a mapping of this process, which needs some itself, and
    the library's table has 65,536 places. (A library that is not our copy keeps a descriptor of each, too.)"""
    try:
        with open("/proc/sys/vm/max_map_count") as file:
            mappings = int(file.read())
    except (OSError, ValueError):
        mappings = DEFAULT_MAPPINGS
    return min(LIBRARY_REGIONS, max(mappings - OUR_MAPPINGS, 16))


class GuestMemory:
    """The map from guest addresses to memory of ours: the memory half of ``Host``.

    It is on the path of every command, so the region used last is kept unpacked and tried first. A guest behind an
    IOMMU has thousands of regions of one page: the others are found by bisection.
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._regions: dict[int, DmaRegion] = {}
        self.mirror: MemoryMirror | None = None
        self._is_reachable = True
        self._forget()
        self._told = False

    def _forget(self) -> None:
        # The writable region used last. A size of -1 holds nothing, not even 0 bytes.
        self._base, self._size, self._bytes = 0, -1, memoryview(b"")

    # --- the map

    def add(self, region: DmaRegion) -> None:
        """Add a region that is now mapped. It overlaps no other one: ``PciFunction`` and the library have refused what
        does. If the mirror raises, the exception is passed on and the region is not added."""
        self._show(region)
        insort(self._starts, region.iova)
        self._regions[region.iova] = region
        self._forget()

    def remove(self, iova: int) -> None:
        """Remove the region that begins at ``iova``, which is about to be unmapped. Its views must be gone."""
        region = self._regions.pop(iova, None)
        if region is None:
            return
        del self._starts[bisect_right(self._starts, iova) - 1]
        self._forget()
        self._hide(region)
        if region.memory is not None:
            region.memory.release()
        if not self._regions:
            self._told = False

    def set_reachable(self, reachable: bool) -> None:
        """Whether the function may access memory at all. To be called as if all of it was mapped, or unmapped."""
        if reachable == self._is_reachable:
            return
        for region in self._regions.values() if not reachable else ():
            self._hide(region)
        self._is_reachable = reachable
        self._forget()
        for region in self._regions.values() if reachable else ():
            self._show(region)

    def _show(self, region: DmaRegion) -> None:
        if self.mirror is not None and region.memory is not None and self._is_reachable:
            self.mirror.add_region(region.iova, region.memory)

    def _hide(self, region: DmaRegion) -> None:
        if self.mirror is not None and region.memory is not None and self._is_reachable:
            self.mirror.remove_region(region.iova)

    def __contains__(self, iova: int) -> bool:
        """Whether a region begins at ``iova``."""
        return iova in self._regions

    def __len__(self) -> int:
        return len(self._regions)

    # --- Host

    def view(self, iova: int, size: int) -> memoryview:
        start = iova - self._base
        if start < 0 or start + size > self._size:
            start = self._select(iova, size)
        return self._bytes[start : start + size]

    def views(self, iova: int, size: int, writable: bool = True) -> list[memoryview]:
        start = iova - self._base
        if start >= 0 and start + size <= self._size:
            return [self._bytes[start : start + size]]
        pieces = []
        while size > 0:
            region, memory = self._find(iova, 1, writable)
            piece = memory[iova - region.iova :][:size]
            pieces.append(piece)
            iova += len(piece)
            size -= len(piece)
        return pieces

    def _select(self, iova: int, size: int) -> int:
        """Make the region around this range the one used last. Returns the range's offset in it."""
        region, memory = self._find(iova, size, True)
        self._base, self._size, self._bytes = region.iova, region.size, memory
        return iova - region.iova

    def _find(self, iova: int, size: int, writable: bool) -> tuple[DmaRegion, memoryview]:
        if not self._is_reachable:
            raise HostMemoryError(iova, size)
        index = bisect_right(self._starts, iova) - 1
        if index < 0 or size < 0:
            raise HostMemoryError(iova, size)
        region = self._regions[self._starts[index]]
        if iova + size > region.iova + region.size:
            raise HostMemoryError(iova, size)
        if region.memory is None:
            self._tell(region)
            raise HostMemoryError(iova, size)
        if writable and region.memory.readonly:
            raise HostMemoryError(iova, size)
        return region, region.memory

    # --- what the user must know

    @property
    def all_private(self) -> bool:
        """The VMM mapped memory, and none of it is writable for us: guest RAM that is not shared.

        One private region says nothing: with shared RAM, too, a VMM maps video memory and flash without a file.
        """
        sizes = [region.size for region in self._regions.values()]
        return max(sizes, default=0) >= LARGE and not any(
            region.memory is not None and not region.memory.readonly for region in self._regions.values()
        )

    def _tell(self, region: DmaRegion) -> None:
        if not self._told:
            self._told = True
            log.warning(
                "the guest uses memory at %#x to %#x that its VMM does not share with this process: "
                "every memory backend of the VM must be shared (QEMU: share=on)",
                region.iova,
                region.iova + region.size - 1,
            )
