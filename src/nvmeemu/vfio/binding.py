"""libvfio-user, typed: the only importer of the raw cffi module.

A Python exception must not cross C: cffi would print and forget it. A callback's exception is therefore stored, C is
answered with an error, and the call that entered C raises it again (``Context._check``). That covers SystemExit and
KeyboardInterrupt, too.

The library is not thread safe: one thread makes all calls, the one that has made the ``Context``, which sees to that.
It trusts its client, the VMM, more than is comfortable
(read in revision 0b28d20). No guest can reach any of this; ``messages`` keeps it from a VMM, too:

- it waits without a limit for the rest of a message, and loses the file descriptors that come with a torn one;
- SET_IRQS: ``start + count`` is checked in 32 bits, so a wrapped sum passes and the eventfd array is overrun;
- DMA_MAP of a file shorter than the region: SIGBUS at the first access beyond its end; of a region that is mapped
  already: a descriptor is lost; at an odd file offset: the mapping is shorter than the region.

It also waits for a client's first message, and for a client to take its replies. It waits for neither here
(``Context.attach``, ``Turn.CHOKED``), because other controllers may be served by the same thread.

What stays: a VMM that shortens its file *after* mapping it ends this process by SIGBUS (a sealed memfd cannot be
shortened); an eventfd may be anything that can be written to, even a full pipe that blocks until a signal. So VMMs
that do not trust each other need servers of their own, a process for each. An error in sending a reply (the client is
gone) resets the context but is not reported by ``vfu_run_ctx``: watch for the reset callback of type LOST_CONNECTION.

Its own handling of the configuration space has more (overlong capability writes, rejected 4-byte writes to Device
Control); ``pci.ConfigSpace`` replaces it. An eventfd for ERR or REQ would land in vector 0: we offer neither.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol, TypeVar

from nvmeemu.vfio import messages
from nvmeemu.vfio.errors import BindingMissing, ProtocolError
from nvmeemu.vfio.messages import Message, Refusal
from nvmeemu.vfio.sharing import File
from nvmeemu.vfio.stand_in import stand_in

try:
    from nvmeemu.vfio._libvfio_user import ffi, lib
except ImportError as error:
    _missing: str | None = error.msg if error.name != "nvmeemu.vfio._libvfio_user" else "not compiled"
    ffi = lib = None
else:
    _missing = None

LOG_ERR, LOG_DEBUG = 3, 7  # syslog levels, the library's
SENDING_TIME = 1  # seconds for a client to take a reply


class _Pending(threading.local):
    """The exception that a callback has raised, kept until the C call around it has ended. Each thread has its own."""

    failure: BaseException | None = None


_pending = _Pending()


class ResetCause(Enum):
    """Why the device is reset."""

    DEVICE = auto()
    LOST_CONNECTION = auto()


class Turn(Enum):
    """What ``Context.run`` found on the socket."""

    NOTHING = auto()
    MESSAGE = auto()
    PARTIAL = auto()  # a message whose rest has not come yet; it will be found again
    CHOKED = auto()  # a message whose reply would have to wait until the client takes those of before; so will this one


@dataclass(frozen=True)
class DmaRegion:
    """A range of guest addresses. ``memory`` is None where the VMM gave no file to map, or nothing to read."""

    iova: int
    size: int
    memory: memoryview | None


class Device(Protocol):
    """What the library calls back. It does so only inside ``Context.run`` or ``Context.close``."""

    def bar0_read(self, offset: int, size: int) -> bytes: ...
    def bar0_write(self, offset: int, data: bytes) -> None: ...
    def config_read(self, offset: int, size: int) -> bytes: ...
    def config_write(self, offset: int, data: bytes) -> None: ...

    def quiesce(self) -> None:
        """The memory map or the interrupts are about to change: touch no guest memory until ``Context.run`` returns."""

    def refuses(self, message: Message) -> Refusal | None:
        """Whether this DMA_MAP or SET_IRQS must not be carried out."""
        ...

    def reset(self, kind: ResetCause) -> None: ...
    def dma_added(self, region: DmaRegion) -> None: ...

    def dma_removed(self, iova: int) -> None:
        """The region that begins at ``iova`` is unmapped as soon as this returns."""

    def routes_changed(self, index: int) -> None:
        """The VMM has replaced eventfds of this kind of interrupts; called after the message."""

    def pin_masked(self, masked: bool) -> None: ...
    def log(self, level: int, message: str) -> None: ...


def require() -> None:
    """Raise BindingMissing if the package was built without libvfio-user."""
    if _missing is not None:
        raise BindingMissing(_missing)


def barrier() -> None:
    """A full memory barrier."""
    lib.nvmeemu_barrier()


class Context:
    """A listening socket and the PCI function behind it. Only the thread that made it may use it. No call waits for a
    client."""

    def __init__(
        self,
        path: str,
        device: Device,
        *,
        bar0_size: int,
        bar0_shared: tuple[int, int, int] | None,
        bar4_size: int,
        vectors: int,
    ) -> None:
        require()
        self.device = device
        self._thread = threading.get_ident()
        self._handle = ffi.new_handle(self)
        self._message = ffi.new("struct nvmeemu_message *")
        self._ring: tuple[Any, Any] | None = None
        self._own = lib.vfu_create_ctx(
            lib.VFU_TRANS_SOCK,
            os.fsencode(path),
            lib.LIBVFIO_USER_FLAG_ATTACH_NB,
            self._handle,
            lib.VFU_DEV_TYPE_PCI,
        )
        if self._own == ffi.NULL:
            raise OSError(ffi.errno, os.strerror(ffi.errno), path)
        try:
            self._set_up(bar0_size, bar0_shared, bar4_size, vectors)
        except BaseException:
            self.close()
            raise

    def _set_up(self, bar0_size: int, bar0_shared: tuple[int, int, int] | None, bar4_size: int, vectors: int) -> None:
        ctx, check = self._ctx, self._check
        bar0, bar4 = lib.VFU_PCI_DEV_BAR0_REGION_IDX, lib.VFU_PCI_DEV_BAR4_REGION_IDX
        nothing = -1, (ffi.NULL, 0)
        shared = nothing
        if bar0_shared is not None:
            fd, offset, size = bar0_shared
            shared = fd, (ffi.cast("void *", offset), size)
        memory = lib.VFU_REGION_FLAG_RW | lib.VFU_REGION_FLAG_MEM
        config = lib.VFU_REGION_FLAG_RW | lib.VFU_REGION_FLAG_ALWAYS_CB
        check(lib.vfu_setup_log(ctx, lib.on_log, LOG_ERR))
        check(lib.vfu_pci_init(ctx, lib.VFU_PCI_TYPE_EXPRESS, lib.PCI_HEADER_TYPE_NORMAL, 0))
        check(lib.nvmeemu_setup_region(ctx, bar0, bar0_size, lib.on_bar0, memory, *shared))
        if bar4_size:
            check(lib.nvmeemu_setup_region(ctx, bar4, bar4_size, lib.on_bar4, memory, *nothing))
        check(lib.nvmeemu_setup_region(ctx, lib.VFU_PCI_DEV_CFG_REGION_IDX, 4096, lib.on_config, config, *nothing))
        check(lib.vfu_setup_device_nr_irqs(ctx, lib.VFU_DEV_INTX_IRQ, 1))
        check(lib.vfu_setup_device_nr_irqs(ctx, lib.VFU_DEV_MSIX_IRQ, vectors))
        for never_sent in (lib.VFU_DEV_ERR_IRQ, lib.VFU_DEV_REQ_IRQ):  # their eventfds would replace vector 0's
            check(lib.vfu_setup_device_nr_irqs(ctx, never_sent, 0))
        check(lib.vfu_setup_irq_state_callback(ctx, lib.VFU_DEV_INTX_IRQ, lib.on_irq_state))
        check(lib.vfu_setup_device_reset_cb(ctx, lib.on_reset))
        lib.vfu_setup_device_quiesce_cb(ctx, lib.on_quiesce)
        check(lib.nvmeemu_setup_dma(ctx, lib.on_dma_added, lib.on_dma_removed))
        check(lib.vfu_realize_ctx(ctx))

    def ring_directly(self, ring: int, engine: int) -> None:
        """Give posted writes to doorbells to the C function ``ring(engine, doorbell, value)`` at this address first;
        what it does not want comes to ``Device.bar0_write``."""
        self._ring = ffi.cast("nvmeemu_ring_t *", ring), ffi.cast("void *", engine)

    @property
    def _ctx(self) -> Any:
        """The library's context."""
        assert threading.get_ident() == self._thread, "libvfio-user is not thread safe"
        return self._own

    def log_everything(self) -> None:
        """Pass the library's debug messages to ``Device.log``, too."""
        self._check(lib.vfu_setup_log(self._ctx, lib.on_log, LOG_DEBUG))

    def poll_fd(self) -> int:
        """The listening socket while there is no client, else the client's. Changes with ``attach`` and a loss."""
        return int(lib.vfu_get_poll_fd(self._ctx))

    def attach(self, client: socket.socket, greeting: bytes | bytearray) -> None:
        """Agree on a version with a client whose first message this was, or OSError; then its connection is served.

        The library would accept the connection itself and wait for the message. So it gets another one, in which the
        message is there already, and the client's is put into its place afterwards.
        """
        with stand_in(self.poll_fd(), greeting) as other_end:
            result, code = lib.vfu_attach_ctx(self._ctx), ffi.errno
            with suppress(OSError):  # if the client has gone, ``run`` will find that
                client.send(other_end.recv(messages.LONGEST))
        self._check(result, code)
        client.setblocking(True)
        messages.limit_sending(client.fileno(), SENDING_TIME)
        os.dup2(client.fileno(), self.poll_fd(), inheritable=False)

    def run(self) -> Turn:
        """Handle one message if there is one. Raises OSError, with ENOTCONN if the client is gone, and ProtocolError
        if the caller must hang up on the client."""
        ctx = self._ctx
        fd = lib.vfu_get_poll_fd(ctx)
        if self._ring is not None and lib.nvmeemu_take_doorbells(fd, *self._ring):
            return Turn.MESSAGE
        look = lib.nvmeemu_look(fd, self._message)
        routes = None
        if look == lib.NVMEEMU_CHECK:
            message = self._copy()
            refusal = self.device.refuses(message)
            if refusal is not None:
                messages.refuse(fd, message, refusal)
                return Turn.MESSAGE
            routes = message.routes
        elif look != lib.NVMEEMU_WHOLE:
            return _without_message(look)
        handled = lib.vfu_run_ctx(ctx)
        if handled < 0 or _pending.failure is not None:
            self._check(handled)
        if routes is not None:
            self.device.routes_changed(routes)
        return Turn.MESSAGE if handled else Turn.NOTHING

    def _copy(self) -> Message:
        look = self._message
        body = bytes(ffi.buffer(look.body))
        file = File(look.file_device, look.file_inode)
        return Message(look.id, look.command, look.size, look.flags, body, look.file_size, file, look.descriptors_lost)

    def hang_up(self) -> None:
        """End the client's connection, if there is one; ``run`` will find its end."""
        messages.hang_up(self.poll_fd())

    def interrupt_fd(self, vector: int) -> int:
        """The library's eventfd for an MSI-X message, or -1. It may close it with the next SET_IRQS or loss."""
        return int(lib.nvmeemu_interrupt_fd(self._ctx, vector))

    def trigger(self, vector: int) -> bool:
        """Send MSI-X message ``vector``, or INTx in place of vector 0; False if it has no route at this moment."""
        return bool(lib.vfu_irq_trigger(self._ctx, vector) == 0)

    def close(self) -> None:
        """Drop the client, if any (``Device`` hears of it), and close the socket. The socket's file stays."""
        if self._own != ffi.NULL:
            ctx, self._own = self._ctx, ffi.NULL
            lib.vfu_destroy_ctx(ctx)
            self._check(0)

    def _check(self, result: int, code: int | None = None) -> None:
        """After a call: raise what a callback has raised, or OSError if the call has failed. ``code`` is the errno, by
        default that of the last call."""
        code = ffi.errno if code is None else code
        if _pending.failure is not None:
            failure, _pending.failure = _pending.failure, None
            raise failure
        if result < 0:
            raise OSError(code, os.strerror(code))


