# SPDX-License-Identifier: Apache-2.0
"""`fit()`: a model trained by all edges of a job together, from inside the user's own script."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.context_document import ContextDocument
from ..core.errors import ModelError
from ..lib import context, models
from ..lib.datasets import loaded_tasks
from ..lib.links import NodeLink, current_link
from ..lib.trainable import Trainable
from .edge_data import EdgeData
from .loaders import Part, summarize

if TYPE_CHECKING:
    from flwr.app import RecordDict

    from ..lib.exchange import Weights

__all__ = ["fit"]

_METHODS = ("get_weights", "set_weights", "train", "evaluate")
_LOADERS = ("train_loader", "test_loader")


def fit(
    train_loader: Any = None,
    test_loader: Any = None,
    model: Any = None,
    loss: Any = None,
    metric: Any = None,
    optimizer: Any = None,
    batch_size: int | None = None,
    epochs: int = 1,
    aggregation_algorithm: str | None = None,
    *,
    callbacks: Sequence[Any] = (),
    steps_per_epoch: int | None = None,
    verbose: int = 0,
    keep_optimizer_state: bool = False,
) -> Any:
    """Train `model` together with the job's other edges and return it with the final global weights.

    With no job around the script, it trains alone on this machine and says so.

    Parameters
    ----------
    train_loader, test_loader
        Batches of `(x, y)`: a `tf.data.Dataset`, a `keras.utils.PyDataset`, a torch `DataLoader`, or a pair of arrays.
    model
        A Keras 3 model, a `torch.nn.Module`, or an object with the four methods of `solar_corona.Trainable`.
    loss, metric, optimizer
        As for `model.compile`. Without a loss, a Keras model must be compiled already.
    batch_size
        Batch size where a loader is a pair of arrays; batched loaders keep their own.
    epochs
        Passes over the train loader in one round.
    aggregation_algorithm
        The strategy's name; the job's `aggregation.algorithm` decides, and a difference is reported.
    callbacks, steps_per_epoch, verbose
        As for `model.fit`, in each round.
    keep_optimizer_state
        By default each round starts with a fresh optimizer, as in federated averaging; True keeps its moments.

    Returns
    -------
    model
        The object that was passed, with the job's final weights; where this edge's samples are of several tasks with
        models of their own, a model that serves all of them.

    Raises
    ------
    ModelError
        If the model cannot be trained or saved; found before the first round.
    JobFailedError
        If the job failed elsewhere.
    """
    document, link = context.current(), current_link()
    loaders = (train_loader, test_loader)
    if model is None:
        raise ModelError("fit() got no model; pass model=…")
    work = _trainable(
        model,
        train_loader=train_loader,
        test_loader=test_loader,
        loss=loss,
        metric=metric,
        optimizer=optimizer,
        batch_size=batch_size,
        epochs=epochs,
        callbacks=callbacks,
        steps_per_epoch=steps_per_epoch,
        verbose=verbose,
        keep_optimizer_state=keep_optimizer_state,
    )
    if document is None or (document.superlink is None and link is None):
        _alone(work)
        return model
    data = _data(document, *(work.parts or loaders))
    return _together(work, document, link or _connection(document), aggregation_algorithm, data)


@dataclass(frozen=True)
class _Work:
    """A user's model as what the node needs."""

    model: Any
    trainable: Trainable
    samples: int
    eval_samples: int
    saveable: bool
    parts: tuple[Part, Part] | None = None


def _trainable(model: Any, **options: Any) -> _Work:
    """Wrap `model` for its framework, telling the framework by what is loaded already."""
    keras, torch = sys.modules.get("keras"), sys.modules.get("torch")
    if keras is not None and isinstance(model, keras.Model):
        from .keras_trainable import KerasTrainable

        kind: Any = KerasTrainable
    elif torch is not None and isinstance(model, torch.nn.Module):
        from .torch_trainable import TorchTrainable

        kind = TorchTrainable
        for name in ("callbacks", "steps_per_epoch", "verbose"):
            options.pop(name)
    elif isinstance(model, Trainable):
        # Such an object has its own data: without a loader to count, it says with each reply how many samples it used.
        counts = [summarize(options[k]).samples if options[k] is not None else 1 for k in _LOADERS]
        return _Work(model, model, counts[0], counts[1], hasattr(model, "save"))
    else:
        missing = [name for name in _METHODS if not hasattr(model, name)]
        raise ModelError(
            f"fit() cannot train {type(model).__name__}; it takes a Keras 3 model, a torch.nn.Module, or an object "
            f"with the methods {', '.join(_METHODS)}; this one lacks {', '.join(missing)}"
        )
    work = kind(model, **options)
    return _Work(model, work, work.summary.samples, work.eval_samples, True, work.parts)


def _alone(work: _Work) -> None:
    sys.stderr.write(
        "solar_corona: no job around this script, so it trains alone on this machine; "
        "`solar-corona run JOB.yaml` trains with other edges\n"
    )
    _, metrics = work.trainable.train({})
    _, measured = work.trainable.evaluate()
    models.remember(work.model, round=None, metrics=dict(measured or metrics))


def _connection(document: ContextDocument) -> NodeLink:
    from ..lib.flower_fleet import FleetConnection, load_node_key

    place = document.superlink
    assert place is not None
    return FleetConnection(
        place.address,
        root_certificates=Path(place.root_certificates).read_bytes() if place.root_certificates else None,
        keys=load_node_key(Path(place.private_key)) if place.private_key else None,
    )


def _together(
    work: _Work, document: ContextDocument, link: NodeLink, algorithm: str | None, data: EdgeData | None
) -> Any:
    # Engines come last: a script that runs alone needs no Flower.
    from .node import Node
    from .task_models import model_for_all_tasks
    from .warm_node import serve

    output = document.output_model or "model.keras"
    if work.saveable:
        models.check_saveable(work.model, output)
    if data is not None and data.rules.divides:
        models.check_saveable(work.model, output, multitask=True)
    node = Node(
        document.worker,
        work.trainable,
        samples=work.samples,
        eval_samples=work.eval_samples,
        export=partial(_export, work.model, Path(output).name) if work.saveable else None,
        algorithm=algorithm,
        warm=link.warm,
        data=data,
        folder=Path(document.state_folder or Path(document.run_folder) / "edges" / document.worker),
    )
    serve(node, link)
    result = work.model if data is None else model_for_all_tasks(work.model, node, data)
    models.remember(result, round=node.round, metrics=node.metrics)
    return result


def _data(document: ContextDocument, train_loader: Any, test_loader: Any) -> EdgeData | None:
    """Return the samples behind the loaders, with what the job's data says of their tasks."""
    if train_loader is None or (isinstance(train_loader, Part) and not train_loader.is_there):
        return None
    return EdgeData(
        train_loader,
        test_loader,
        tasks=document.tasks,
        train_tasks=loaded_tasks("trainData"),
        eval_tasks=loaded_tasks("evalData"),
    )


def _export(model: Any, name: str, folder: Path, weights: Sequence[Weights], content: RecordDict) -> Path:
    from .task_models import model_of_all_groups

    whole = model if len(weights) < 2 else model_of_all_groups(model, weights, content)
    return Path(models.save_model(whole, folder / name))
