# SPDX-License-Identifier: Apache-2.0
"""Writes the pages of docs/reference from the code: `python scripts/generate_reference.py [--check]`.

The same code gives the same pages on every machine and in every terminal. With `--check` nothing is written, and the
exit status is 1 if a page is not what the code says.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
import typer
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from solar_corona import cli
from solar_corona.core import errors, events, settings, spec_parts
from solar_corona.core.documents import KINDS
from solar_corona.core.durations import Duration, format_duration
from solar_corona.core.errors import ExitCode, SolarCoronaError
from solar_corona.core.spec_parts import Name

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "reference"
NOTE = "<!-- Written by scripts/generate_reference.py; change the code, then run `make docs`. -->\n\n"

Schema = Mapping[str, Any]


DURATION, NAME = (TypeAdapter[Any](kind).json_schema()["pattern"] for kind in (Duration, Name))


def main(arguments: list[str]) -> int:
    """Write or check the pages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page differs")
    check = parser.parse_args(arguments).check
    stale = 0
    for name, text in pages().items():
        path = FOLDER / name
        found = path.read_text(encoding="utf-8") if path.is_file() else ""
        if found == text:
            continue
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"wrote docs/reference/{name}")  # noqa: T201
            continue
        stale += 1
        _say_difference(name, found, text)
    if stale:
        sys.stderr.write(f"{stale} page(s) of docs/reference are not what the code says; run `make docs` and commit\n")
    return 1 if stale else 0


def pages() -> dict[str, str]:
    """Return the text of each page by its file name."""
    made = {"job-file.md": job_file(), "cli.md": command_line(), "errors.md": error_types(), "events.md": run_events()}
    return {name: NOTE + text.rstrip() + "\n" for name, text in made.items()}


def _say_difference(name: str, found: str, text: str) -> None:
    lines = difflib.unified_diff(
        found.splitlines(), text.splitlines(), f"docs/reference/{name}", "from the code", n=1, lineterm=""
    )
    shown = list(lines)
    sys.stderr.write("\n".join([*shown[:20], *(["…"] if len(shown) > 20 else [])]) + "\n")


# --- the job file


def job_file() -> str:
    """Describe each field of each kind of document."""
    out = [
        "# The job file\n",
        "A job file is YAML: one job of any kind, and any number of `Dataset` and `Model` documents.",
        "A line of `---` separates two documents.",
        "Field names are written as here; a name that is not known is an error.",
        "Relative paths are relative to the job file.",
        "`solar-corona schema` prints the same as a JSON schema, for editors.\n",
        "Durations are written like `30s`, `5m` or `1h30m`, or as a number of seconds.",
        "Names have lower-case letters, digits and `-`, and at most 63 characters.\n",
    ]
    definitions: dict[str, tuple[Schema, type[BaseModel]]] = {}
    for kind, root in KINDS.items():
        whole = root.model_json_schema(by_alias=True)
        definitions.setdefault(kind, (whole, root))
        queue = [kind]
        for name in queue:
            for nested in _references(whole if name == kind else whole["$defs"][name]):
                if nested not in definitions:
                    definitions[nested] = (whole["$defs"][nested], _model_named(root, nested))
                    queue.append(nested)
    kinds = [f"[{kind}](#{kind.lower()})" for kind in KINDS]
    out.append(f"Kinds: {', '.join(kinds)}.\n")
    for name, (schema, model) in definitions.items():
        out += [f"## {name}\n", f"{_first_line(model)}\n"]
        out += _table(("field", "type", "default", "meaning"), _fields(schema, model))
    return "\n".join(out)


def _fields(schema: Schema, model: type[BaseModel]) -> Iterator[tuple[str, ...]]:
    required = schema.get("required", [])
    by_alias = {field.alias or name: field for name, field in model.model_fields.items()}
    for name, part in schema["properties"].items():
        meaning = part.get("description") or (_first_line(model) if name == "spec" else "")
        if "const" in part and name == "kind":
            meaning = "Which kind of document this is."
        default = "needed" if name in required else _default(by_alias[name], part)
        yield f"`{name}`", _type(part), default, meaning


def _default(field: FieldInfo, part: Schema) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its fields' own"
    if value is None:
        return "none"
    if part.get("pattern") == DURATION:
        value = format_duration(value)
        return f"`{value}`"
    return f"`{json.dumps(value)}`"