def _without_message(look: int) -> Turn:
    """The result of a look that found no message for the library. Raises ProtocolError if none can follow."""
    if look == lib.NVMEEMU_TORN:
        raise ProtocolError("it left in the middle of a message")
    if look == lib.NVMEEMU_NONSENSE:
        raise ProtocolError("what it sent is no vfio-user command")
    return {
        lib.NVMEEMU_NOTHING: Turn.NOTHING,
        lib.NVMEEMU_PARTIAL: Turn.PARTIAL,
        lib.NVMEEMU_CHOKED: Turn.CHOKED,
    }[look]


def _store(kind: type[BaseException], failure: BaseException, traceback: Any) -> None:
    _pending.failure = _pending.failure or failure
    ffi.errno = errno.EIO


F = TypeVar("F", bound=Callable[..., Any])


def _callback(error: int | None) -> Callable[[F], F]:
    """A function that C calls and that answers ``error`` and EIO if it fails; the exception is stored."""

    def define(function: F) -> F:
        if _missing is None:
            ffi.def_extern(error=error, onerror=_store)(function)
        return function

    return define


def _device(ctx: Any) -> Device:
    context: Context = ffi.from_handle(lib.vfu_get_private(ctx))
    return context.device


@_callback(error=-1)
def on_bar0(ctx: Any, buffer: Any, count: int, offset: int, is_write: bool) -> int:
    if is_write:
        _device(ctx).bar0_write(offset, ffi.unpack(buffer, count))
    else:
        _answer(buffer, count, _device(ctx).bar0_read(offset, count))
    return count


