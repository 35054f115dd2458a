# SPDX-License-Identifier: Apache-2.0
"""What a job's objects are called and labelled, so that they are found, and no two jobs share one."""

from __future__ import annotations

import hashlib

__all__ = ["EDGE_LABEL", "RUN_LABEL", "is_label_value", "labels", "object_name", "selector"]

EDGE_LABEL = "solar-corona.io/edge"
RUN_LABEL = "solar-corona.io/run"
# The shortest of Kubernetes' limits: that of a DNS label, which Services and the label `job-name` must be.
_LONGEST = 63
_DIGEST = 8


def object_name(job: str, *parts: str) -> str:
    """Return the name of a job's object: a DNS label that begins with a letter, as a Service's must.

    A name that does not fit is cut, and told apart by a hash of the whole.

    >>> object_name("digits", "edge", "north")
    'digits-edge-north'
    >>> len(object_name("digits" * 10, "edge", "north"))
    63
    """
    name = "-".join((job, *parts))
    if len(name) <= _LONGEST and name[0].isalpha():
        return name
    readable = name if name[0].isalpha() else f"job-{name}"
    digest = hashlib.sha256("/".join((job, *parts)).encode()).hexdigest()[:_DIGEST]
    return f"{readable[: _LONGEST - _DIGEST - 1].rstrip('-')}-{digest}"


def selector(job: str, component: str) -> dict[str, str]:
    """Return the labels by which a job's pods of one component are selected."""
    return {
        "app.kubernetes.io/name": "solar-corona",
        "app.kubernetes.io/instance": job,
        "app.kubernetes.io/component": component,
    }


def labels(job: str, component: str, *, run: str, edge: str | None = None) -> dict[str, str]:
    """Return the labels of one object."""
    return {
        **selector(job, component),
        "app.kubernetes.io/part-of": "solar-corona",
        "app.kubernetes.io/managed-by": "solar-corona",
        RUN_LABEL: run,
        **({EDGE_LABEL: edge} if edge else {}),
    }


def is_label_value(text: str) -> bool:
    """Tell whether a label may have this value; a node's name is one of its labels.

    >>> is_label_value("edge-1.example.com"), is_label_value("edge 1")
    (True, False)
    """
    inner = text.replace("-", "a").replace("_", "a").replace(".", "a")
    return 0 < len(text) <= _LONGEST and inner.isalnum() and text.isascii() and text[0].isalnum() and text[-1].isalnum()
