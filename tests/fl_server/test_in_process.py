# SPDX-License-Identifier: Apache-2.0
"""Edges that are threads of one process do not get into each other's way."""

from __future__ import annotations

import ast
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import pytest

from solar_corona.fl_server.in_process import _one_syntax_tree_at_a_time


def test_threads_parse_python_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    inside, met = Lock(), []

    def parse(source: str) -> str:
        met.append(not inside.acquire(blocking=False))
        # Long enough for other threads to come in, if they may.
        assert sum(range(200_000)) > 0
        if not met[-1]:
            inside.release()
        return source

    with monkeypatch.context() as patched:  # pytest parses too, to show a failure
        patched.setattr(ast, "parse", parse)
        with _one_syntax_tree_at_a_time(), ThreadPoolExecutor(8) as threads:
            found = list(threads.map(lambda n: ast.parse(str(n)), range(100)))
        ended = ast.parse is parse
    assert found == [str(n) for n in range(100)]
    assert len(met) == 100
    assert not any(met)
    assert ended, "it ends with the job"
