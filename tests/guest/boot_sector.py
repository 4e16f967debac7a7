"""The smallest operating system: a boot sector for SeaBIOS that prints a line, and does one more thing."""

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
HALT = bytes.fromhex("f4ebfd")  # hlt; jmp to itself


def write(path: Path, then: bytes = POWER_OFF) -> Path:
    """Make a bootable image of 1 MiB; `then` says what comes after the line."""
    code = PRINT + then + HALT + f"\r\n{GREETING}\r\n".encode() + b"\0"
    path.write_bytes((code.ljust(510, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0"))
    return path
