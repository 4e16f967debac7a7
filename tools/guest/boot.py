"""The job "boot": the user's own kernel, disk or installer."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace

from nvmeemu.guest import cache
from nvmeemu.guest.deadline import Deadline
from nvmeemu.guest.errors import GuestError
from nvmeemu.guest.guest import Guest
from nvmeemu.guest.machine import Machine
from tools.guest import systems, user_image
from tools.guest.run import Run

SCREENSHOT_SECONDS = 30.0
# What stands above a login: Linux' getty, FreeBSD's.
BANNER = re.compile(r"^(\S[^\n]*?) (?:\S+ tty\w+|\(\S*\) \(tty\w+\))\s*$\s+\S* ?login: ", re.MULTILINE)


def boot_job(run: Run) -> str:
    """Boot the user's system. It passes if the console prints what is expected, or if the guest powers itself off."""
    settings = run.settings
    if settings.display == "vnc":
        run.say(f"the screen: VNC on the UNIX socket {run.folder / 'screen.sock'}")
    with run.boot(_machine(run), complaints="") as guest:
        try:
            return _attend(run, guest)
        finally:
            if settings.screenshot:
                # Without a screen to take it from, the reason is another failure, which is the one to tell.
                with contextlib.suppress(GuestError):
                    systems.screenshot(guest, settings.screenshot, Deadline(SCREENSHOT_SECONDS))
                if not settings.screenshot.exists():
                    run.say("no screenshot: the guest has ended")


def _attend(run: Run, guest: Guest) -> str:
    settings = run.settings
    try:
        return _see_through(run, guest)
    finally:
        if settings.os:  # for the record: another system's image may have been given
            banner = BANNER.search(guest.transcript.text)
            name = banner[1].strip() if banner else "an image without a name on the console"
            run.found.guest = f"{name}, as {systems.SYSTEMS[settings.os].title}"


def _see_through(run: Run, guest: Guest) -> str:
    settings = run.settings
    if settings.iso and settings.os and systems.SYSTEMS[settings.os].any_key:
        systems.press_for_the_cd(guest)
    for pattern in settings.expect:
        guest.expect(pattern)
        run.say(f"the console printed {pattern!r}")
    if settings.screenshot and settings.expect:
        systems.screenshot(guest, settings.screenshot, guest.deadline)
    if settings.power_button is not None:
        systems.watch(guest, settings.power_button)
        run.say("pressing the power button")
        systems.press_power_button(guest)
    elif settings.expect and not settings.write:
        guest.stop()
        return f"the console printed all {len(settings.expect)} expected"
    elif settings.expect:
        systems.press_power_button(guest)  # the image is kept: no plug to be pulled
    guest.wait_for_end()
    return "the guest has powered itself off"


def _machine(run: Run) -> Machine:
    settings = run.settings
    if settings.boot_disk or settings.sata_disk or settings.iso:
        machine = replace(run.custom(settings.kernel, settings.initrd), append="")
    elif settings.kernel or settings.initrd:
        machine = run.custom(settings.kernel or cache.kernel(settings.arch.debian), settings.initrd)
    else:
        machine = run.linux()
    words: list[str] = []
    if settings.display == "vnc":
        words += systems.screen(run.folder / "screen.sock")
        machine = replace(machine, board=systems.SCREEN_BOARD)
    if settings.iso:
        words += systems.cd(settings.iso)
    if settings.sata_disk:
        words += systems.sata_disk(settings.sata_disk, user_image.format_of(settings.sata_disk), write=settings.write)
    if settings.os:
        words += systems.SYSTEMS[settings.os].words
    return replace(machine, reboots=bool(settings.os), extra=(*words, *machine.extra))
