# SPDX-License-Identifier: Apache-2.0
"""The user's own script: a small convolutional network for digits. Nothing in it knows of groups."""

import keras

import solar_corona


def halved(x, y):
    """Return images of half the width and height, from 0 to 1."""
    return x.reshape(-1, 14, 2, 14, 2, 1).mean((2, 4)).astype("float32") / 255, y


keras.utils.set_random_seed(1)
train = solar_corona.load_train_dataset(halved)
test = solar_corona.load_eval_dataset(halved)

model = keras.Sequential(
    [
        keras.Input((14, 14, 1)),
        keras.layers.Conv2D(16, 3, strides=2, activation="relu"),
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(10),
    ]
)
model = solar_corona.collaborative_training.fit(
    train_loader=train,
    test_loader=test,
    model=model,
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metric=keras.metrics.SparseCategoricalAccuracy(name="accuracy"),
    optimizer=keras.optimizers.Adam(0.002),
    batch_size=32,
    epochs=1,
)
solar_corona.save_model(model)
