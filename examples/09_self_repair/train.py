# SPDX-License-Identifier: Apache-2.0
"""The user's own script: trains the model in use further, on old and new digits."""

import keras

import solar_corona

x, y = solar_corona.load_train_dataset()
model = solar_corona.load_model(solar_corona.context.get_model_path())
epochs = solar_corona.context.get_parameters("epochs")
steps = epochs * -(-len(x) // 32)
model.compile(
    optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, steps)),
    loss="sparse_categorical_crossentropy",
    metrics=["accuracy"],
)
model.fit(x, y, batch_size=32, epochs=epochs, verbose=2)
solar_corona.save_model(model)
