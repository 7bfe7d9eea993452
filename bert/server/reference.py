"""The page at ``/docs``: the routes and their fields, from the OpenAPI schema."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Routes</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="page.css">
</head>
<body>
<main>
<h1>Routes</h1>
<p><a href="./">Try a model</a>, or read the schema: <a href="openapi.json">openapi.json</a>.</p>
"""


def reference(schema: dict[str, Any]) -> str:
    """The page, which loads nothing and runs nothing."""
    parts = schema.get("components", {}).get("schemas", {})
    rows = [_HEAD]
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            rows.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2>\n")
            rows.append(f"<p>{escape(route.get('description', ''))}</p>\n")
            content = route.get("requestBody", {}).get("content", {})
            for body in content.values():
                rows += _fields(parts, body["schema"])
    rows.append("</main>\n</body>\n</html>\n")
    return "".join(rows)


def _fields(parts: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    """A list of the fields of a body."""
    body = parts[schema["$ref"].rpartition("/")[2]]
    yield "<ul>\n"
    for name, field in body["properties"].items():
        need = "required" if name in body.get("required", ()) else "optional"
        told = f": {escape(field['description'])}" if "description" in field else ""
        kind = escape(_kind(field))
        yield f"<li><code>{escape(name)}</code>, {kind}, {need}{told}</li>\n"
    yield "</ul>\n"


def _kind(field: dict[str, Any]) -> str:
    """A type in words."""
    if "anyOf" in field:
        return " or ".join(_kind(each) for each in field["anyOf"] if each.get("type") != "null")
    if "enum" in field:
        return " or ".join(map(str, field["enum"]))
    if field.get("type") == "array":
        inner = _kind(field.get("items", {}))
        return "list of " + (f"lists{inner[4:]}" if inner.startswith("list") else f"{inner}s")
    return str({"integer": "whole number"}.get(field.get("type", ""), field.get("type", "value")))
