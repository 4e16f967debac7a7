"""Interrupts reach the client's eventfds, MSI-X and INTx."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

import pytest

from nvmeemu.testing.client import BAR0, CONFIG, DATA_EVENTFD, ERR, INTX, MSIX, REQ, TRIGGER, Refused, VfioClient
from nvmeemu.vfio.pci import EXPRESS, INITIATE_FLR
from nvmeemu.vfio.pci import MSIX as MSIX_CAPABILITY
from transport.conftest import ServedFake
from transport.fake import INTERRUPT, PIN


def number(value: int) -> bytes:
    return value.to_bytes(8, "little")


@pytest.fixture
def eventfds() -> Iterator[list[int]]:
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(5)]
    yield fds
    for fd in fds:
        os.close(fd)


def signalled(fds: list[int]) -> list[int]:
    """Which vectors have fired; the reply to a later command proves that earlier ones have had their effect."""
    ready, _, _ = select.select(fds, [], [], 0)
    for fd in ready:
        os.eventfd_read(fd)
    return [fds.index(fd) for fd in ready]


def enable_msix(client: VfioClient, enable: bool = True) -> None:
    client.write(CONFIG, MSIX_CAPABILITY + 2, (0x8000 if enable else 0).to_bytes(2, "little"))


def test_a_vector_fires_its_own_eventfd(client: VfioClient, eventfds: list[int]) -> None:
    enable_msix(client)
    client.set_interrupts(MSIX, 0, eventfds)
    for vector in (0, 3, 4):
        client.write(BAR0, INTERRUPT, number(vector))
        assert signalled(eventfds) == [vector]


def test_the_eventfd_is_looked_up_at_each_interrupt(client: VfioClient, eventfds: list[int]) -> None:
    """Linux makes the completion queue before it enables the queue's vector."""
    enable_msix(client)
    client.set_interrupts(MSIX, 2, eventfds[:1])
    client.write(BAR0, INTERRUPT, number(2))
    assert signalled(eventfds) == [0]
    client.set_interrupts(MSIX, 2, eventfds[1:2])
    client.write(BAR0, INTERRUPT, number(2))
    assert signalled(eventfds) == [1]
    client.disable_interrupts(MSIX)
    client.write(BAR0, INTERRUPT, number(2))
    client.write(BAR0, INTERRUPT, number(99))  # no such vector
    assert signalled(eventfds) == []


@pytest.mark.kills("a-message-without-a-route-is-lost")
def test_a_message_without_a_route_is_sent_when_there_is_one(client: VfioClient, eventfds: list[int]) -> None:
    """A VMM takes all routes away and sets them anew when the guest enables one more vector."""
    enable_msix(client)
    client.set_interrupts(MSIX, 0, eventfds)
    client.disable_interrupts(MSIX)
    client.write(BAR0, INTERRUPT, number(2))
    client.write(BAR0, INTERRUPT, number(3))
    client.set_interrupts(MSIX, 0, eventfds[:3])
    client.device_info()  # what waited for the routes is sent behind the reply to SET_IRQS
    assert signalled(eventfds) == [2]
    client.set_interrupts(MSIX, 3, eventfds[3:])
    client.device_info()
    assert signalled(eventfds) == [3]
    client.set_interrupts(MSIX, 2, eventfds[2:4])
    client.device_info()
    assert signalled(eventfds) == []


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("device", marks=pytest.mark.kills("a-device-reset-keeps-pending-messages")),
        pytest.param("function level", marks=pytest.mark.kills("a-function-level-reset-keeps-pending-messages")),
    ],
)
def test_a_reset_forgets_the_messages_that_wait_for_a_route(client: VfioClient, eventfds: list[int], kind: str) -> None:
    """Those were for the guest of before."""
    enable_msix(client)
    client.write(CONFIG, 4, b"\x02\x00")  # it waits also without Bus Master Enable
    client.write(BAR0, INTERRUPT, number(2))
    if kind == "device":
        client.reset()
    else:
        client.write(CONFIG, EXPRESS + 8, INITIATE_FLR.to_bytes(2, "little"))
    enable_msix(client)
    client.enable_bus_master()
    client.set_interrupts(MSIX, 0, eventfds)
    client.device_info()  # what waited for the routes is sent behind the reply to SET_IRQS
    assert signalled(eventfds) == []
    client.write(BAR0, INTERRUPT, number(3))
    assert signalled(eventfds) == [3]


