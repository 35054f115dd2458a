# SPDX-License-Identifier: Apache-2.0
"""A camera by its address: a file, a stream (rtsp://), or a USB camera (/dev/video0), decoded by FFmpeg."""

from __future__ import annotations

import time
from pathlib import Path

import av
import numpy as np

_PATIENCE = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0


class VideoCapture:
    """Reads frames one by one; a live camera that is gone is opened again, however long that takes.

    Parameters
    ----------
    address
        Path or URL.
    """

    def __init__(self, address: str) -> None:
        self.address = str(address)
        self.live = "://" in self.address or self.address.startswith("/dev/video")
        if not self.live and not Path(self.address).is_file():
            raise FileNotFoundError(f"{self.address}: there is no such video; set the parameter ip_camera_address")
        self._container: av.container.InputContainer | None = None

    def read(self) -> np.ndarray | None:
        """Return the next frame, height x width x 3 uint8 (RGB), or None at the end of a file."""
        pause = _FIRST_PAUSE
        while True:
            try:
                if self._container is None:
                    self._container = self._open()
                    self._frames = self._container.decode(video=0)
                return next(self._frames).to_ndarray(format="rgb24")
            except (av.FFmpegError, StopIteration) as error:
                self.close()
                if not self.live:
                    if isinstance(error, StopIteration | av.EOFError):
                        return None
                    raise
                print(f"{self.address}: no frame ({error or 'the stream ended'}); trying again in {pause:g} s")
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def close(self) -> None:
        """Let the camera go."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def _open(self) -> av.container.InputContainer:
        if self.address.startswith("/dev/video"):
            return av.open(self.address, format="v4l2")
        options = {"rtsp_transport": "tcp"} if self.address.startswith("rtsp") else {}
        return av.open(self.address, options=options, timeout=_PATIENCE if self.live else None)
