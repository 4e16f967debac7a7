"""What the fields of Identify Namespace have to be to each other, and to those of Identify Controller."""

from __future__ import annotations

from collections.abc import Iterator

from nvmeemu.spec import PAGE_MIN, IdentifyController, IdentifyNamespace, IndependentNamespace, LbaFormat

THIN, NSABP, OPTPERF = 1 << 0, 1 << 1, 1 << 4  # of NSFEAT
ANA = 1 << 3  # of CMIC
FORMAT, RESERVATIONS, COPY, WRITE_ZEROES = 1 << 1, 1 << 5, 1 << 8, 1 << 3  # of OACS, and of ONCS

Rules = Iterator[tuple[str, bool]]  # a rule, and whether it holds


def broken_rules(
    controller: IdentifyController, page: IdentifyNamespace, independent: IndependentNamespace
) -> list[str]:
    """Base 1.4, Figures 245 and 247; Base 2.0, Figure 280."""
    found = (
        *_sizes(page),
        *_formats(page),
        *_features(controller, page),
        *_performance(controller, page),
        *_atomicity(controller, page),
        *_same_in_both(page, independent),
    )
    return [rule for rule, holds in found if not holds]


def _sizes(page: IdentifyNamespace) -> Rules:
    yield "NSZE >= NCAP >= NUSE > 0", page.nsze >= page.ncap >= page.nuse > 0
    yield "NCAP is NSZE, unless thin", bool(page.nsfeat & THIN) or page.ncap == page.nsze
    yield "NVMCAP is NCAP in bytes, if it is told", page.nvmcap in (0, page.ncap << _format(page).lbads)


def _format(page: IdentifyNamespace) -> LbaFormat:
    return page.lbaf[page.flbas & 0xF]


def _formats(page: IdentifyNamespace) -> Rules:
    has_metadata = any(one.ms for one in page.lbaf)
    yield "FLBAS names a format", page.flbas & 0xF < page.nlbaf
    yield "blocks of 512 bytes at least", all(one.lbads >= 9 for one in page.lbaf[: page.nlbaf])
    yield "metadata in the block only if it can be", not page.flbas & 1 << 4 or bool(page.mc & 1)
    yield "MC only with metadata", not page.mc or has_metadata
    yield "DPC only with metadata", not page.dpc or has_metadata
    yield "DPS of a type that DPC offers", not page.dps & 7 or bool(page.dpc & 1 << (page.dps & 7) - 1)


def _features(controller: IdentifyController, page: IdentifyNamespace) -> Rules:
    yield "shared only in a subsystem with several controllers", not page.nmic & 1 or bool(controller.cmic & 0b11)
    yield "reservation types only with reservations", not page.rescap or bool(controller.oncs & RESERVATIONS)
    yield "progress of a format only with Format NVM", not page.fpi or bool(controller.oacs & FORMAT)
    yield "DLFEAT says what deallocated blocks read as", page.dlfeat & 7 <= 2
    yield "DEAC only with Write Zeroes", not page.dlfeat & 1 << 3 or bool(controller.oncs & WRITE_ZEROES)
    has_copy = bool(controller.oncs & COPY)
    yield "MSSRL and MCL with Copy, and only then", has_copy == bool(page.mssrl) == bool(page.mcl)
    yield "MSSRL <= MCL", page.mssrl <= page.mcl
    yield "MSRC only with Copy", has_copy or page.msrc == 1
    yield "an ANA group only with ANA", not page.anagrpid or bool(controller.cmic & ANA)
    yield "an NVM set only with NVM sets", not page.nvmsetid or bool(controller.ctratt & 1 << 2)
    yield "an endurance group only with these", not page.endgid or bool(controller.ctratt & 1 << 4)


def _performance(controller: IdentifyController, page: IdentifyNamespace) -> Rules:
    fields = (page.npwg, page.npwa, page.npdg, page.npda, page.nows)
    if not page.nsfeat & OPTPERF:
        yield "NPWG to NOWS are zero without OPTPERF", fields == (1,) * 5
        return
    block = 1 << _format(page).lbads
    most = PAGE_MIN << controller.mdts if controller.mdts else 1 << 64
    yield "NPWG is a multiple of NPWA", page.npwg % page.npwa == 0
    yield "NPDG is a multiple of NPDA", page.npdg % page.npda == 0
    yield "NOWS is a multiple of NPWG", page.nows % page.npwg == 0
    yield "NPWG is within MDTS", page.npwg * block <= most
    yield "NOWS is within MDTS", page.nows * block <= most


def _atomicity(controller: IdentifyController, page: IdentifyNamespace) -> Rules:
    yield "AWUPF <= AWUN", controller.awupf <= controller.awun
    none = 1  # of a 0's based field: zero
    if page.nsfeat & NSABP:
        yield "NAWUN >= AWUN", page.nawun >= controller.awun
        yield "NAWUPF >= AWUPF", page.nawupf >= controller.awupf
        yield "NACWU >= ACWU", page.nacwu >= controller.acwu
        yield "NAWUPF <= NAWUN", page.nawupf <= page.nawun
    else:
        yield "NAWUN to NACWU are zero without NSABP", (page.nawun, page.nawupf, page.nacwu) == (none,) * 3
    yield "NABSN >= NAWUN, or none", page.nabsn == none or page.nabsn >= max(page.nawun, controller.awun)
    yield "NABSPF >= NAWUPF, or none", page.nabspf == none or page.nabspf >= max(page.nawupf, controller.awupf)
    yield "NABO <= NABSN and NABSPF", page.nabo < max(page.nabsn, page.nabspf)
    yield "NOIOB is a multiple of NPWG, or none", page.noiob % page.npwg == 0


def _same_in_both(page: IdentifyNamespace, independent: IndependentNamespace) -> Rules:
    """CNS 00h and CNS 08h."""
    for name in ("nmic", "rescap", "fpi", "anagrpid", "nsattr", "nvmsetid", "endgid"):
        yield f"{name.upper()} is the same in both pages", getattr(page, name) == getattr(independent, name)
    yield "ids are reused, or not, in both", page.nsfeat & 1 << 3 == independent.nsfeat & 1 << 3
