# SPDX-License-Identifier: Apache-2.0
"""`solar_corona.load_model`: the model itself, or the model as an edge runs it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from ..core.errors import ModelError
from ..lib import context
from ..lib.jobs_model import has_versions, is_jobs_own
from ..lib.scores import ConfidenceFunction
from ..lib.verification import suffix_of

if TYPE_CHECKING:
    from ..core.context_document import DeepModel as DeepModelAddress
    from ..lib.endpoints.endpoint import Endpoint
    from ..lib.hard_samples.collector import Collector
    from ..lib.hard_samples.detector import HardSampleDetector
    from ..lib.live_model import LiveModel
    from ..lib.runners.runner import Runner
    from .edge_model import EdgeModel, Shadowing
    from .offload import OffloadAlgorithm
    from .statistics import Recorder
    from .uploads import UploadForm

__all__ = ["get_big_model_endpoint", "load_model"]


class _More(TypedDict, total=False):
    """What an edge's model has in incremental learning alone."""

    collector: Collector | None
    live: LiveModel
    shadowed: Shadowing
    version: int


_DEADLINE = 1.0
_RUN_ONLY = (".onnx", ".tflite")


def get_big_model_endpoint() -> DeepModelAddress | None:
    """Return where the job's deep model answers, for `load_model`; None in a script that runs alone.

    Raises
    ------
    ContextError
        If there is a job, and it names no deep model.
    """
    document = context.current()
    if document is None:
        return None
    if document.deep_model is None:
        from ..core.errors import ContextError

        raise ContextError(
            f"job {document.job!r} is a {document.kind} and names no deep model; make it a JointInferenceService with "
            f"a cloudWorker or an endpoint"
        )
    return document.deep_model


def load_model(
    path: str | os.PathLike[str],
    pre_fun: Callable[..., Any] | None = None,
    post_fun: Callable[..., Any] | None = None,
    *,
    cloud_offload_algorithm: OffloadAlgorithm | str | None = None,
    big_model_endpoint: Endpoint | DeepModelAddress | str | Callable[[Any], Any] | None = None,
    big_model_post_fun: Callable[..., Any] | None = None,
    confidence_fun: ConfidenceFunction | None = None,
    hard_sample_detection: HardSampleDetector | str | None = None,
    deadline: float | None = None,
    upload: UploadForm | None = None,
    link_megabits: float | None = None,
    for_inference: bool | None = None,
    sha256: str | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    module: Any = None,
    threads: int = 1,
) -> Any:
    """Return the model at a path or URL: itself, to train on or look into, or as an edge runs it.

    With `pre_fun` or any argument after it, and for LiteRT and ONNX files, an `EdgeModel` comes back, whose `predict`
    takes a sample or a batch and returns what the model, or `post_fun`, gives. Otherwise it is what `save_model` saved:
    a Keras model, TensorFlow's SavedModel object, or a torch module of several tasks.

    Parameters
    ----------
    path
        A `.keras` file, a SavedModel folder, `.tflite` or `.onnx`; or a URL that fsspec opens.
    pre_fun, post_fun
        Called with what `predict` is called with, and with the model's outputs. A function that takes no argument and
        returns nothing leaves data as it is.
    cloud_offload_algorithm
        Decides which samples go to the deep model: an object such as `IBT(upload_ratio=0.5)`, or a name. By default
        the job's, else margin.
    big_model_endpoint
        Where the deep model answers: `get_big_model_endpoint()`, a model's URL, or a function that is called with a
        batch. By default the job's; without one the shallow model answers alone.
    big_model_post_fun
        What comes after the deep model, where its outputs are not like the shallow model's.
    confidence_fun
        For models that are neither classifiers nor detectors: called with a result, it says how sure the model is.
    hard_sample_detection
        Picks samples that are kept to be labelled: an object such as `solar_corona.incremental.Threshold(0.7)`, or a
        name. By default the job's, for the job's own model, else none is kept.
    deadline
        Seconds in which the deep model has to answer; by default the job's, else 1.
    upload
        How samples are sent; by default images as files where the service reads them.
    link_megabits
        What the link to the cloud carries, in Mbit/s; uploads stay within 0.7 of it.
    for_inference
        True for an `EdgeModel` in any case, such as a fast one of a `.keras` file.
    sha256
        Fingerprint that the model must have; by default the job's, or that of the card beside it.
    custom_objects
        Keras classes and functions of your own by their names.
    module
        For the `.npz` file of a torch model of several tasks: a module of one task's form.
    threads
        Threads of one inference, for LiteRT and ONNX.

    Raises
    ------
    ModelError
        If there is no such model, its fingerprint is another, or it cannot be loaded. Nothing is loaded then.
    TemporaryError
        If a server that has the model cannot be reached.
    """
    given = (pre_fun, post_fun, cloud_offload_algorithm, big_model_endpoint, big_model_post_fun, confidence_fun)
    options = (hard_sample_detection, deadline, upload, link_megabits)
    asked = any(value is not None for value in (*given, *options)) or (
        for_inference is None and module is None and has_versions(path)
    )
    if not asked and not for_inference and suffix_of(path) not in _RUN_ONLY:
        from ..lib import models

        return models.load_model(path, sha256=sha256, custom_objects=custom_objects, module=module)
    if module is not None or for_inference is False:
        raise ModelError(f"{os.fspath(path)}: a torch module, or a model to train, is loaded without inference options")
    return _edge_model(
        path,
        pre_fun,
        post_fun,
        algorithm=cloud_offload_algorithm,
        endpoint=big_model_endpoint,
        big_model_post_fun=big_model_post_fun,
        confidence_fun=confidence_fun,
        detection=hard_sample_detection,
        deadline=deadline,
        upload=upload,
        link_megabits=link_megabits,
        sha256=sha256,
        custom_objects=custom_objects,
        threads=threads,
    )


