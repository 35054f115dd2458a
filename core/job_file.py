# SPDX-License-Identifier: Apache-2.0
"""Reads job files: YAML in, checked documents out, and errors that name file, line, field and fix."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Generic, overload

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from typing_extensions import TypeVar

from .documents import JOB_KINDS, KINDS, Document, Job
from .errors import SpecError
from .spec import FederatedLearningJob
from .spec_parts import API_VERSION, Dataset, Model
from .yaml_documents import YamlTextError, read_yaml

__all__ = ["JobFile", "read_any_job_file", "read_documents", "read_job", "read_job_file"]

_INDEX = re.compile(r"[0-9]{1,9}")
_MAX_BYTES = 10 * 2**20
_MOST_SHOWN = 10
_D = TypeVar("_D", Dataset, Model)
_J_co = TypeVar("_J_co", bound=Job, default=FederatedLearningJob, covariant=True)
_K = TypeVar("_K", bound=Job)


@dataclass(frozen=True)
class JobFile(Generic[_J_co]):
    """A job with the documents that stand beside it in the same file."""

    path: Path
    job: _J_co
    datasets: Mapping[str, Dataset] = field(default_factory=dict)
    models: Mapping[str, Model] = field(default_factory=dict)


def read_job(path: Path, overrides: Sequence[str] = ()) -> FederatedLearningJob:
    """Return the one job of a file; see `read_job_file`."""
    return read_job_file(path, overrides).job


def read_any_job_file(path: Path, overrides: Sequence[str] = ()) -> JobFile[Job]:
    """Read a file with one job of any kind, and any number of `Dataset` and `Model` documents.

    Parameters
    ----------
    path
        The file.
    overrides
        Changes such as `spec.aggregation.rounds=3`; the value is read as YAML.

    Raises
    ------
    SpecError
        If the file, a field or an override is wrong; the message says where, what was expected, and what to do.
    """
    documents = read_documents(path, overrides)
    jobs = [d for d in documents if not isinstance(d, Dataset | Model)]
    if len(jobs) != 1:
        names = " or ".join(JOB_KINDS)
        raise SpecError(f"{path}: holds {len(jobs)} jobs, expected exactly one document of kind {names}")
    datasets = [d for d in documents if isinstance(d, Dataset)]
    models = [d for d in documents if isinstance(d, Model)]
    return JobFile(path, jobs[0], _by_name(path, datasets), _by_name(path, models))


@overload
def read_job_file(path: Path, overrides: Sequence[str] = ...) -> JobFile[FederatedLearningJob]: ...


@overload
def read_job_file(path: Path, overrides: Sequence[str], kind: type[_K]) -> JobFile[_K]: ...


def read_job_file(path: Path, overrides: Sequence[str] = (), kind: type[Any] = FederatedLearningJob) -> JobFile[Any]:
    """Read a file with one job of one kind; see `read_any_job_file`.

    Raises
    ------
    SpecError
        Also if the file's job is of another kind.
    """
    file = read_any_job_file(path, overrides)
    if not isinstance(file.job, kind):
        raise SpecError(f"{path}: its job is a {file.job.kind}, and this works with a {kind.__name__} alone")
    return file


def _by_name(path: Path, documents: Sequence[_D]) -> dict[str, _D]:
    named: dict[str, _D] = {}
    for document in documents:
        name = document.metadata.name
        if name in named:
            raise SpecError(f"{path}: holds two {document.kind} documents called {name!r}; rename or remove one")
        named[name] = document
    return named


def read_documents(path: Path, overrides: Sequence[str] = ()) -> list[Document]:
    """Read all documents of a file; overrides apply to its jobs."""
    try:
        documents = read_yaml(_read_text(path))
    except YamlTextError as error:
        where = f"{path}:{error.line}" if error.line else str(path)
        raise SpecError(f"{where}: is no valid YAML: {error.problem}; check indentation and quotes there") from error
    if not documents:
        raise SpecError(f"{path}: is empty, expected a document with apiVersion, kind, metadata and spec")
    return [_parse(path, node, value, overrides) for node, value in documents]


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise SpecError(f"{path}: is larger than {_MAX_BYTES} bytes, which no job file is; is it the right file?")
        return data.decode("utf-8")
    except FileNotFoundError:
        folder = path.parent
        names = [p.name for p in folder.glob("*.y*ml")] if folder.is_dir() else []
        near = get_close_matches(path.name, names, n=1)
        hint = f"did you mean {folder / near[0]}?" if near else "give the path of a job file"
        raise SpecError(f"{path}: does not exist; {hint}") from None
    except IsADirectoryError:
        raise SpecError(f"{path}: is a folder; give the path of a job file") from None
    except UnicodeDecodeError:
        raise SpecError(f"{path}: is not UTF-8 text; is it a job file?") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error


def _parse(path: Path, node: yaml.Node, value: Any, overrides: Sequence[str]) -> Document:
    line = node.start_mark.line + 1
    if not isinstance(value, dict):
        raise SpecError(
            f"{path}:{line}: is {_kind_of(value)}, expected a document with apiVersion, kind, metadata, spec"
        )
    kind = value.get("kind")
    model = KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        near = get_close_matches(str(kind), KINDS, n=1)
        raise SpecError(
            f"{path}:{_line(node, ('kind',))}: kind is {kind!r}, expected one of {', '.join(KINDS)}"
            + (f"; did you mean {near[0]}?" if near else "")
        )
    if value.get("apiVersion") != API_VERSION:
        raise SpecError(
            f"{path}:{_line(node, ('apiVersion',))}: apiVersion is {value.get('apiVersion')!r}, expected {API_VERSION}"
        )
    if kind in JOB_KINDS:
        value = _unshared(value) if overrides else value
        for override in overrides:
            _override(value, override)
    try:
        return model.model_validate(value, by_name=False)
    except ValidationError as error:
        raise SpecError(_explain(path, node, model, error, overrides)) from error


def _unshared(value: Any) -> Any:
    """Return a copy in which what stood behind an alias is there twice, so that one can change without the other."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _override(document: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise SpecError(f"--set {override}: expected FIELD=VALUE, such as spec.aggregation.rounds=3")
    try:
        value = next((value for _, value in read_yaml(text)), None)
    except YamlTextError as error:
        raise SpecError(f"--set {override}: the value is no valid YAML: {error.problem}; put it in quotes") from error
    place: Any = document
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(place, list):
            if not _INDEX.fullmatch(key) or int(key) >= len(place):
                raise SpecError(
                    f"--set {override}: {'.'.join(keys[:depth])} is a list of {len(place)}, which has no {key!r}; "
                    f"give an index from 0"
                )
            if last:
                place[int(key)] = value
            else:
                place = place[int(key)]
        elif isinstance(place, dict):
            if last:
                place[key] = value
            else:
                if place.get(key) is None:
                    place[key] = {}
                place = place[key]
        else:
            raise SpecError(f"--set {override}: {'.'.join(keys[:depth])} holds no fields")


