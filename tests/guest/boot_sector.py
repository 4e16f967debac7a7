"""The smallest operating system: a boot sector for SeaBIOS that prints a line, and does one more thing."""

import struct
from pathlib import Path

GREETING = "booted from NVMe"

# 16-bit code at 7C00h. It prints with the BIOS (int 10h, AH=0Eh), which SeaBIOS sends to the serial line.
# It sends the last of it some timer ticks later.
PRINT = bytes.fromhex(
    "31c0"  # xor ax, ax
    "8ed8"  # mov ds, ax
    "be227c"  # mov si, 7C22h: the text
    "fc"  # cld
    "ac"  # next: lodsb
    "84c0"  # test al, al
    "7406"  # jz done
    "b40e"  # mov ah, 0Eh
    "cd10"  # int 10h
    "ebf5"  # jmp next
)
POWER_OFF = bytes.fromhex(  # q35: PM1a_CNT is port 604h; S5
    "fb"  # done: sti
    "f4f4f4f4"  # hlt, until the next timer tick
    "ba0406"  # mov dx, 604h
    "b80020"  # mov ax, 2000h
    "ef"  # out dx, ax
)
RESET = bytes.fromhex("ea0000ffff").ljust(len(POWER_OFF), b"\x90")  # jmp FFFFh:0000h, the BIOS' start
STAY = b"\x90" * len(POWER_OFF)
ANY_KEY = bytes.fromhex("30e4cd16ba0406b80020ef90")  # xor ah, ah; int 16h: wait for a key; then power off
HALT = bytes.fromhex("f4ebfd")  # hlt; jmp to itself


def write_cd(path: Path, then: bytes = POWER_OFF) -> Path:
    """A CD that boots the same ("El Torito" specification, no emulation)."""
    descriptor, catalog, boot = 16, 19, 20  # sectors of 2 KiB
    entry = struct.pack("<BBHBBHI", 0x88, 0, 0, 0, 0, 4, boot)
    validation = bytearray(struct.pack("<BBH24sHBB", 1, 0, 0, b"", 0, 0x55, 0xAA))
    struct.pack_into("<H", validation, 28, -sum(struct.unpack("<16H", validation)) & 0xFFFF)
    sectors = {
        descriptor: b"\x01CD001\x01",
        descriptor + 1: b"\x00CD001\x01" + b"EL TORITO SPECIFICATION".ljust(64, b"\0") + struct.pack("<I", catalog),
        descriptor + 2: b"\xffCD001\x01",
        catalog: bytes(validation) + entry,
        boot: sector(then),
    }
    path.write_bytes(b"".join(sectors.get(number, b"").ljust(2048, b"\0") for number in range(64)))
    return path


def write(path: Path, then: bytes = POWER_OFF) -> Path:
    """Make a bootable image of 1 MiB; `then` says what comes after the line."""
    path.write_bytes(sector(then).ljust(1 << 20, b"\0"))
    return path


def sector(then: bytes) -> bytes:
    """The boot sector alone."""
    code = PRINT + then + HALT + f"\r\n{GREETING}\r\n".encode() + b"\0"
    return code.ljust(510, b"\0") + b"\x55\xaa"
