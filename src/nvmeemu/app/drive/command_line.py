"""The options of the command line that describe a drive: they mean a drive file of one."""

from __future__ import annotations

import argparse
from typing import Any

from nvmeemu.app.drive.description import Drive, Tables
from nvmeemu.app.drive.keys import TABLES, Key
from nvmeemu.app.drive.source import Failure, Source


def drive_of(arguments: argparse.Namespace) -> Drive:
    """The drive that the options describe. Raises Failure."""
    return Drive.of(tables_of(arguments), Source())


def tables_of(arguments: argparse.Namespace) -> Tables:
    """What the options say. Raises Failure."""
    given = {
        name: {key.name: value for key in keys.values() if (value := _value(arguments, key)) is not None}
        for name, keys in TABLES.items()
    }
    disks: list[str] = given["namespace"].pop("disk", [])
    each = {key.name: given["namespace"].pop(key.name, []) for key in TABLES["namespace"].values() if key.is_each}
    for key, values in each.items():
        if len(values) > len(disks):
            raise Failure(f"--{key}: {len(values)} are given, for {len(disks)} disk{'s' * (len(disks) > 1)}", 2)
    shared = given["namespace"]
    namespaces = [
        {"disk": disk, **shared, **{key: values[index] for key, values in each.items() if index < len(values)}}
        for index, disk in enumerate(disks)
    ]
    added = {key: value for key, value in shared.items() if key not in ("create", "size")}
    return Tables(given["identity"], given["limits"], namespaces, [given["controller"]], added)


def _value(arguments: argparse.Namespace, key: Key) -> Any:
    return getattr(arguments, key.option.replace("-", "_"), None) if key.group else None
