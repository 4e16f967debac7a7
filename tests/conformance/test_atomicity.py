"""Atomic writes: what a namespace promises, and that no reader sees a part of one. NVM 1.0, 2.1.4."""

from __future__ import annotations

import pytest

from conformance.tools import NewBench, identify_controller, identify_namespace
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.spec import FeatureId, FormatNvm, NsFeat, Read, Status, Write
from nvmeemu.subsystem.formats import FORMATS, OfferedFormat
from nvmeemu.testing import PAGE, Bench

UNIT = 64 << 10
SIZE = 1 << 20


@pytest.fixture
def atomic(new_bench: NewBench) -> Bench:
    """Its worker's tasks are the test's."""
    bench = new_bench(MemoryBackend(SIZE), can_be_formatted=True, manual=True)
    atomicity = bench.namespaces[1].media.atomicity
    assert atomicity is not None
    atomicity.unit = UNIT
    bench.subsystem.add(bench.namespace(2, MemoryBackend(SIZE)))
    bench.driver.enable()
    bench.driver.create_queues(1)
    return bench


@pytest.mark.fact("F319", clause="Base 1.4, Figure 245, NSFEAT and NAWUN", kills=("no-nsabp", "a-unit-of-512"))
@pytest.mark.fact("F320", clause="Base 1.4, Figure 245, NAWUPF, NABO and NABSPF", kills=("nawupf-left-out",))
@pytest.mark.fact("F321", clause="Base 1.4, Figure 245, NAWUN and NAWUPF", kills=("nawupf-left-out", "a-unit-of-512"))
def test_the_units_are_as_many_bytes_in_each_format(atomic: Bench) -> None:
    driver = atomic.driver
    controller = identify_controller(driver)
    assert (controller.awun, controller.awupf) == (1, 1)
    for number, size in ((0, 512), (FORMATS.index(OfferedFormat(4096)), 4096)):
        driver.submit(driver.admin, FormatNvm(nsid=1, lbafl=number))
        while driver.poll(driver.admin) is None:
            atomic.worker.finish_all()
            atomic.clock.advance(0.01)
            atomic.settle()
        page = identify_namespace(driver)
        assert page.nsfeat & NsFeat.NSABP
        assert (page.nawun, page.nawupf) == (UNIT // size, UNIT // size)
        assert (page.nabo, page.nabsn, page.nabspf) == (0, 1, 1)  # one block less one: no boundary
    page = identify_namespace(driver, 2)
    assert not page.nsfeat & NsFeat.NSABP
    assert (page.nawun, page.nawupf) == (1, 1)


@pytest.mark.fact("F319", clause="NVM 1.0, 2.1.4.1", kills=("reads-beside-writes", "writes-beside-reads"))
@pytest.mark.parametrize("dn", [0, 1])
def test_what_overlaps_waits_for_the_other(atomic: Bench, dn: int) -> None:
    """Somebody else writes, and then reads, meanwhile: another queue's command, say."""
    driver, queue = atomic.driver, atomic.driver.queues[1]
    atomicity = atomic.namespaces[1].media.atomicity
    assert atomicity is not None
    driver.set_feature(FeatureId.WRITE_ATOMICITY, dn)
    for is_write, command in ((True, Read), (True, Write), (False, Write)):
        place = driver.alloc(2 * PAGE)
        with atomicity.held(UNIT - 512, 512, is_write):
            beside = driver.submit(queue, command(nsid=1, prp1=place, slba=UNIT // 512, nlb=8))
            over = driver.submit(queue, command(nsid=1, prp1=place + PAGE, slba=UNIT // 512 - 8, nlb=8))
            atomic.settle()
            assert [one.cid for one in driver.drain(queue)] == [beside]
        atomic.worker.finish_all()
        atomic.settle()
        assert [(one.cid, one.status) for one in driver.drain(queue)] == [(over, Status.SUCCESS)]


@pytest.mark.fact("F319", clause="NVM 1.0, 2.1.4.1", kills=("readers-wait-for-each-other",))
def test_readers_do_not_wait_for_each_other(atomic: Bench) -> None:
    driver = atomic.driver
    atomicity = atomic.namespaces[1].media.atomicity
    assert atomicity is not None
    with atomicity.held(0, SIZE, is_write=False):
        done = driver.execute(driver.queues[1], Read(nsid=1, prp1=driver.alloc(PAGE), slba=0, nlb=8))
        assert done.status == Status.SUCCESS
