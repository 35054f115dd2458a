# SPDX-License-Identifier: Apache-2.0
"""Labels come by themselves: truth that an edge learns later, or a program that posts to the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .source import Finished, Offer, Setting, SourceStatus

__all__ = ["Api"]


class Api:
    """Asks nobody; labels come to `/v1/labels` from edges and to `/v1/admin/labels` from programs.

    Parameters
    ----------
    setting
        What it is made in.
    """

    machine = False

    def __init__(self, setting: Setting) -> None:
        del setting

    def room(self) -> int:
        """Return 0: nothing is offered."""
        return 0

    def offer(self, samples: Sequence[Offer]) -> Mapping[str, str]:
        """Take none."""
        del samples
        return {}

    def withdraw(self, tasks: Sequence[str]) -> None:
        """Do nothing: there are no tasks."""

    def poll(self, tasks: Mapping[str, str]) -> Sequence[Finished]:
        """Return nothing: labels do not come this way."""
        del tasks
        return ()

    def status(self) -> SourceStatus:
        """Tell where labels are waited for."""
        return SourceStatus(True, "labels come through report_label and POST /v1/admin/labels")

    def close(self) -> None:
        """Do nothing."""
