# SPDX-License-Identifier: Apache-2.0
"""Models on this machine or elsewhere, checked against the fingerprint that they must have before they are loaded.

What is here imports neither an engine nor pydantic where the model has no card, so that a small edge starts fast.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..core.errors import ModelError
from ..core.files import local_copy, local_path, sha256_of, shown
from . import context

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["card_path", "expected_sha256", "suffix_of", "verified"]


def card_path(path: str | os.PathLike[str]) -> Path:
    """Return where the card of the model at `path` is: `model.keras.card.json` beside `model.keras`."""
    path = Path(path)
    whole = path.absolute()  # "." has no name
    return whole.with_name(f"{whole.name}.card.json")


def suffix_of(path: str | os.PathLike[str]) -> str:
    """Return the ending of a path's or URL's name, with its dot; a folder's name has often none."""
    here = local_path(path)
    return here.suffix if here is not None else PurePosixPath(urlsplit(os.fspath(path)).path).suffix


def expected_sha256(path: str | os.PathLike[str], sha256: str | None = None) -> tuple[str, str] | None:
    """Return the fingerprint that a model must have and who says so, or None if nobody does.

    Parameters
    ----------
    path
        File, folder, or a URL.
    sha256
        What the caller says; it wins over the job, and the job over the card beside the model.
    """
    if sha256 is not None:
        return sha256.lower(), "sha256"
    document = context.current()
    source = document.model if document is not None else None
    if source is not None and source.sha256 is not None and source.path == os.fspath(path):
        return source.sha256, "the job"
    here = local_path(path)
    if here is not None and not card_path(here).exists():
        return None
    from . import model_cards

    card = model_cards.read_card(here) if here is not None else model_cards.remote_card(path)
    return (card.sha256, "its card") if card is not None else None


@contextmanager
def verified(path: str | os.PathLike[str], sha256: str | None, *, folder: bool) -> Iterator[Path]:
    """Give the path on this machine of a model that has the fingerprint it must have.

    Parameters
    ----------
    path
        File, folder, or a URL that fsspec opens.
    sha256
        The fingerprint; by default the job's, where it is the job's model, else that of the card beside it, where there
        is one.
    folder
        Whether a URL is that of a folder.

    Raises
    ------
    ModelError
        If there is no such model, it may not be read, or its fingerprint is another.
    TemporaryError
        If a server cannot be reached.
    """
    try:
        with local_copy(path, folder=folder) as local:
            expected = expected_sha256(path, sha256)
            if expected is not None:
                actual = sha256_of(local)
                if actual != expected[0]:
                    raise ModelError(
                        f"{shown(path)}: has the SHA-256 {actual}, and {expected[1]} says {expected[0]}; "
                        f"it was changed or is damaged, so it is not loaded; fetch it anew, or correct the "
                        f"fingerprint"
                    )
            yield local
    except FileNotFoundError as error:
        raise _not_found(path) from error
    except PermissionError as error:
        raise ModelError(f"{shown(path)}: may not be read ({error.strerror}); check its rights") from error


def _not_found(path: str | os.PathLike[str]) -> ModelError:
    here = local_path(path)
    near: list[str] = []
    if here is not None and here.parent.is_dir():
        near = get_close_matches(here.name, [entry.name for entry in here.parent.iterdir()], n=3)
    beside = f"; beside it there is {', '.join(near)}" if near else ""
    return ModelError(f"{shown(path)}: there is no such model{beside}; check the path")
