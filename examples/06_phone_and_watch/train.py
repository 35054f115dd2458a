# SPDX-License-Identifier: Apache-2.0
"""The user's script: a small convolutional network over 1.28 s of motion. Nothing in it knows of tasks or groups."""

import keras

import solar_corona


def scaled(x, y):
    """Return accelerations in g (9.81 m/s²) and rotations in units of 2 rad/s."""
    return x / [9.81, 9.81, 9.81, 2, 2, 2], y


keras.utils.set_random_seed(1)
train = solar_corona.load_train_dataset(scaled)
test = solar_corona.load_eval_dataset(scaled)

model = keras.Sequential(
    [
        keras.Input((64, 6)),
        keras.layers.Conv1D(16, 5, strides=2, activation="relu"),
        keras.layers.Conv1D(32, 5, strides=2, activation="relu"),
        keras.layers.GlobalAveragePooling1D(),
        keras.layers.Dense(5),
    ]
)
model = solar_corona.collaborative_training.fit(
    train_loader=train,
    test_loader=test,
    model=model,
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metric=keras.metrics.SparseCategoricalAccuracy(name="accuracy"),
    optimizer=keras.optimizers.Adam(0.003),
    batch_size=32,
    epochs=2,
)
solar_corona.save_model(model)
