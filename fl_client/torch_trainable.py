# SPDX-License-Identifier: Apache-2.0
"""A `torch.nn.Module` as a `Trainable`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.errors import DatasetError, ModelError
from ..lib.trainable import Scalar
from .loaders import LoaderSummary, Part, is_arrays, summarize

__all__ = ["TorchTrainable"]

_EMBED_BATCH = 256


class TorchTrainable:
    """A plain training loop: forward, loss, backward, step.

    Parameters
    ----------
    model
        The user's module.
    train_loader, test_loader
        Iterables of `(x, y)` batches, such as a `DataLoader`, or pairs of arrays, which are mixed anew in each pass.
    loss
        Called as `loss(model(x), y)`.
    metric
        None, or called as `metric(output, y)`; its mean over the samples is reported as `accuracy` if it is not named.
        By default the share of right classes, where the labels are classes.
    optimizer
        A torch optimizer over the model's parameters; by default SGD with a learning rate of 0.01.
    batch_size
        Of pairs of arrays; by default 32.
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
        batch_size: int | None = None,
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
        sizes = [batch_size if is_arrays(loader) else None for loader in (train_loader, test_loader)]
        self.parts = (Part(train_loader, batch_size=sizes[0]), Part(test_loader, batch_size=sizes[1]))
        self._chosen: tuple[NDArray[np.int64] | None, NDArray[np.int64] | None] = (None, None)
        self._anchor: Mapping[str, NDArray[np.generic]] | None = None
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
        anchor = self._anchor_now() if pull else []
        self.model.train()
        total = 0.0
        for _ in range(self._epochs):
            total = 0.0
            for x, y in self._batches():
                self._optimizer.zero_grad()
                loss = self._loss(self.model(x.to(self._device)), y.to(self._device))
                total += float(loss.detach()) * len(y)
                if pull:
                    near = zip(self.model.parameters(), anchor, strict=True)
                    loss = loss + pull / 2 * sum(((p - a) ** 2).sum() for p, a in near)
                loss.backward()
                self._optimizer.step()
        samples = self.summary.samples if self._chosen[0] is None else len(self._chosen[0])
        return samples, {"loss": total / max(samples, 1)}

    def pull_towards(self, anchor: Mapping[str, NDArray[np.generic]] | None) -> None:
        """Let `proximal-mu` pull towards `anchor` in the next `train`; None: towards the weights at its start."""
        self._anchor = anchor

    def _anchor_now(self) -> list[torch.Tensor]:
        given = self._anchor
        if given is None:
            return [p.detach().clone() for p in self.model.parameters()]
        return [torch.from_numpy(np.array(given[name])).to(p) for name, p in self.model.named_parameters()]

    def _batches(self) -> Iterable[Any]:
        """Return the batches to train on: the loader's own, or new ones of the samples in use, mixed."""
        chosen, part = self._chosen[0], self.parts[0]
        if chosen is None and not part.in_place:
            return self._train_loader  # type: ignore[no-any-return]
        mixed = torch.randperm(self.summary.samples if chosen is None else len(chosen)).numpy()
        x, y = part.of(mixed if chosen is None else chosen[mixed])
        return _in_batches(x, y, part.batch_size)

    def use_samples(self, train: NDArray[np.int64] | None, evaluate: NDArray[np.int64] | None) -> None:
        """Train and evaluate from now on with these samples alone, by their places; None stands for all."""
        self._chosen = (train, evaluate)

    def evaluate_on_train(self, indices: NDArray[np.int64] | None) -> Mapping[str, float]:
        """Return the metrics on some of the training samples, or on all."""
        x, y = self.parts[0].of(indices)
        return self._measure(_in_batches(x, y, self.parts[0].batch_size), len(x))

    def embed(self, x: NDArray[Any]) -> NDArray[np.floating[Any]]:
        """Return what the last layer with weights gets, for samples x (n x …) and the current weights: n x k.

        The last layer is the last one that runs, of those with a weight of two axes or more.

        Raises
        ------
        ModelError
            If the module has no hidden layer.
        """
        inputs: list[Any] = []
        layers = [m for m in self.model.modules() if any(p.ndim > 1 for p in m.parameters(recurse=False))]
        hooks = [m.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) for m in layers]
        found: list[NDArray[np.floating[Any]]] = []
        self.model.eval()
        try:
            with torch.no_grad():
                for start in range(0, len(x), _EMBED_BATCH):
                    inputs.clear()
                    self.model(torch.from_numpy(x[start : start + _EMBED_BATCH].copy()).to(self._device))
                    if len(inputs) < 2 or not torch.is_tensor(inputs[-1]):
                        raise ModelError(
                            f"samples cannot be signed as the last hidden layer of {type(self.model).__name__} sees "
                            f"them, for it has {len(inputs)} layer(s) with weights and no hidden one; leave "
                            f"aggregation.options.embedding out"
                        )
                    found.append(inputs[-1].flatten(1).float().cpu().numpy())
        finally:
            for hook in hooks:
                hook.remove()
        return np.concatenate(found) if found else np.zeros((0, 1), np.float32)

    def evaluate(self) -> tuple[int, Mapping[str, float]]:
        """Return loss and accuracy on the test loader."""
        if self._test_loader is None:
            return 0, {}
        if self._chosen[1] is not None or self.parts[1].in_place:
            x, y = self.parts[1].of(self._chosen[1])
            return len(x), self._measure(_in_batches(x, y, self.parts[1].batch_size), len(x))
        return self.eval_samples, self._measure(self._test_loader, self.eval_samples)

    def _measure(self, batches: Iterable[Any], samples: int) -> Mapping[str, float]:
        self.model.eval()
        loss = score = 0.0
        scored = self._metric is not None
        with torch.no_grad():
            for x, y in batches:
                output, target = self.model(x.to(self._device)), y.to(self._device)
                loss += float(self._loss(output, target)) * len(y)
                if self._metric is not None:
                    score += float(self._metric(output, target)) * len(y)
                elif output.ndim == 2 and not target.is_floating_point():
                    scored = True
                    score += float((output.argmax(dim=1) == target.reshape(-1)).sum())
        n = max(samples, 1)
        return {"loss": loss / n, **({"accuracy": score / n} if scored else {})}


def _in_batches(x: NDArray[Any], y: NDArray[Any] | None, size: int) -> Iterator[tuple[Any, Any]]:
    if y is None:
        raise DatasetError("the loader has no labels, and a torch module's loss needs y; pass a pair of arrays (x, y)")
    for start in range(0, len(x), size):
        yield torch.from_numpy(x[start : start + size].copy()), torch.from_numpy(y[start : start + size].copy())
