# SPDX-License-Identifier: Apache-2.0
"""One model of ten digits, from edges of which each has seen two."""

import keras
import tensorflow as tf

import solar_corona

(x, y) = solar_corona.load_train_dataset()
(x_test, y_test) = solar_corona.load_eval_dataset()

epochs = solar_corona.context.get_parameters("epochs")
batch_size = solar_corona.context.get_parameters("batch_size")
learning_rate = solar_corona.context.get_parameters("learning_rate")
aggregation_algorithm = solar_corona.context.get_parameters("aggregation_algorithm")
parts = solar_corona.context.get_parameters("parts")

train_loader = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=0).batch(batch_size)
test_loader = tf.data.Dataset.from_tensor_slices((x_test, y_test)).batch(batch_size)

# Every edge begins with the same weights.
keras.utils.set_random_seed(0)
model = keras.Sequential(
    [
        keras.Input((64,)),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(10, activation="softmax"),
    ]
)

metric = solar_corona.metrics.ADifferentCategoricalAccuracy()
if parts == "different":
    loss = solar_corona.losses.ADifferentCategoricalCrossentropy()
    optimizer = solar_corona.optimizers.ADifferentAdam(learning_rate=learning_rate)
else:
    loss = keras.losses.SparseCategoricalCrossentropy()
    optimizer = keras.optimizers.Adam(learning_rate=learning_rate)

model = solar_corona.collaborative_training.fit(
    train_loader=train_loader,
    test_loader=test_loader,
    model=model,
    loss=loss,
    metric=metric,
    optimizer=optimizer,
    batch_size=batch_size,
    epochs=epochs,
    aggregation_algorithm=aggregation_algorithm,
)
solar_corona.save_model(model)
