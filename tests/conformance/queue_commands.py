"""Commands that create, delete and count queues, good ones unless a test changes them."""

from __future__ import annotations

from typing import Any

from nvmeemu.spec import AdminOpcode, Command, CreateCq, CreateSq, DeleteQueue, FeatureId, SetFeatures
from nvmeemu.testing import PAGE, Driver


def new_cq(driver: Driver, **fields: Any) -> CreateCq:
    """A good Create I/O Completion Queue for queue 1, with some fields changed."""
    values = {"prp1": driver.alloc(PAGE), "qid": 1, "qsize": 16, "pc": True, "ien": True} | fields
    return CreateCq(None, opcode=AdminOpcode.CREATE_CQ, **values)


def new_sq(driver: Driver, **fields: Any) -> CreateSq:
    """A good Create I/O Submission Queue 1 for completion queue 1, with some fields changed."""
    values = {"prp1": driver.alloc(PAGE), "qid": 1, "qsize": 16, "pc": True, "cqid": 1} | fields
    return CreateSq(None, opcode=AdminOpcode.CREATE_SQ, **values)


def delete(opcode: AdminOpcode, qid: int) -> DeleteQueue:
    return DeleteQueue(opcode=opcode, qid=qid)


def number_of_queues(cdw11: int) -> Command:
    return SetFeatures(opcode=AdminOpcode.SET_FEATURES, fid=FeatureId.NUMBER_OF_QUEUES, cdw11=cdw11)