def _edge_model(
    path: str | os.PathLike[str],
    pre_fun: Callable[..., Any] | None,
    post_fun: Callable[..., Any] | None,
    *,
    algorithm: OffloadAlgorithm | str | None,
    endpoint: Any,
    big_model_post_fun: Callable[..., Any] | None,
    confidence_fun: ConfidenceFunction | None,
    detection: HardSampleDetector | str | None,
    deadline: float | None,
    upload: UploadForm | None,
    link_megabits: float | None,
    sha256: str | None,
    custom_objects: Mapping[str, Any] | None,
    threads: int,
) -> EdgeModel:
    from ..lib.runners.opening import open_runner
    from .edge_model import EdgeModel
    from .samples import user_function

    document = context.current()
    endpoint = endpoint if endpoint is not None or document is None else document.deep_model
    deep = chosen = None
    if endpoint is not None or algorithm is not None:
        from .registry import choose

        # Also where there is no deep model yet: what is wrong with it is told before the cloud is needed.
        chosen = choose(algorithm, document.offload if document is not None else None, model=path)
    if endpoint is None:
        chosen = None
    else:
        from ..lib.endpoints.opening import open_endpoint
        from .deep_model import DeepModel
        from .link import LinkBudget

        of_job = document.deadline if document is not None else None
        seconds = next((each for each in (deadline, of_job) if each is not None), _DEADLINE)
        link = LinkBudget(link_megabits) if link_megabits is not None else None
        deep = DeepModel(open_endpoint(endpoint), deadline=seconds, form=upload, link=link)

    def opened(version: Path, fingerprint: str | None) -> Runner:
        if custom_objects is None and version.suffix == ".keras":
            from ..lib.runners.conversion_apart import convert_apart

            convert_apart(version, fingerprint)
        return open_runner(version, sha256=fingerprint, custom_objects=custom_objects, threads=threads, convert=True)

    first = None
    more: _More = {}
    if has_versions(path):
        from ..lib.following import live_model, shadowed

        live = live_model(opened)
        first = live.first()
        more = {"live": live, "shadowed": shadowed, "version": 1 if first is None else first.version}
    runner = first.runner if first is not None else None
    if runner is None:
        runner = open_runner(path, sha256=sha256, custom_objects=custom_objects, threads=threads, convert=True)
    if detection is not None or is_jobs_own(path):
        from ..lib.hard_samples.opening import open_collector

        try:
            more["collector"] = open_collector(detection)
        except ModelError:
            runner.close()
            raise
    return EdgeModel(
        runner,
        user_function(pre_fun),
        user_function(post_fun),
        algorithm=chosen,
        deep_model=deep,
        big_model_post_fun=user_function(big_model_post_fun),
        confidence_fun=confidence_fun,
        recorder=_recorder(chosen),
        name=Path(os.fspath(path)).name,
        **more,
    )


def _recorder(algorithm: OffloadAlgorithm | None) -> Recorder:
    from .statistics import Recorder, statistics_file

    document = context.current()
    edge = document.worker if document is not None else "here"
    path = statistics_file(Path(document.run_folder), edge) if document is not None else None
    return Recorder(edge, path, algorithm=algorithm.describe() if algorithm is not None else None)