def _explain(
    path: Path, node: yaml.Node, model: type[BaseModel], error: ValidationError, overrides: Sequence[str]
) -> str:
    """Write one line for each wrong field, in the file's order."""
    wrong: dict[str, list[ErrorDetails]] = {}
    for detail in error.errors():
        # A mapping was meant for the union's longer form, whose own errors name the inner field.
        if not (detail["type"] == "string_type" and isinstance(detail["input"], dict) and detail["loc"][-1] == "str"):
            wrong.setdefault(_field(detail), []).append(detail)
    lines: list[tuple[int, str]] = []
    for name, details in wrong.items():
        keys = _keys(details[0])
        line = 0 if _was_set(name, details[0], overrides) else _line(node, keys)
        lines.append((line, f"{f'{path}:{line}' if line else '--set'}: {name} {_problem(model, keys, details)}"))
    shown = [text for _, text in sorted(lines, key=lambda pair: pair[0])]
    more = [f"… and {len(shown) - _MOST_SHOWN} more"] if len(shown) > _MOST_SHOWN else []
    return "\n".join([*shown[:_MOST_SHOWN], *more])


def _was_set(name: str, detail: ErrorDetails, overrides: Sequence[str]) -> bool:
    """Tell whether what is wrong came from `--set`."""
    for override in overrides:
        place = override.partition("=")[0].strip()
        if name == place or name.startswith(f"{place}."):
            return True
        if place.startswith(f"{name}.") and detail["type"] in ("extra_forbidden", "value_error"):
            return True
    return False


