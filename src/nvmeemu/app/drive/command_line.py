"""The options of the command line that describe a drive: they mean a drive file of one."""

from __future__ import annotations

import argparse
from typing import Any

from nvmeemu.app.drive.description import Drive, Tables
from nvmeemu.app.drive.keys import TABLES, TOP, Key
from nvmeemu.app.drive.source import Failure, Source


def drives_of(arguments: argparse.Namespace) -> list[Drive]:
    """The drives of the drive files, or the one drive that the options describe. Raises Failure."""
    options = tables_of(arguments)
    if not arguments.drive:
        return [Drive.of(options, Source())]
    for key in TABLES["namespace"].values():
        if _value(arguments, key) is not None:
            raise Failure(f"--{key.option} does not go with --drive: the file has {key.name} in [[namespace]]", 2)
    if len(arguments.drive) > 1 and options.places:
        *table, name = min(options.places)
        option = TABLES[str(table[0]) if table else TOP][str(name)].option
        text = f"--{option} is for one drive, and there are {len(arguments.drive)}: each file can have it"
        raise Failure(text, 2)
    from nvmeemu.app.drive.file import read  # start-up: without drive files not needed
    from nvmeemu.app.drive.plugins import ProcessPlugins

    plugins = ProcessPlugins(arguments.plugin)
    return [read(path, plugins.install).drive(options) for path in arguments.drive]


def tables_of(arguments: argparse.Namespace) -> Tables:
    """The tables of a drive file that says what the options say. Raises Failure."""
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
    return Tables(given["identity"], given["limits"], namespaces, [given["controller"]], given[TOP], added)


def _value(arguments: argparse.Namespace, key: Key) -> Any:
    return getattr(arguments, key.option.replace("-", "_"), None) if key.group else None
