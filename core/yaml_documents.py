# SPDX-License-Identifier: Apache-2.0
"""YAML that says no more than JSON can, so that a laptop and a cluster read the same from one file.

Stricter than YAML where it would lose or change something without a word: a field that stands twice, a key that is no
text, a date, a number without a value. Aliases are welcome as long as they do not grow the document beyond bounds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

__all__ = ["YamlTextError", "read_yaml"]

MOST_VALUES = 1_000_000
_TAG = "tag:yaml.org,2002:"
_MERGE, _STRING = f"{_TAG}merge", f"{_TAG}str"
_NOT_IN_JSON = {f"{_TAG}{name}" for name in ("timestamp", "binary", "omap", "pairs", "set", "value")}
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")
_NOT_FINITE = (".inf", ".nan")


class YamlTextError(ValueError):
    """Text that is no such YAML; `line` counts from 1, and is None where it cannot be told."""

    def __init__(self, problem: str, line: int | None) -> None:
        super().__init__(problem)
        self.problem, self.line = problem, line


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with JSON's types only; what looks like a date stays text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own name
        first: [(tag, pattern) for tag, pattern in pairs if tag not in _NOT_IN_JSON]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {  # noqa: RUF012
        tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag not in _NOT_IN_JSON
    }


def read_yaml(text: str) -> list[tuple[yaml.Node, Any]]:
    """Return each document of `text` as its node, which knows lines, and its value; empty ones are left out.

    Raises
    ------
    YamlTextError
        If `text` is no YAML, or says what JSON cannot.
    """
    try:
        return list(_documents(text))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlTextError(str(error.problem or error), mark.line + 1 if mark else None) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlTextError(f"has the character #x{error.character:04x}, which no text has", line) from error
    except RecursionError as error:
        raise YamlTextError("is nested too deeply", None) from error
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, YamlTextError):
            raise
        raise YamlTextError(str(error), None) from error


def _documents(text: str) -> Iterator[tuple[yaml.Node, Any]]:
    loader = _Loader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            assert node is not None
            _size(node, {}, set())
            value = loader.construct_document(node)
            if value is not None:
                yield node, value
    finally:
        loader.dispose()


def _size(node: yaml.Node, done: dict[int, int], above: set[int]) -> int:
    """Return how many values `node` has once its aliases are written out, having checked each of them."""
    if id(node) in done:
        return done[id(node)]
    if id(node) in above:
        raise YamlTextError("an alias refers to what it is a part of", _line(node))
    above.add(id(node))
    size = 1
    if isinstance(node, yaml.ScalarNode):
        _check_scalar(node)
    elif isinstance(node, yaml.MappingNode):
        _check_keys(node)
        size += sum(_size(key, done, above) + _size(value, done, above) for key, value in node.value)
    else:
        size += sum(_size(item, done, above) for item in node.value)
    if size > MOST_VALUES:
        raise YamlTextError(f"has more than {MOST_VALUES} values, counting what its aliases repeat", _line(node))
    above.discard(id(node))
    done[id(node)] = size
    return size


def _check_scalar(node: yaml.ScalarNode) -> None:
    found = _UNWRITABLE.search(node.value)
    if found is not None:
        raise YamlTextError(f"has the character #x{ord(found.group()):04x}, which no text has", _line(node))
    if node.tag == f"{_TAG}float" and node.value.lower().endswith(_NOT_FINITE):
        raise YamlTextError(f"has the number {node.value}, which JSON cannot write; put it in quotes", _line(node))


def _check_keys(node: yaml.MappingNode) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if key.tag == _MERGE:
            continue
        if key.tag != _STRING:
            what = f"key {key.value}" if isinstance(key, yaml.ScalarNode) else "a key"
            raise YamlTextError(f"{what} is no text; put it in quotes", _line(key))
        if key.value in lines:
            raise YamlTextError(
                f"{key.value} stands twice, in line {lines[key.value]} and in line {_line(key)}; remove one",
                _line(key),
            )
        lines[key.value] = _line(key)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
