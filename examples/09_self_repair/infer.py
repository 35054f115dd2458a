# SPDX-License-Identifier: Apache-2.0
"""The user's own script: reads the digits of one desk's forms, and hears later what they really were."""

import time
from collections import deque
from pathlib import Path

import numpy as np

import solar_corona


def forms(stream, turned_after, samples):
    """Yield images of digits and what they are; from some sample on, the forms lie on their side."""
    images, digits, rng = stream["x"], stream["y"], np.random.default_rng(1)
    for number in range(samples):
        row = number % len(images)
        image = images[row] if number < turned_after else np.rot90(images[row])
        # No two scans of a form are the same.
        yield np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8), int(digits[row])


parameters = solar_corona.context.get_parameters
model = solar_corona.load_model(
    solar_corona.context.get_model_path(), hard_sample_detection=solar_corona.incremental.Mixed()
)
pause, right, corrections = 1 / parameters("samples_per_second"), deque(maxlen=100), deque()
repaired = 0
with (
    np.load(parameters("stream")) as stream,
    Path(f"data/{solar_corona.context.get_edge_name()}.csv").open("w") as curve,
):
    for number, (image, digit) in enumerate(forms(stream, parameters("turned_after"), parameters("samples"))):
        answer = model.infer(image)
        right.append(int(answer.result.argmax()) == digit)
        corrections.append((answer.sample_id, digit))
        if len(corrections) > 20:  # a clerk's correction comes twenty forms later
            sample_id, right_digit = corrections.popleft()
            if sample_id:  # else the sample was not kept
                solar_corona.incremental.report_label(sample_id, right_digit)
        if number % 20 == 19:
            print(
                f"{time.time():.2f},{number + 1},{model.version},{sum(right) / len(right):.3f}", file=curve, flush=True
            )
        repaired += model.version > 1
        if repaired == parameters("enough"):
            break
        time.sleep(pause)
