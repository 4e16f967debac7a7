"""The JSON schema of a drive file, made of the keys."""

from __future__ import annotations

from typing import Any

from nvmeemu.app.drive.keys import ABOUT, LISTS, TABLES, TOP, Key


def schema() -> dict[str, Any]:
    """In the dialect of JSON Schema 2020-12. What several keys say together, and what disks there are, is not in it."""
    properties = {name: _key(key) for name, key in TABLES[TOP].items()}
    for name in filter(None, TABLES):
        properties[name] = {"type": "array", "items": _table(name)} if name in LISTS else _table(name)
    properties["controller"]["maxItems"] = 1
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "nvmeemu drive file",
        "description": ABOUT[TOP],
        "type": "object",
        "properties": properties,
        "anyOf": [{"required": ["namespace"], "properties": {"namespace": {"minItems": 1}}}, {"required": ["pool"]}],
        "additionalProperties": False,
    }


def _table(name: str) -> dict[str, Any]:
    keys = TABLES[name].values()
    found: dict[str, Any] = {
        "description": ABOUT[name],
        "type": "object",
        "properties": {key.name: _key(key) for key in keys},
        "additionalProperties": False,
    }
    if required := [key.name for key in keys if key.is_required]:
        found["required"] = required
    return found


def _key(key: Key) -> dict[str, Any]:
    about = f"{key.about} ({key.otherwise})" if key.otherwise else key.about
    return {"description": about, **key.kind.schema()}