_UNION_TAGS = ("str", "DatasetSource", "ModelSource")


def _keys(detail: ErrorDetails) -> tuple[str | int, ...]:
    return tuple(part for part in detail["loc"] if part not in _UNION_TAGS and part != "[key]")


def _field(detail: ErrorDetails) -> str:
    return ".".join(str(part) for part in _keys(detail)) or "the document"


def _problem(model: type[BaseModel], keys: tuple[str | int, ...], details: list[ErrorDetails]) -> str:
    detail = details[-1]
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        names = _names_beside(model, keys)
        near = get_close_matches(str(keys[-1]), names, n=1, cutoff=0.5)
        return "is not known" + (f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(names)}")
    if kind == "missing":
        return "is missing; add it"
    if kind == "value_error":
        return "is wrong: " + detail["msg"].removeprefix("Value error, ")
    shown = _kind_of(value) if isinstance(value, dict | list) or value is None else repr(value)
    expected = " or ".join(dict.fromkeys(_expected(d, keys[-1] if keys else "") for d in details))
    return f"is {shown}, expected {expected}; set {'.'.join(str(k) for k in keys)}"


_EXPECTED = {
    "bool": "true or false",
    "dict": "a mapping",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "model": "a mapping",
    "string": "text",
    "tuple": "a list",
}


def _expected(detail: ErrorDetails, last: str | int) -> str:
    kind, limits = detail["type"], detail.get("ctx", {})
    match kind:
        case "greater_than_equal":
            return f"a number from {limits['ge']}"
        case "greater_than":
            return f"a number above {limits['gt']}"
        case "less_than_equal":
            return f"a number up to {limits['le']}"
        case "literal_error":
            return str(limits["expected"])
        case "too_short":
            return f"at least {limits['min_length']} in it"
        case "too_long":
            return f"at most {limits['max_length']} in it"
        case "string_too_short":
            return "text that is not empty"
        case "string_pattern_mismatch" if last == "sha256":
            return "64 digits of 0-9 and a-f"
        case "string_pattern_mismatch" if last in ("name", "namespace"):
            return "lower-case letters, digits and '-', at most 63, with a letter or digit at both ends"
    plain = _EXPECTED.get(kind.partition("_")[0])
    return plain or detail["msg"].removeprefix("Input should be ").removeprefix("a valid ")


def _names_beside(model: type[BaseModel], keys: tuple[str | int, ...]) -> list[str]:
    """Return the names of the fields that may stand where the last key stands."""
    current: Any = model
    for key in keys[:-1]:
        if isinstance(key, int):
            continue
        match = next((f for n, f in current.model_fields.items() if key in (f.alias, n)), None)
        current = _model_in(match.annotation) if match is not None else None
        if current is None:
            return []
    return [f.alias or n for n, f in current.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        found = _model_in(part)
        if found is not None:
            return found
    return None


def _line(node: yaml.Node, keys: Sequence[str | int]) -> int:
    """Return the line of the deepest of `keys` that the file has."""
    line = node.start_mark.line + 1
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            # The last one: what a merge (<<) brought in stands before the mapping's own.
            pair = next(((k, v) for k, v in reversed(node.value) if k.value == str(key)), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _kind_of(value: Any) -> str:
    names = {
        dict: "a mapping",
        list: "a list",
        str: "text",
        bool: "a truth value",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "nothing" if value is None else type(value).__name__)
