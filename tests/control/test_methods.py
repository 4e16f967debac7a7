"""A method of the control socket that fails because of a fault of its own does nothing to the drive."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from nvmeemu.app.control.messages import INTERNAL_ERROR, answer
from nvmeemu.app.control.methods import Methods
from nvmeemu.faults import Faults
from nvmeemu.subsystem.namespace import Namespace
from nvmeemu.testing import Bench


def wrong(nsid: int, table: Mapping[str, Any]) -> Namespace:
    raise IndexError("a mistake of ours")


@pytest.mark.kills("a-failing-method-ends-the-server")
def test_a_mistake_of_ours_is_answered_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    with Bench() as bench:
        methods = Methods(bench.controller, Faults(bench.controller), wrong, lambda disk: None).table()
        request = {"jsonrpc": "2.0", "method": "namespace.add", "params": {"disk": "mem:1M"}, "id": 7}
        said: dict[str, Any] = json.loads(answer(json.dumps(request).encode(), methods))
        assert (said["id"], said["error"]["code"]) == (7, INTERNAL_ERROR)
        assert "a mistake of ours" in caplog.text
        assert (
            json.loads(answer(json.dumps({**request, "method": "fault.list", "params": {}}).encode(), methods))[
                "result"
            ]
            == []
        )
