# SPDX-License-Identifier: Apache-2.0
"""A run's events as the report needs them: in order, bounded, and free of what does not belong on a page."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

from ..core.errors import PlatformError
from ..core.events import (
    EdgeJoined,
    EdgeLeftOut,
    Event,
    JobFailed,
    JobFinished,
    JobStarted,
    RoundFinished,
    RoundStarted,
    Warned,
)
from ..core.run_folder import RunFolder
from .plain_text import plain
from .progress import RunView

__all__ = ["Record"]


@dataclass
class _Moment:
    """One entry of the timeline."""

    time: float
    kind: str
    text: str
    rounds: list[int] = field(default_factory=list)

    @property
    def when(self) -> str:
        """The rounds it happened in, in words."""
        if not self.rounds:
            return ""
        first, last = self.rounds[0], self.rounds[-1]
        return f"round {first}" if first == last else f"{len(self.rounds)} times in rounds {first} to {last}"


@dataclass
class Record:
    """A run's events, put in order."""

    view: RunView = field(default_factory=RunView)
    done: dict[int, RoundFinished] = field(default_factory=dict)
    moments: list[_Moment] = field(default_factory=list)
    begin: float | None = None
    end: float = 0.0
    last_round: int = 0
    outcome: JobFinished | JobFailed | None = None
    error: str | None = None
    stopped: bool = False

    @classmethod
    def of(cls, folder: RunFolder) -> Record:
        """Read a run's folder."""
        record = cls()
        events = folder.events()
        record.view.take(events)
        for event in events:
            record._take(event)
        if isinstance(record.outcome, JobFailed):
            record.error = record.outcome.error
        elif record.outcome is not None:
            record._unmeasured(record.outcome)
        # The launcher knows whose script failed, and of failures that left the server no time for a word.
        with suppress(PlatformError):
            state = folder.read_state()
            if state is not None and state.phase in ("failed", "stopped"):
                record.error = state.error or record.error or "the run ended without a word"
                record.stopped = state.phase == "stopped"
        return record

    def _take(self, event: Event) -> None:
        self.end = event.time
        match event:
            case JobStarted():
                self.begin, self.outcome = event.time, None
                if event.resumed_at:
                    self._add(event, "resumed", f"went on after round {event.resumed_at}")
            case RoundStarted():
                self.last_round = event.round
            case RoundFinished():
                self.done[event.round] = event
            case EdgeJoined() if event.back:
                self._add(event, "back", f"{event.edge} is back")
            case EdgeJoined() if self.last_round:
                self._add(event, "joined late", f"{event.edge} came with {event.samples:,} samples")
            case EdgeLeftOut():
                self._left_out(event)
            case Warned():
                self._add(event, "warning", event.message)
            case JobFinished() | JobFailed():
                self.outcome = event

    def _add(self, event: Event, kind: str, text: str) -> None:
        self.moments.append(_Moment(event.time, kind, plain(text), [self.last_round] if self.last_round else []))

    def _left_out(self, event: EdgeLeftOut) -> None:
        """Add that an edge was left out, to the entry that says the same of earlier rounds if there is one."""
        text = plain(f"{event.edge}: {event.reason}")
        same = next((m for m in reversed(self.moments) if m.kind == "left out" and m.text == text), None)
        if same is not None:
            same.rounds.append(event.round)
        else:
            self.moments.append(_Moment(event.time, "left out", text, [event.round]))

    def _unmeasured(self, event: JobFinished) -> None:
        """Add which edges have data to evaluate on, and no result for the final model."""
        final = {edge for edge, finished in self.view.finished_edges.items() if finished.metrics}
        missing = [e for e, joined in self.view.joined.items() if joined.eval_samples and e not in final]
        if missing:
            more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
            self._add(event, "warning", f"no evaluation of the final model came from {', '.join(missing[:10])}{more}")

    @property
    def seconds(self) -> float:
        """How long the run took, since its last start."""
        if isinstance(self.outcome, JobFinished):
            return self.outcome.seconds
        return max(0.0, self.end - self.begin) if self.begin is not None else 0.0
