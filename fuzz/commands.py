"""Makes submission queue entries: good ones, and good ones with one wrong field. Garbage alone finds almost nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator
from weakref import WeakKeyDictionary

from books import Sq
from memory import PAGE, SLOT, SLOTS, Guest
from model import Judge
from nvmeemu.controller.limits import Limits
from nvmeemu.spec import (
    ADMIN_COMMANDS,
    BROADCAST,
    CQE_SIZE,
    SQE_SIZE,
    Abort,
    AsyncEventRequest,
    Command,
    Compare,
    ControllerList,
    Copy,
    CopyRange,
    CreateCq,
    CreateSq,
    DatasetManagement,
    DeleteCq,
    DeleteSq,
    DirectiveReceive,
    DirectiveSend,
    DoorbellBufferConfig,
    DsmRange,
    FeatureId,
    Flush,
    FormatNvm,
    Fuse,
    GetFeatures,
    GetLbaStatus,
    GetLogPage,
    HostBehaviorSupport,
    HostNamespace,
    Identify,
    LongCopyRange,
    NamespaceAttachment,
    NamespaceManagement,
    Read,
    ReadWrite,
    SetFeatures,
    Verify,
    Write,
    WriteZeroes,
)

HOLE = 0x600000
NUMBERS = (0, 1, 2, 3, 4, 7, 0x3F, 0x40, 0xFF, 0x100, 0xFFFF, 0x10000, 0xFFFE, 0xFFFFFF, 0x80000000, 0xFFFFFFFF)
FIDS = (1, 2, 4, 5, 6, 7, 8, 9, 0xA, 0xB, 0xE, 0x15, 0x16, 0, 0xFF)
SPOILED = (
    "opcode",
    "flags",
    "cid",
    "nsid",
    "prp1",
    "prp2",
    "mptr",
    "cdw10",
    "cdw11",
    "cdw12",
    "cdw13",
    "cdw14",
    "cdw15",
)


class Builder:
    """Builds entries from operands: what to do, the shape of the PRPs, place, size, the wrong field, and a value."""

    def __init__(self, guest: Guest, judge: Judge, limits: Limits, is_wild: bool) -> None:
        self.guest = guest
        self.judge = judge
        self.limits = limits
        self.is_wild = is_wild
        self.tails: WeakKeyDictionary[Sq, int] = WeakKeyDictionary()  # where the host puts its next entry
        self._cid = 0
        self._slot = 0
        self._list = 0
        self._first: Command | None = None  # of a fused operation that has no second one yet

    # --- places

    def slots(self, number: int = 1) -> list[int]:
        """Places for queues where none is now, at the largest alignment in use."""
        sqs, cqs = self.judge.sqs.values(), self.judge.cqs.values()
        used = [(sq.iova, sq.entries * SQE_SIZE) for sq in sqs] + [(cq.iova, cq.entries * CQE_SIZE) for cq in cqs]
        used += [(iova, SLOT) for sq in sqs if sq.qid == 0 for iova in self._asked_for(sq)]
        found: list[int] = []
        step = 8 if self.judge.device.page_size > SLOT else 1
        for _ in range(SLOTS):
            self._slot = (self._slot + 1) % SLOTS
            iova = self.guest.queues.iova + self._slot * SLOT
            is_free = not any(iova < start + size and start < iova + SLOT for start, size in used)
            if is_free and self._slot % step == 0:
                found.append(iova)
                if len(found) == number:
                    return found
        return [HOLE] * number

    def _asked_for(self, sq: Sq) -> Iterator[int]:
        """Where the Create commands in the admin queue, old and new, want their queues: old ones may run again."""
        ring = self.guest.read(sq.iova, sq.entries * SQE_SIZE) or b""
        for start in range(0, len(ring), SQE_SIZE):
            if issubclass(ADMIN_COMMANDS.of(ring[start]), CreateCq | CreateSq):
                yield int.from_bytes(ring[start + 24 : start + 32], "little")
        for command in sq.outstanding:
            yield command.io.prp1

    def _page(self, choice: int) -> int:
        """A page for data: mostly memory, sometimes none, read-only, at the very end, or, if wild, a queue."""
        size = self.judge.device.page_size
        pages = [area.iova + start for area in self.guest.data for start in range(0, area.size, size)]
        if choice < 0xE0:
            return pages[choice % len(pages)]
        strange = [HOLE, self.guest.rom.iova, self.guest.top.iova, self.guest.top.iova + PAGE, 0, pages[-1] + size]
        if self.is_wild:
            strange += [self.guest.queues.iova + self._slot * SLOT, self.guest.lists.iova, self.guest.shadows.iova]
        return strange[choice % len(strange)]

    def prps(self, length: int, shape: int, place: int) -> tuple[int, int]:
        """PRP1 and PRP2 for ``length`` bytes. Writes a list if one is needed."""
        size = self.judge.device.page_size
        dice = random.Random(shape << 8 | place)
        offset = dice.randrange(0, size, 4) if shape & 1 else 0
        prp1 = (self._page(place) + offset) % (1 << 64)
        number = -(-max(length - (size - offset), 0) // size)
        if shape & 2:
            pages = [prp1 - offset + size * (index + 1) for index in range(number)]
        else:
            pages = [self._page(dice.randrange(256 if shape & 0x40 else 0xE0)) for _ in range(number)]
        if number and shape & 0xF0 == 0xF0:
            pages[dice.randrange(number)] += dice.choice((1, 8, 0x800))
        if number < 2:
            return prp1, pages[0] % (1 << 64) if pages else dice.choice((0, HOLE + 1))
        return prp1, self._write_list(pages, dice.randrange(1, 6) if shape & 8 else size // 8, shape & 0xF4 == 0xE4)

    def _write_list(self, pages: list[int], room: int, is_spoiled: bool) -> int:
        """A PRP list whose first page has room for ``room`` entries; chained, also more than once, as it must be."""
        size = self.judge.device.page_size
        lists = self.guest.lists
        first = self._list = (self._list + 1) % (lists.size // size)
        pointer = start = lists.iova + first * size + size - 8 * room
        while pages:
            if len(pages) > room:
                self._list = (self._list + 1) % (lists.size // size)
                following = lists.iova + self._list * size
                entries, pages = [*pages[: room - 1], following + (8 if is_spoiled else 0)], pages[room - 1 :]
            else:
                entries, pages = pages, []
                following = 0
            self.guest.write(pointer, b"".join((entry % (1 << 64)).to_bytes(8, "little") for entry in entries))
            pointer, room = following, size // 8
        return start + 4 if is_spoiled and size // 8 == room and start % 8 == 0 and first % 4 == 0 else start

    def sgl(self, length: int, shape: int, place: int) -> bytes:
        """An SGL for ``length`` bytes: mostly good, of up to three segments. Writes them."""
        dice = random.Random(shape << 8 | place | 1 << 16)
        if shape & 1:
            address = self._page(place) + dice.randrange(PAGE)
            return _descriptor(0x00, address, max(length + dice.choice((0, 0, 0, 0, 512, -1)), 0))
        parts: list[list[bytes]] = [[]]
        left = length
        while left > 0:
            size = min(left, dice.choice((512, PAGE, 3 * PAGE, 3, 1500)) if length < 16 * PAGE else PAGE)
            kind = dice.choices((0x00, 0x10, dice.randrange(256)), (95, 4, 1))[0]
            parts[-1].append(_descriptor(kind, self._page(dice.randrange(0xE2)) + dice.randrange(64), size))
            left -= size
            if dice.random() < 0.05:
                parts[-1].append(bytes(16))
            if dice.random() < 0.1 and len(parts) < 3:
                parts.append([])
        return self._write_segments(parts, dice)

    def _write_segments(self, parts: list[list[bytes]], dice: random.Random) -> bytes:
        lists = self.guest.lists
        first = b""
        for number, part in enumerate(reversed(parts)):
            self._list = (self._list + 1) % (lists.size // PAGE)
            at = lists.iova + min(self._list * PAGE, lists.size - 16 * (len(part) + 1))
            data = b"".join(part) + first
            self.guest.write(at, data)
            size = len(data) + dice.choices((0, 16, 1, -len(data)), (96, 2, 1, 1))[0]
            first = _descriptor(0x20 if number else 0x30, at, size)
        return first

    # --- entries

    def build(self, sq: Sq, args: bytes) -> bytes:
        """An entry for this queue."""
        if args[0] == 0xFF:
            return random.Random(args[1:6]).randbytes(64)
        makers = NVM if sq.qid else MANAGEMENT if args[0] >= 0xE8 else ADMIN
        command = self._named(makers[args[0] % len(makers)](self, args))
        if args[4] >= 0xC0:
            self._spoil(command, args[4], args[5])
        return bytes(command)

    def _named(self, command: Command) -> Command:
        """With a CID that is not in use."""
        self._cid = self._cid % 0xFFFE + 1
        command.cid = self._cid
        return command

    def _spoil(self, command: Command, which: int, value: int) -> None:
        name = SPOILED[which % len(SPOILED)]
        if name.startswith("prp"):
            old = command.prp1 if name == "prp1" else command.prp2
            strange = [0, HOLE, old + 1, old + 2, old + 8, self.guest.rom.iova, (1 << 64) - 4]
            if not isinstance(command, CreateCq | CreateSq | DoorbellBufferConfig):  # those shall not meet data
                strange += [old + 4, (1 << 64) - PAGE]
            setattr(command, name, strange[value % len(strange)] % (1 << 64))
        else:
            width = {"opcode": 0xFF, "flags": 0xFF, "cid": 0xFFFF}.get(name, 0xFFFFFFFF)
            setattr(command, name, (NUMBERS[value % 16] ^ (value >> 4)) & width)

    def create_cq(self, qid: int, choice: int) -> bytes:
        return bytes(self._named(self._create_cq(bytes((0, 0, qid - 1, 0xFF, 0, choice)))))

    def create_sq(self, qid: int, cqid: int, choice: int) -> bytes:
        return bytes(self._named(self._create_sq(bytes((0, cqid - 1, qid - 1, 0xFF, 0, choice)))))

    def doorbell_buffers(self) -> bytes:
        return bytes(self._named(self._doorbell_buffers(bytes(6))))

    def delete(self, args: bytes) -> bytes:
        return bytes(self._named(self._delete_sq(args) if args[0] & 1 else self._delete_cq(args)))

    # Each takes the operands: (what, shape, place, size, spoil, value).

    def _create_cq(self, args: bytes) -> Command:
        place = self.slots()[0]
        if place != HOLE:
            self.guest.write(place, bytes(SLOT))
        vectors = self.limits.vectors if self.guest.ram.msix_enabled else 1
        return CreateCq(
            prp1=place,
            qid=args[2] % QUEUES_AND_MORE + 1,
            qsize=ENTRIES[args[3] % len(ENTRIES)],
            pc=True,
            ien=args[5] & 3 != 3,
            iv=args[1] % max(vectors, 1),
        )

    def _create_sq(self, args: bytes) -> Command:
        return CreateSq(
            prp1=self.slots()[0],
            qid=args[2] % QUEUES_AND_MORE + 1,
            qsize=ENTRIES[args[3] % len(ENTRIES)],
            pc=True,
            cqid=args[1] % QUEUES_AND_MORE + 1,
        )

    def _delete_sq(self, args: bytes) -> Command:
        return DeleteSq(qid=_one_of(self.judge.device.sqs, args))

    def _delete_cq(self, args: bytes) -> Command:
        return DeleteCq(qid=_one_of(self.judge.device.cqs, args))

    def _identify(self, args: bytes) -> Command:
        prp1, prp2 = self.prps(4096, args[1] & ~8, args[2])
        cns = (0, 1, 2, 3, 5, 6, 7, 8, 0x1C, 4)[args[3] % 10]
        return Identify(nsid=args[5] % 5, prp1=prp1, prp2=prp2, cns=cns)

    def _get_log(self, args: bytes) -> Command:
        length = (4, 512, 4096, 8192, 0x8000, 0x20000, 0x20004)[args[3] % 7]
        prp1, prp2 = self.prps(length, args[1], args[2])
        lid, offset, rae = args[5] % 7, (0, 4, 512, 6)[args[5] >> 3 & 3], bool(args[5] & 0x80)
        return GetLogPage(prp1=prp1, prp2=prp2, lid=lid, numd=length // 4, lpo=offset, rae=rae)

    def _set_features(self, args: bytes) -> Command:
        prp1, prp2 = self.prps(512, args[1] & ~8, args[2])
        fid, value = FIDS[args[3] % len(FIDS)], NUMBERS[args[5] % 16]
        return SetFeatures(prp1=prp1, prp2=prp2, fid=fid, cdw11=value, nsid=args[5] >> 6)

    def _get_features(self, args: bytes) -> Command:
        prp1, prp2 = self.prps(512, args[1] & ~8, args[2])
        fid, value = FIDS[args[3] % len(FIDS)], NUMBERS[args[5] % 16]
        return GetFeatures(prp1=prp1, prp2=prp2, fid=fid, sel=args[5] >> 4 & 7, cdw11=value, nsid=1)

    def _abort(self, args: bytes) -> Command:
        """Of a command that the controller has, if there is one."""
        sqs = sorted(self.judge.sqs.values(), key=lambda sq: sq.qid)
        sq = sqs[args[1] % len(sqs)]
        cids = [command.cid for command in sq.outstanding] or [args[2]]
        return Abort(sqid=sq.qid, target_cid=cids[args[3] % len(cids)])

    def _async_event(self, args: bytes) -> Command:
        return AsyncEventRequest()

    def _doorbell_buffers(self, args: bytes) -> Command:
        start = self.guest.shadows.iova + (args[3] % 2) * 32 * PAGE
        return DoorbellBufferConfig(prp1=start, prp2=start + 16 * PAGE)

    def _unknown(self, args: bytes) -> Command:
        return Command(opcode=args[3], nsid=args[5])

    def _flush(self, args: bytes) -> Command:
        return Flush(nsid=0xFFFFFFFF if args[5] & 1 else 1)

    def _transfer(self, kind: type[ReadWrite], args: bytes) -> Command:
        nsid = (3, 2, 3, 4)[args[1] & 3] if args[3] >= 0xC0 else 1
        command = kind(nsid=nsid)
        if nsid != 1:
            command.prinfo = args[2] & 0xF
        block, beside = self.judge.moved(bytes(command))
        blocks = (1, 2, 3, 8, 9, 16, 33, 64, 0x20000 // block, 0x20000 // block + 1)[args[3] % 10]
        most = self.judge.disk.size // self.judge.disk.block
        slba = (0, 1, most - blocks, most - 1, most, args[5], (1 << 64) - 1)[args[5] % 7 if args[5] & 0x80 else 5]
        command.prp1, command.prp2 = self.prps(blocks * block, args[1], args[2])
        command.slba, command.nlb = slba % (1 << 64), blocks
        command.fua, command.deac = bool(args[3] & 0x40), bool(args[3] & 0x20)
        command.cdw14, command.cdw15 = command.slba & 0xFFFFFFFF, args[4] << 16
        if beside:
            command.mptr = self._page(args[2]) + 4 * args[4] % PAGE
        if kind is Write and args[5] & 0x40:
            command.dtype, command.dspec = 1, args[5]
        if args[1] & 0x30 == 0x30:
            command.psdt = 2 if args[1] & 4 else 1
            command.sgl1 = self.sgl(blocks * block, args[1], args[2])
            if beside and args[1] & 4:
                command.mptr = self._metadata_sgl(blocks * beside, args)
        return command

    def _metadata_sgl(self, length: int, args: bytes) -> int:
        """Where the descriptor of an SGL for the metadata is."""
        first = self.sgl(length, args[1] ^ 0x40, args[2])
        self._list = (self._list + 1) % (self.guest.lists.size // PAGE)
        place = self.guest.lists.iova + self._list * PAGE
        self.guest.write(place, first)
        return place

    def _format(self, args: bytes) -> Command:
        """Mostly a format that there is, of a namespace that can be formatted."""
        lbaf = args[3] % (17 if args[2] & 1 else 8)
        command = FormatNvm(nsid=(3, 3, 2, 1, 3, 5, 4, BROADCAST)[args[1] & 7], lbafl=lbaf & 0xF, lbafu=lbaf >> 4)
        if lbaf not in (0, 4):  # the others have metadata
            command.pi, command.mset = (0, 1, 1, 2, 3, 0, 1, 4)[args[5] & 7], bool(args[5] & 8)
        command.pil, command.ses = args[5] & 0x30 == 0x30, (0, 0, 0, 0, 0, 1, 2, 3)[args[5] >> 5]
        return command

    def _know_extended_formats(self, args: bytes) -> Command:
        """Set LBAFEE of Host Behavior Support, or take it back."""
        place = self.guest.data[0].iova
        self.guest.write(place, bytes(HostBehaviorSupport(lbafee=args[5] & 1)))
        return SetFeatures(fid=FeatureId.HOST_BEHAVIOR_SUPPORT, prp1=place)

    def _manage(self, args: bytes) -> Command:
        """Create a namespace, delete one, or all."""
        place = self.guest.data[0].iova
        blocks = (1, 8, 64, 1 << 40, 0)[args[3] % 5]
        page = HostNamespace(nsze=blocks, ncap=blocks, flbas=args[2] & 0x1F, dps=args[2] >> 5)
        self.guest.write(place, bytes(page))
        if args[5] & 3:
            return NamespaceManagement(prp1=place, sel=0)
        return NamespaceManagement(prp1=place, sel=1, nsid=(1, 2, 3, 4, BROADCAST)[args[1] % 5])

    def _attach(self, args: bytes) -> Command:
        """Attach a namespace to the controller, or detach it."""
        place = self.guest.data[0].iova
        cntlids = (1,) if args[3] & 7 else (1, args[2])
        ids = b"".join(cntlid.to_bytes(2, "little") for cntlid in cntlids)
        self.guest.write(place, bytes(ControllerList(number=len(cntlids), ids=ids)))
        return NamespaceAttachment(nsid=args[1] % 6, prp1=place, sel=args[5] & 1)

    def _directive(self, args: bytes) -> Command:
        """Enable streams, ask for them or release them; a Write names them sometimes."""
        size = (4, 32, 256, 4096, 0x20004)[args[3] % 5]
        prp1, prp2 = self.prps(size, args[1], args[2])
        kind = DirectiveSend if args[5] & 1 else DirectiveReceive
        command = kind(nsid=(1, 1, 2, BROADCAST)[args[5] >> 1 & 3], prp1=prp1, prp2=prp2, numd=size // 4)
        command.dtype, command.doper = args[5] >> 3 & 1, args[5] >> 4 & 3
        command.dspec = command.cdw12 = args[2]
        if command.dtype == 0 and kind is DirectiveSend:
            command.cdw12 = 0x101
        return command

    def _lba_status(self, args: bytes) -> Command:
        size = (4, 8, 24, 4096)[args[3] & 3]
        prp1, prp2 = self.prps(size, args[1] & ~8, args[2])
        atype = (0x10, 0x11, 0x02, 0)[args[5] & 3]
        command = GetLbaStatus(nsid=1 + (args[5] >> 7), prp1=prp1, prp2=prp2, mndw=size // 4, atype=atype)
        command.slba, command.rl = args[5] >> 2, args[3] >> 2
        return command

    def _dataset(self, args: bytes) -> Command:
        number = (1, 2, 16, 256)[args[3] & 3]
        prp1, prp2 = self.prps(number * 16, args[1] & ~8, args[2])
        places = [(prp1, number * 16)] if prp1 % PAGE + number * 16 <= PAGE else []
        for iova, _ in places:
            ranges = (DsmRange(length=args[5] % 9, slba=args[5] * index % 64) for index in range(number))
            if any(area.iova <= iova < area.iova + area.size for area in self.guest.data):
                self.guest.write(iova, b"".join(map(bytes, ranges)))
        return DatasetManagement(nsid=1, prp1=prp1, prp2=prp2, nr=number, ad=bool(args[3] & 0x80))

    def _fused(self, args: bytes) -> Command:
        """The first one of a fused operation, or the second one of the last."""
        if self._first is not None:
            second = Write(bytearray(bytes(self._first)))  # type: ignore[arg-type]
            second.opcode, second.fuse, self._first = Write.OPCODE, Fuse.SECOND, None
            return second
        command = self._transfer(Compare, args)
        command.fuse = Fuse.FIRST
        self._first = command
        return command

    def _copy(self, args: bytes) -> Command:
        """Mostly of ranges that are there."""
        number = (1, 2, 16, 129)[args[3] & 3]
        desfmt = (0, 0, 0, 1, 2, 3, 4, 0)[args[3] >> 2 & 7]
        kind = LongCopyRange if desfmt & 1 else CopyRange
        prp1, prp2 = self.prps(number * kind.SIZE, args[1] & ~8, args[2])
        places = [prp1] if prp1 % PAGE + number * kind.SIZE <= PAGE else []
        for iova in places:
            lengths = [(1, 2, 9, 64)[(args[5] + index) % 4] for index in range(number)]
            ranges = (kind(snsid=1, slba=args[5] * index % 64, nlb=size) for index, size in enumerate(lengths))
            if any(area.iova <= iova < area.iova + area.size for area in self.guest.data):
                self.guest.write(iova, b"".join(map(bytes, ranges)))
        fua = bool(args[3] & 0x40)
        return Copy(nsid=1, prp1=prp1, prp2=prp2, sdlba=args[5] % 70, nr=number, desfmt=desfmt, fua=fua)


QUEUES_AND_MORE = 5


def _descriptor(kind: int, address: int, length: int) -> bytes:
    return (address % (1 << 64)).to_bytes(8, "little") + length.to_bytes(7, "little") + bytes((kind,))


def _one_of(queues: Collection[int], args: bytes) -> int:
    """A QID, mostly of an I/O queue that exists."""
    live = sorted(queues)[1:]
    return live[args[2] % len(live)] if live and args[3] < 0xE0 else args[2] % QUEUES_AND_MORE + 1


ENTRIES = (64, 2, 3, 4, 5, 16, 33, 64)
Maker = Callable[[Builder, bytes], Command]


def _transfers(kind: type[ReadWrite]) -> Maker:
    return lambda builder, args: builder._transfer(kind, args)


ADMIN: tuple[Maker, ...] = (
    Builder._create_cq,
    Builder._create_cq,
    Builder._create_sq,
    Builder._create_sq,
    Builder._delete_sq,
    Builder._delete_cq,
    Builder._identify,
    Builder._get_log,
    Builder._set_features,
    Builder._get_features,
    Builder._abort,
    Builder._abort,
    Builder._async_event,
    Builder._doorbell_buffers,
    Builder._unknown,
)
MANAGEMENT: tuple[Maker, ...] = (
    Builder._manage,
    Builder._attach,
    Builder._directive,
    Builder._lba_status,
    Builder._format,
    Builder._know_extended_formats,
)
NVM: tuple[Maker, ...] = (
    *(_transfers(Read),) * 3,
    Builder._copy,
    *(_transfers(Write),) * 2,
    Builder._fused,
    _transfers(Compare),
    _transfers(Verify),
    _transfers(WriteZeroes),
    Builder._dataset,
    Builder._flush,
    Builder._unknown,
)