def test_a_route_in_the_middle_can_be_taken_away(client: VfioClient, eventfds: list[int]) -> None:
    """No eventfds at all for vectors 2 and 3; the library used to take away none of them."""
    enable_msix(client)
    client.set_interrupts(MSIX, 0, eventfds)
    client.set_irqs(DATA_EVENTFD | TRIGGER, MSIX, 2, 2)
    for vector in range(5):
        client.write(BAR0, INTERRUPT, number(vector))
    assert signalled(eventfds) == [0, 1, 4]


def test_no_message_is_sent_while_msix_is_off(client: VfioClient, eventfds: list[int]) -> None:
    """Vector 0 would be taken for INTx."""
    client.set_interrupts(INTX, 0, eventfds[:1])
    client.write(BAR0, INTERRUPT, number(0))
    assert signalled(eventfds) == []


def test_an_asserted_pin_fires_again_after_each_unmask(
    fake: ServedFake, client: VfioClient, eventfds: list[int]
) -> None:
    client.set_interrupts(INTX, 0, eventfds[:1])
    client.write(BAR0, PIN, number(1))
    assert signalled(eventfds) == [0]
    client.unmask_pin()
    assert signalled(eventfds) == [0]
    client.write(BAR0, PIN, number(0))
    client.unmask_pin()
    fake.wait_for("unmasked")
    fake.wait_for("unmasked")
    assert signalled(eventfds) == []


def test_a_pin_that_has_fired_waits_for_the_unmask(client: VfioClient, eventfds: list[int]) -> None:
    client.set_interrupts(INTX, 0, eventfds[:1])
    client.write(BAR0, PIN, number(1))
    assert signalled(eventfds) == [0]
    client.write(BAR0, PIN, number(0))
    client.write(BAR0, PIN, number(1))
    assert signalled(eventfds) == []
    client.unmask_pin()
    assert signalled(eventfds) == [0]


def test_a_masked_pin_does_not_fire(client: VfioClient, eventfds: list[int]) -> None:
    client.set_interrupts(INTX, 0, eventfds[:1])
    client.mask_pin()
    client.write(BAR0, PIN, number(1))
    assert signalled(eventfds) == []
    client.unmask_pin()
    assert signalled(eventfds) == [0]


def test_a_pin_fires_again_on_a_new_route(client: VfioClient, eventfds: list[int]) -> None:
    """The VMM has forgotten that it is masked."""
    client.set_interrupts(INTX, 0, eventfds[:1])
    client.write(BAR0, PIN, number(1))
    client.disable_interrupts(INTX)
    client.set_interrupts(INTX, 0, eventfds[1:2])
    client.device_info()
    assert signalled(eventfds) == [0, 1]


def test_interrupt_disable_in_the_command_register_holds_the_pin(client: VfioClient, eventfds: list[int]) -> None:
    client.set_interrupts(INTX, 0, eventfds[:1])
    client.write(CONFIG, 4, b"\x06\x04")
    client.write(BAR0, PIN, number(1))
    assert signalled(eventfds) == []
    client.write(CONFIG, 4, b"\x06\x00")
    assert signalled(eventfds) == [0]


def test_a_pin_asserted_without_a_route_fires_when_there_is_one(client: VfioClient, eventfds: list[int]) -> None:
    client.write(BAR0, PIN, number(1))
    client.set_interrupts(INTX, 0, eventfds[:1])
    client.read(BAR0, 0, 4)
    client.read(BAR0, 0, 4)
    assert signalled(eventfds) == [0]


def test_the_pin_is_not_driven_while_msix_is_on(client: VfioClient, eventfds: list[int]) -> None:
    enable_msix(client)
    client.set_interrupts(MSIX, 0, eventfds)
    client.write(BAR0, PIN, number(1))
    assert signalled(eventfds) == []


@pytest.mark.parametrize("index", [ERR, REQ])
def test_error_and_request_interrupts_do_not_take_the_route_of_vector_0(
    client: VfioClient, eventfds: list[int], index: int
) -> None:
    """The library stores their eventfds in the table of vectors; QEMU stops the VM at an ERR."""
    client.set_interrupts(INTX, 0, eventfds[:1])
    assert client.interrupt_count(index) == 0
    with pytest.raises(Refused):
        client.set_interrupts(index, 0, eventfds[1:2])
    client.write(BAR0, PIN, number(1))
    assert signalled(eventfds) == [0]
