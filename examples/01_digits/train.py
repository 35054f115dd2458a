# SPDX-License-Identifier: Apache-2.0
"""The user's own script: a small Keras model of handwritten digits."""

import keras
import tensorflow as tf

import solar_corona


def digits_model() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10),
        ]
    )


keras.utils.set_random_seed(1)
(x, y) = solar_corona.load_train_dataset()
(x_test, y_test) = solar_corona.load_eval_dataset()
x, x_test = x / 16.0, x_test / 16.0

epochs = solar_corona.context.get_parameters("epochs")
batch_size = solar_corona.context.get_parameters("batch_size")
aggregation_algorithm = solar_corona.context.get_parameters("aggregation_algorithm")

train_loader = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(2000, seed=1).batch(batch_size)
test_loader = tf.data.Dataset.from_tensor_slices((x_test, y_test)).batch(256)

model = solar_corona.collaborative_training.fit(
    train_loader=train_loader,
    test_loader=test_loader,
    model=digits_model(),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metric=keras.metrics.SparseCategoricalAccuracy(name="accuracy"),
    optimizer=keras.optimizers.Adam(learning_rate=0.005),
    batch_size=batch_size,
    epochs=epochs,
    aggregation_algorithm=aggregation_algorithm,
)
solar_corona.save_model(model)
