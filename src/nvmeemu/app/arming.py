"""The faults that a controller has from its beginning on."""

from __future__ import annotations

from nvmeemu.app.drive.keys import ControllerTable
from nvmeemu.app.drive.source import Failure
from nvmeemu.backend import describe
from nvmeemu.controller.controller import Controller
from nvmeemu.faults import FaultError, Faults
from nvmeemu.faults.file import FaultSet, load
from nvmeemu.plugins import INSTALLED, InstalledPlugin


def load_all(table: ControllerTable) -> FaultSet:
    """The faults of all the files and scenarios of a controller, as one set. Raises Failure."""
    try:
        found = [load(spec) for spec in table.faults]
    except FaultError as error:
        raise Failure(f"--faults: {error}", 2) from None
    except OSError as error:
        raise Failure(f"--faults {error.filename}: {describe(error)}", 2) from None
    seeds = {one.seed for one in found if one.seed is not None}
    if len(seeds) > 1:
        raise Failure("--faults: the files have different seeds, and a drive has one: leave out all but one", 2)
    return FaultSet([fault for one in found for fault in one.faults], min(seeds, default=None))


def arm(table: ControllerTable, controller: Controller, given: FaultSet) -> Faults:
    """Put the faults to work on the controller."""
    faults = Faults(controller, given.seed or 0)
    for plugin in [*_own(table), *INSTALLED]:
        plugin.begin(controller.state, faults)
    for fault in given.faults:
        faults.add(fault)
    return faults


def _own(table: ControllerTable) -> list[InstalledPlugin]:
    """The plugins of ours that this controller has by an option."""
    if not table.ocp:
        return []
    from nvmeemu.plugins import ocp  # start-up

    return [ocp.plugin]
