"""The data structures that Identify, Get Log Page and Get Features transfer. Fields that stay zero are left out."""

from __future__ import annotations

from nvmeemu.spec.layout import Record, bit, bits, count, raw, records, text, uint


class PowerState(Record, size=32):
    """Power State Descriptor. Base 1.4, Figure 248. ``mp`` in centiwatts, latencies in microseconds."""

    mp = uint(0, 2)
    enlat = uint(4, 4)
    exlat = uint(8, 4)


class IdentifyController(Record, size=4096):
    """Identify Controller. Base 1.4, Figure 247."""

    vid = uint(0, 2)
    ssvid = uint(2, 2)
    sn = text(4, 20)
    mn = text(24, 40)
    fr = text(64, 8)
    rab = uint(72, 1)
    ieee = uint(73, 3)
    cmic = uint(76, 1)
    mdts = uint(77, 1)
    cntlid = uint(78, 2)
    ver = uint(80, 4)
    rtd3r = uint(84, 4)  # microseconds
    rtd3e = uint(88, 4)
    oaes = uint(92, 4)
    ctratt = uint(96, 4)
    cntrltype = uint(111, 1)
    oacs = uint(256, 2)
    acl = count(258, 7, 0, size=1)
    aerl = count(259, 7, 0, size=1)
    frmw = uint(260, 1)
    lpa = uint(261, 1)
    elpe = count(262, 7, 0, size=1)
    npss = count(263, 7, 0, size=1)
    avscc = uint(264, 1)
    wctemp = uint(266, 2)  # kelvin
    cctemp = uint(268, 2)
    tnvmcap = uint(280, 16)  # bytes
    unvmcap = uint(296, 16)
    sanicap = uint(328, 4)
    sqes_min = bits(512, 3, 0, size=1)
    sqes_max = bits(512, 7, 4, size=1)
    cqes_min = bits(513, 3, 0, size=1)
    cqes_max = bits(513, 7, 4, size=1)
    maxcmd = uint(514, 2)
    nn = uint(516, 4)
    oncs = uint(520, 2)
    fuses = uint(522, 2)
    fna = uint(524, 1)
    vwc = uint(525, 1)
    awun = count(526, 15, 0, size=2)
    awupf = count(528, 15, 0, size=2)
    acwu = count(532, 15, 0, size=2)
    sgls = uint(536, 4)
    subnqn = raw(768, 256)
    psd = records(2048, PowerState, 32)


class LbaFormat(Record, size=4):
    """Base 1.4, Figure 246. ``lbads``: a power of two."""

    ms = uint(0, 2)
    lbads = uint(2, 1)
    rp = bits(3, 1, 0, size=1)


class IdentifyNamespace(Record, size=4096):
    """Identify Namespace. Base 1.4, Figure 245. Sizes in blocks."""

    nsze = uint(0, 8)
    ncap = uint(8, 8)
    nuse = uint(16, 8)
    nsfeat = uint(24, 1)
    nlbaf = count(25, 7, 0, size=1)
    flbas = uint(26, 1)
    mc = uint(27, 1)
    dpc = uint(28, 1)
    dps = uint(29, 1)
    nmic = uint(30, 1)
    rescap = uint(31, 1)
    fpi = uint(32, 1)
    dlfeat = uint(33, 1)
    nawun = count(34, 15, 0, size=2)
    nawupf = count(36, 15, 0, size=2)
    nacwu = count(38, 15, 0, size=2)
    nabsn = count(40, 15, 0, size=2)
    nabo = uint(42, 2)
    nabspf = count(44, 15, 0, size=2)
    noiob = uint(46, 2)
    nvmcap = uint(48, 16)  # bytes
    npwg = count(64, 15, 0, size=2)
    npwa = count(66, 15, 0, size=2)
    npdg = count(68, 15, 0, size=2)
    npda = count(70, 15, 0, size=2)
    nows = count(72, 15, 0, size=2)
    mssrl = uint(74, 2)
    mcl = uint(76, 4)
    msrc = uint(80, 1)
    anagrpid = uint(92, 4)
    nsattr = uint(99, 1)
    nvmsetid = uint(100, 2)
    endgid = uint(102, 2)
    nguid = raw(104, 16)
    eui64 = raw(120, 8)
    lbaf = records(128, LbaFormat, 16)


class IndependentNamespace(Record, size=4096):
    """I/O Command Set Independent Identify Namespace. Base 2.0, Figure 280."""

    nsfeat = uint(0, 1)
    nmic = uint(1, 1)
    rescap = uint(2, 1)
    fpi = uint(3, 1)
    anagrpid = uint(4, 4)
    nsattr = uint(8, 1)
    nvmsetid = uint(10, 2)
    endgid = uint(12, 2)
    nstat = uint(14, 1)


class NvmController(Record, size=4096):
    """Identify Controller, NVM Command Set (CNS 06h, CSI 00h). NVM 1.0, Figure 101. Zero: no limit or not said."""

    vsl = uint(0, 1)
    wzsl = uint(1, 1)
    wusl = uint(2, 1)
    dmrl = uint(3, 1)
    dmrsl = uint(4, 4)
    dmsl = uint(8, 8)


class ErrorLogEntry(Record, size=64):
    """Error Information. Base 1.4, Figure 192. ``status`` is the Status Field, phase tag in bit 0."""

    error_count = uint(0, 8)
    sqid = uint(8, 2)
    cid = uint(10, 2)
    phase = bit(12, 0, size=2)
    status = bits(12, 15, 1, size=2)
    location_byte = bits(14, 7, 0, size=2)
    location_bit = bits(14, 10, 8, size=2)
    location = uint(14, 2)  # FFFFh: not specific to a parameter
    lba = uint(16, 8)
    nsid = uint(24, 4)


class SmartLog(Record, size=512):
    """SMART / Health Information. Base 1.4, Figure 193."""

    critical_warning = uint(0, 1)
    temperature = uint(1, 2)  # kelvin
    available_spare = uint(3, 1)  # percent
    spare_threshold = uint(4, 1)
    percentage_used = uint(5, 1)
    data_units_read = uint(32, 16)  # thousands of 512 bytes, rounded up
    data_units_written = uint(48, 16)
    host_reads = uint(64, 16)  # commands
    host_writes = uint(80, 16)
    busy_time = uint(96, 16)  # minutes
    power_cycles = uint(112, 16)
    power_on_hours = uint(128, 16)
    unsafe_shutdowns = uint(144, 16)
    media_errors = uint(160, 16)
    error_log_entries = uint(176, 16)


class FirmwareSlotLog(Record, size=512):
    """Firmware Slot Information. Base 1.4, Figure 194."""

    afi = uint(0, 1)
    frs1 = text(8, 8)


class CommandEffect(Record, size=4):
    """One command of the Commands Supported and Effects log. Base 1.4, Figure 199."""

    csupp = bit(0, 0)
    lbcc = bit(0, 1)
    ncc = bit(0, 2)
    nic = bit(0, 3)
    ccc = bit(0, 4)


class CommandEffectsLog(Record, size=4096):
    """Commands Supported and Effects, a word an opcode. Base 1.4, Figure 198."""

    admin = records(0, CommandEffect, 256)
    io = records(1024, CommandEffect, 256)