def _type(part: Schema) -> str:
    if "$ref" in part:
        name = part["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for key in ("anyOf", "oneOf", "allOf"):
        if key in part:
            options = [_type(option) for option in part[key] if option.get("type") != "null"]
            return " or ".join(dict.fromkeys(options))
    if "const" in part:
        return f"`{part['const']}`"
    if "enum" in part:
        return " or ".join(f"`{value}`" for value in part["enum"])
    if part.get("pattern") in (DURATION, NAME):
        return "duration" if part["pattern"] == DURATION else "name"
    kind = part.get("type")
    if kind == "array":
        return _array(part)
    if kind == "object":
        values = part.get("additionalProperties")
        simple = isinstance(values, Mapping) and values.get("type") == "string"
        return "mapping of names to text" if simple else "mapping of names to values"
    words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true` or `false`"}
    return words.get(str(kind), "any value") + _bounds(part)


def _array(part: Schema) -> str:
    if "prefixItems" in part:
        kinds = [_type(item) for item in part["prefixItems"]]
        return f"list of {len(kinds)} {kinds[0]}s" if len(set(kinds)) == 1 else f"list of a {', a '.join(kinds)}"
    items = _type(part["items"]).replace("list of", "lists of", 1) if part.get("items") else "values"
    least, most = part.get("minItems"), part.get("maxItems")
    return f"list of {items}" + (f", {least:,} to {most:,}" if least is not None and most is not None else "")


def _bounds(part: Schema) -> str:
    low, high = part.get("minimum"), part.get("maximum")
    if "exclusiveMinimum" in part:
        return f" above {part['exclusiveMinimum']:g}" + (f", at most {high:g}" if high is not None else "")
    if low is not None:
        return f", {low:,} to {high:,}" if high is not None else f", from {low:,}"
    return ""


def _references(part: Any) -> list[str]:
    """Return the names of the definitions that `part` refers to itself, in their order."""
    if isinstance(part, Mapping):
        found = [part["$ref"].rpartition("/")[2]] if "$ref" in part else []
        return found + [name for key, value in part.items() if key != "$defs" for name in _references(value)]
    return [name for value in part for name in _references(value)] if isinstance(part, list) else []


def _model_named(root: type[BaseModel], name: str) -> type[BaseModel]:
    modules = (sys.modules[root.__module__], spec_parts)
    return next(getattr(module, name) for module in modules if hasattr(module, name))  # type: ignore[no-any-return]


# --- the command line


def command_line() -> str:
    """Describe each command with its arguments and options, the exit codes, and the environment variables."""
    group = typer.main.get_command(cli.app)
    assert isinstance(group, click.Group)
    out = [f"# The command `{cli.app.info.name}`\n", f"{group.help}\n"]
    out += _table(
        ("command", "what it does"),
        ((f"[`{name}`](#{name})", _sentence(command.help)) for name, command in group.commands.items()),
    )
    out += [
        "Every command has `--help` (`-h`), and takes `--debug` anywhere: it shows the traceback of an error.\n",
    ]
    for name, command in group.commands.items():
        out += [f"## {name}\n", f"{inspect.cleandoc(command.help or '')}\n", "```text", _usage(name, command), "```\n"]
        said = _help_of(command)
        rows = [_parameter(p, said.get(p.name or "", "")) for p in command.params]
        out += _table(("argument or option", "default", "meaning"), rows)
    out += ["## Exit codes\n"]
    out += _table(("code", "meaning"), ((f"`{int(code)}`", code.meaning) for code in ExitCode))
    out += ["## Environment variables\n"]
    out += _table(
        ("variable", "meaning"),
        (
            (f"`{settings.RUNS_VARIABLE}`", "Folder for run folders; by default `.solar-corona` beside the job file."),
            (f"`{settings.DEBUG_VARIABLE}`", "`1` shows the traceback of an error, as `--debug` does."),
            (f"`{settings.CONTEXT_VARIABLE}`", "Path of a worker's context document; launchers set it, users do not."),
        ),
    )
    return "\n".join(out)


def _usage(name: str, command: click.Command) -> str:
    words = [str(cli.app.info.name), name]
    words += [_argument(p) if p.required else f"[{_argument(p)}]" for p in command.params if _is_argument(p)]
    for parameter in command.params:
        if _is_argument(parameter):
            continue
        option = f"{_longest(parameter)}{_value(parameter)}"
        words.append(option if parameter.required else f"[{option}]{'…' if parameter.multiple else ''}")
    return " ".join(words)


def _is_argument(parameter: click.Parameter) -> bool:
    return parameter.param_type_name == "argument"


def _argument(parameter: click.Parameter) -> str:
    return parameter.metavar or (parameter.name or "").upper()


def _longest(parameter: click.Parameter) -> str:
    return max(parameter.opts, key=len)


def _value(parameter: click.Parameter) -> str:
    if getattr(parameter, "is_flag", False):
        return ""
    word = {"path": "FILE", "file": "FILE", "integer range": "NUMBER"}.get(parameter.type.name, "TEXT")
    return f" {parameter.metavar or word}"


def _help_of(command: click.Command) -> dict[str, str]:
    """Return the help of each parameter as the function's signature says it; Typer drops an argument's on the way."""
    function = inspect.unwrap(command.callback) if command.callback is not None else main
    hints = get_type_hints(function, include_extras=True)
    marks = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return {name: str(getattr(found[0], "help", None) or "") for name, found in marks.items() if found}


def _parameter(parameter: click.Parameter, meaning: str) -> tuple[str, ...]:
    if getattr(parameter, "multiple", False):
        meaning += " May be given several times."
    if _is_argument(parameter):
        return f"`{_argument(parameter)}`", "needed" if parameter.required else "none", meaning
    names = ", ".join(f"`{name}`" for name in sorted(parameter.opts, key=len, reverse=True))
    value = _value(parameter).strip()
    if getattr(parameter, "is_flag", False):
        default = "off"
    elif parameter.required:
        default = "needed"
    else:
        default = "none" if parameter.default is None else f"`{parameter.default}`"
    return f"{names}{f' `{value}`' if value else ''}", default, meaning


# --- errors and events


def error_types() -> str:
    """Describe each error type."""
    out = [
        "# Errors\n",
        "Every error that is raised on purpose is a `solar_corona.core.errors.SolarCoronaError`.",
        "Each is also a subclass of the builtin error that fits.",
        "The command line prints its message and ends with its [exit code](cli.md#exit-codes).\n",
    ]
    rows = []
    for name in errors.__all__:
        kind = getattr(errors, name)
        if not issubclass(kind, SolarCoronaError):
            continue
        bases = [base.__name__ for base in kind.__bases__]
        rows.append(
            (f"`{name}`", ", ".join(f"`{base}`" for base in bases), str(int(kind.exit_code)), _first_line(kind))
        )
    out += _table(("error", "is also", "exit code", "when"), rows)
    return "\n".join(out)


def run_events() -> str:
    """Describe each event of a run."""
    out = [
        "# Events of a run\n",
        "A run writes what happens into `events.jsonl` of its folder, one JSON object a line, the oldest first.",
        "`solar-corona run --json` prints the same lines.",
        "Each has `event`, its kind, and `time`, in seconds since 1970.",
        "A later version may add fields and kinds; a reader passes over those that it does not know.\n",
    ]
    nested: dict[str, type[BaseModel]] = {}
    for model in get_args(get_args(events.Event)[0]):
        kind = model.model_fields["event"].default
        out += _event_part(kind, model, model.model_json_schema())
        nested |= {name: getattr(events, name) for name in model.model_json_schema().get("$defs", {})}
    for name, model in nested.items():
        out += _event_part(name, model, model.model_json_schema())
    return "\n".join(out)


def _event_part(title: str, model: type[BaseModel], schema: Schema) -> list[str]:
    rows = [
        (f"`{name}`", _event_type(part), part.get("description", ""))
        for name, part in schema["properties"].items()
        if name not in ("event", "time")
    ]
    described = any(row[2] for row in rows)
    columns = ("field", "type", "meaning") if described else ("field", "type")
    out = [f"## {title}\n", f"{inspect.cleandoc(model.__doc__ or '')}\n"]
    return out + _table(columns, (row[: len(columns)] for row in rows))


def _event_type(part: Schema) -> str:
    if part.get("type") == "object":
        values = part.get("additionalProperties")
        nested = isinstance(values, Mapping) and values.get("type") == "object"
        return "mapping of edges to mappings of names to numbers" if nested else "mapping of names to numbers"
    text = _type(part)
    nullable = any(option.get("type") == "null" for option in part.get("anyOf", []))
    return f"{text} or `null`" if nullable else text


# --- Markdown


def _first_line(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n\n")[0].replace("\n", " ")


def _sentence(text: str | None) -> str:
    return inspect.cleandoc(text or "").partition("\n\n")[0].replace("\n", " ")


def _table(head: tuple[str, ...], rows: Any) -> list[str]:
    lines = [tuple(cell.replace("|", "\\|").replace("\n", " ").strip() for cell in row) for row in rows]
    if not lines:
        return []
    body = [f"| {' | '.join(line)} |" for line in (head, ("---",) * len(head), *lines)]
    return [*body, ""]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
