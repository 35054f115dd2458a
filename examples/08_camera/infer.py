# SPDX-License-Identifier: Apache-2.0
"""Says of each frame whether a car is in the lane."""

import sys

import hilens
import numpy as np

import solar_corona


def read_one_frame_from_camera(camera):
    image = camera.read()
    if image is None:  # the video is over
        print(f"{seen['car']} of {sum(seen.values())} frames show a car")
        sys.exit()
    return image


def pre_fun(image):
    """Shrink the frame to what the small model takes: 27 x 48, grey."""
    grey = image.mean(axis=2, dtype=np.float32)
    height, width = grey.shape
    return grey.reshape(27, height // 27, 48, width // 48).mean(axis=(1, 3))[..., None] / 255


def post_fun(probabilities):
    return "car" if probabilities[1] > 0.5 else "empty"


seen = {"car": 0, "empty": 0}
big_model_endpoint = solar_corona.joint_inference.get_big_model_endpoint()
ibt = solar_corona.joint_inference.IBT(upload_ratio=0.1)
model_path = solar_corona.context.get_model_path()
model = solar_corona.load_model(
    model_path, pre_fun, post_fun, cloud_offload_algorithm=ibt, big_model_endpoint=big_model_endpoint
)
camera_address = solar_corona.context.get_parameters("ip_camera_address")
camera = hilens.VideoCapture(camera_address)
while True:
    image = read_one_frame_from_camera(camera)
    predictions = model.predict(image)
    seen[predictions] += 1
