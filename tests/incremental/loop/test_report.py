# SPDX-License-Identifier: Apache-2.0
"""The page about a version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from solar_corona.core.errors import RefusedRequestError
from solar_corona.core.incremental_spec import Gate
from solar_corona.incremental.gate_rule import Paired, judge
from solar_corona.incremental.hub.hub import Hub, HubSettings
from solar_corona.incremental.loop.report import report_page
from solar_corona.incremental.loop.status import read_status
from solar_corona.incremental.tables import Decision, ModelVersion


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder: Path = tmp_path_factory.mktemp("hub")
    hub = Hub(HubSettings("digits", f"sqlite:///{folder}/hub.db", str(folder / "files")))
    truth = np.arange(1_000) % 10
    worse = np.where(np.arange(1_000) % 5 == 0, (truth + 1) % 10, truth)
    pairs = Paired(truth[:500], truth[:500], worse[:500]), Paired(truth[500:], truth[500:], worse[500:])
    alarm = {"kind": "disagreement", "why": "31 % of the answers differ <script>alert(1)</script>", "samples": 18}
    few = Paired(truth[:40], truth[:40], truth[:40])
    reports: dict[int, tuple[str, dict[str, Any] | None]] = {
        1: ("promoted", None),
        2: ("refused", {"gate": judge(*pairs, Gate()).as_json()}),
        3: (
            "rolled-back",
            {
                "gate": judge(pairs[0].where(worse[:500] == truth[:500]), Paired.none(), Gate(min_labels=50)).as_json(),
                "canary": {"edges": ["a"], "samples": 18, "seconds": 9.0, "alarm": alarm},
            },
        ),
        4: ("candidate", {"gate": judge(few, Paired.none(), Gate()).as_json()}),
    }

    def fill(session: Any) -> None:
        for number, (state, report) in reports.items():
            session.add(
                ModelVersion(
                    version=number,
                    parent=1 if number > 1 else None,
                    file="m.keras",
                    size=1234,
                    sha256="ab" * 32,
                    signature="",
                    state=state,
                    made_at=float(number),
                    metrics={"accuracy_new": 0.8},
                    report=report,
                )
            )
        session.add(Decision(at=5.0, what="rolled back", why="an alarm", version=3, details={}))

    hub.database.write(fill)
    yield hub
    hub.close()


def test_the_first_version_was_judged_by_nobody(hub: Hub) -> None:
    page = report_page(hub, 1)
    assert "Version 1 answers on all edges" in page
    assert "no gate judged it" in page


def test_a_refused_version_says_what_it_lacks_first(hub: Hub) -> None:
    page = report_page(hub, 2)
    assert "Refused." in page
    assert page.index("✗") < page.index("✓")
    assert "over all samples it loses 20.0 points" in page


def test_a_version_that_canaries_stopped_says_why_and_runs_no_script(hub: Hub) -> None:
    page = report_page(hub, 3)
    assert "Stopped:" in page
    assert "31 % of the answers differ" in page
    assert "<script>" not in page
    assert "rolled back" in page


def test_too_few_labels_are_told_with_how_many_are_needed(hub: Hub) -> None:
    assert "label 960 more random samples" in report_page(hub, 4)


@pytest.mark.parametrize("version", [0, 5, -1, 1 << 40])
def test_a_version_that_there_is_not_is_told_as_such(hub: Hub, version: int) -> None:
    with pytest.raises(RefusedRequestError, match="there is no version"):
        report_page(hub, version)


def test_the_status_lists_the_versions_and_the_last_decision(hub: Hub) -> None:
    status = read_status(hub, [])
    assert [version.version for version in status.versions] == [4, 3, 2, 1]
    assert status.decisions[0].why == "an alarm"
    assert not status.goes_on
