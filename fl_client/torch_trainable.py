# SPDX-License-Identifier: Apache-2.0
"""A `torch.nn.Module` as a `Trainable`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.errors import ModelError
from ..lib.trainable import Scalar
from .loaders import LoaderSummary, summarize

__all__ = ["TorchTrainable"]


class TorchTrainable:
    """A plain training loop: forward, loss, backward, step.

    Parameters
    ----------
    model
        The user's module.
    train_loader, test_loader
        Iterables of `(x, y)` batches, such as a `DataLoader`.
    loss
        Called as `loss(model(x), y)`.
    metric
        None, or called as `metric(output, y)`; its mean over the samples is reported as `accuracy` if it is not named.
        By default the share of right classes, where the labels are classes.
    optimizer
        A torch optimizer over the model's parameters; by default SGD with a learning rate of 0.01.
    epochs
        Passes over the train loader in a round.
    keep_optimizer_state
        By default each round starts with a fresh optimizer, as in federated averaging; True keeps its moments.
    """

    def __init__(
        self,
        model: Any,
        *,
        train_loader: Any,
        test_loader: Any = None,
        loss: Callable[[Any, Any], Any] | None = None,
        metric: Callable[[Any, Any], Any] | None = None,
        optimizer: Any = None,
        epochs: int = 1,
        keep_optimizer_state: bool = False,
        summary: LoaderSummary | None = None,
    ) -> None:
        if loss is None:
            raise ModelError("fit() got no loss for the torch module; pass loss=torch.nn.CrossEntropyLoss() or another")
        self.model, self._loss, self._metric = model, loss, metric
        self._optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.01)
        self._train_loader, self._test_loader, self._epochs = train_loader, test_loader, epochs
        self._fresh = None if keep_optimizer_state else self._optimizer.state_dict()
        self.summary = summary or summarize(train_loader)
        self.eval_samples = summarize(test_loader).samples if test_loader is not None else 0
        self._device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def get_weights(self) -> Mapping[str, NDArray[np.generic]]:
        """Return the module's `state_dict` as NumPy arrays."""
        return {name: value.detach().cpu().numpy() for name, value in self.model.state_dict().items()}

    def set_weights(self, weights: Mapping[str, NDArray[np.generic]]) -> None:
        """Load a `state_dict`."""
        self.model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})

    def train(self, config: Mapping[str, Scalar]) -> tuple[int, Mapping[str, float]]:
        """Train for one round; a strategy's `proximal-mu` adds FedProx's term to the loss (Li et al. 2020)."""
        if self._fresh is not None:
            self._optimizer.load_state_dict(self._fresh)
        mu = config.get("proximal-mu", 0.0)
        pull = float(mu) if isinstance(mu, int | float) else 0.0
        anchor = [p.detach().clone() for p in self.model.parameters()] if pull else []
        self.model.train()
        total = 0.0
        for _ in range(self._epochs):
            total = 0.0
            for x, y in self._train_loader:
                self._optimizer.zero_grad()
                loss = self._loss(self.model(x.to(self._device)), y.to(self._device))
                total += float(loss.detach()) * len(y)
                if pull:
                    near = zip(self.model.parameters(), anchor, strict=True)
                    loss = loss + pull / 2 * sum(((p - a) ** 2).sum() for p, a in near)
                loss.backward()
                self._optimizer.step()
        return self.summary.samples, {"loss": total / max(self.summary.samples, 1)}

    def evaluate(self) -> tuple[int, Mapping[str, float]]:
        """Return loss and accuracy on the test loader."""
        if self._test_loader is None:
            return 0, {}
        self.model.eval()
        loss = score = 0.0
        scored = self._metric is not None
        with torch.no_grad():
            for x, y in self._test_loader:
                output, target = self.model(x.to(self._device)), y.to(self._device)
                loss += float(self._loss(output, target)) * len(y)
                if self._metric is not None:
                    score += float(self._metric(output, target)) * len(y)
                elif output.ndim == 2 and not target.is_floating_point():
                    scored = True
                    score += float((output.argmax(dim=1) == target.reshape(-1)).sum())
        n = max(self.eval_samples, 1)
        return self.eval_samples, {"loss": loss / n, **({"accuracy": score / n} if scored else {})}
