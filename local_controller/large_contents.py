# SPDX-License-Identifier: Apache-2.0
"""Sends a content that is too large for a frame in pieces, from where the hub has it."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from http import HTTPStatus

from ..core.errors import RefusedRequestError, TemporaryError
from ..core.hub_messages import PIECE
from .hub_client import HubClient
from .outbox import Outbox, QueuedSample

__all__ = ["send_content"]

_SAME_OFFSET = 3


def send_content(
    sample: QueuedSample, *, outbox: Outbox, hub: HubClient, piece_bytes: int, may_send: Callable[[int], bool]
) -> bool:
    """Send a sample's content.

    Parameters
    ----------
    sample
        Whose content it is.
    outbox, hub
        From where to where.
    piece_bytes
        Bytes of a piece.
    may_send
        Is asked before each piece of so many bytes; it waits where there is a rate to keep, and says False where
        uploading has to end.

    Returns
    -------
    bool
        Whether the hub has all of it.

    Raises
    ------
    RefusedRequestError
        If the hub does not take it.
    TemporaryError
        If the hub cannot be reached, or has got something else than was sent.
    """
    offset, stuck = hub.content_offset(sample.id), 0
    try:
        while offset < sample.size:
            piece = outbox.content(sample.seq, offset, piece_bytes)
            if piece is None or not may_send(len(piece)):  # it has left the outbox, or it is time to end
                return False
            wanted = hub.send_piece(sample.id, piece, offset=offset, size=sample.size)
            stuck = stuck + 1 if wanted <= offset else 0
            if wanted > sample.size or stuck > _SAME_OFFSET:
                raise TemporaryError(
                    f"{hub.url}: wants byte {wanted} of sample {sample.id} after byte {offset}; expected one that "
                    f"follows, see the hub's log"
                )
            offset = wanted
    except RefusedRequestError as error:
        if error.status == HTTPStatus.UNPROCESSABLE_ENTITY and _is_whole(sample, outbox):
            raise TemporaryError(f"sample {sample.id}: was damaged on its way; it is sent anew") from error
        raise
    return True


def _is_whole(sample: QueuedSample, outbox: Outbox) -> bool:
    """Tell whether a content on this disk still is what its id says."""
    digest = sha256()
    for begin in range(0, sample.size, PIECE):
        digest.update(outbox.content(sample.seq, begin, PIECE) or b"")
    return digest.hexdigest() == sample.id
