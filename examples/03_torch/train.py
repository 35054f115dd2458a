# SPDX-License-Identifier: Apache-2.0
"""A small convolutional torch module of handwritten digits."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import solar_corona

(x, y) = solar_corona.load_train_dataset()
(x_test, y_test) = solar_corona.load_eval_dataset()
epochs = solar_corona.context.get_parameters("epochs")
batch_size = solar_corona.context.get_parameters("batch_size")

# Every edge begins with the same weights. The shuffling has its own generator, so that it changes nothing else.
torch.manual_seed(1)
model = nn.Sequential(
    nn.Conv2d(1, 16, kernel_size=3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(16 * 4 * 4, 10),
)

train_loader = DataLoader(
    TensorDataset(torch.from_numpy(x), torch.from_numpy(y)),
    batch_size=batch_size,
    shuffle=True,
    generator=torch.Generator().manual_seed(1),
)
test_loader = DataLoader(TensorDataset(torch.from_numpy(x_test), torch.from_numpy(y_test)), batch_size=256)

model = solar_corona.collaborative_training.fit(
    train_loader=train_loader,
    test_loader=test_loader,
    model=model,
    loss=nn.CrossEntropyLoss(),
    optimizer=torch.optim.Adam(model.parameters(), lr=0.005),
    epochs=epochs,
)
solar_corona.save_model(model)
