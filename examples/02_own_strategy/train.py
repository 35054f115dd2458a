# SPDX-License-Identifier: Apache-2.0
"""A small Keras model of handwritten digits; nothing in it knows of the strategy."""

import keras
import tensorflow as tf

import solar_corona

(x, y) = solar_corona.load_train_dataset()
(x_test, y_test) = solar_corona.load_eval_dataset()
epochs = solar_corona.context.get_parameters("epochs")
batch_size = solar_corona.context.get_parameters("batch_size")

train_loader = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(2000, seed=1).batch(batch_size)
test_loader = tf.data.Dataset.from_tensor_slices((x_test, y_test)).batch(256)

# Every edge begins with the same weights.
keras.utils.set_random_seed(1)
model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)])

model = solar_corona.collaborative_training.fit(
    train_loader=train_loader,
    test_loader=test_loader,
    model=model,
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metric=keras.metrics.SparseCategoricalAccuracy(name="accuracy"),
    optimizer=keras.optimizers.SGD(learning_rate=0.1),
    batch_size=batch_size,
    epochs=epochs,
)
solar_corona.save_model(model)