@_callback(error=-1)
def on_bar4(ctx: Any, buffer: Any, count: int, offset: int, is_write: bool) -> int:
    """The MSI-X table and PBA. The VMM emulates both; what still arrives is reads of pending bits: none are."""
    if not is_write:
        _answer(buffer, count, bytes(count))
    return count


@_callback(error=-1)
def on_config(ctx: Any, buffer: Any, count: int, offset: int, is_write: bool) -> int:
    if is_write:
        _device(ctx).config_write(offset, ffi.unpack(buffer, count))
    else:
        _answer(buffer, count, _device(ctx).config_read(offset, count))
    return count


def _answer(buffer: Any, count: int, data: bytes) -> None:
    if len(data) != count:
        raise ValueError(f"a read of {count} bytes was answered with {len(data)}")
    ffi.memmove(buffer, data, count)


@_callback(error=-1)
def on_quiesce(ctx: Any) -> int:
    _device(ctx).quiesce()
    return 0


@_callback(error=-1)
def on_reset(ctx: Any, kind: int) -> int:
    _device(ctx).reset(ResetCause.LOST_CONNECTION if kind == lib.VFU_RESET_LOST_CONN else ResetCause.DEVICE)
    return 0


@_callback(error=None)
def on_dma_added(ctx: Any, info: Any) -> None:
    iova, size = int(ffi.cast("uintptr_t", info.iova.iov_base)), int(info.iova.iov_len)
    memory = None
    if info.vaddr != ffi.NULL and info.prot & lib.PROT_READ and _is_whole(info, size):
        memory = memoryview(ffi.buffer(info.vaddr, size))
        if not info.prot & lib.PROT_WRITE:
            memory = memory.toreadonly()
    _device(ctx).dma_added(DmaRegion(iova, size, memory))


def _is_whole(info: Any, size: int) -> bool:
    """The library maps in units of the file's preferred block, huge pages also, and may fall short of the region."""
    start, mapping = (int(ffi.cast("uintptr_t", address)) for address in (info.vaddr, info.mapping.iov_base))
    return start + size <= mapping + int(info.mapping.iov_len)


@_callback(error=None)
def on_dma_removed(ctx: Any, info: Any) -> None:
    _device(ctx).dma_removed(int(ffi.cast("uintptr_t", info.iova.iov_base)))


@_callback(error=None)
def on_irq_state(ctx: Any, start: int, count: int, masked: bool) -> None:
    _device(ctx).pin_masked(masked)


@_callback(error=None)
def on_log(ctx: Any, level: int, message: Any) -> None:
    _device(ctx).log(level, ffi.string(message).decode("utf-8", "replace"))
