# SPDX-License-Identifier: Apache-2.0
"""The command `solar-corona`. Engines are imported by the commands that need them, so that `--help` is quick."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from .core.errors import ExitCode, JobFailedError, SolarCoronaError, SpecError
from .core.extras import extra_of
from .core.settings import Settings, quiet_engines

if TYPE_CHECKING:
    from .core.run_folder import RunFolder
    from .fl_server.progress import RunView

__all__ = ["app", "main"]

app = typer.Typer(
    name="solar-corona",
    help="Train one model over many edges whose data stays where it is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
# No markup: what is printed holds paths and names that others chose, also with brackets in them.
console = Console(highlight=False, markup=False)
errors = Console(stderr=True, highlight=False, markup=False)

JobArgument = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job file.")]
RunArgument = Annotated[str, typer.Argument(metavar="JOB", help="A job file, a run folder, or a job's name.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Change a field, such as spec.aggregation.rounds=3."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line, for programs.")]


def _root() -> Path | None:
    return Settings.from_environment().runs


@app.command()
def run(
    job: JobArgument,
    overrides: SetOption = None,
    resume: Annotated[bool, typer.Option(help="Go on with the last run from its last checkpoint.")] = False,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Run all edges as threads of one process, with no SuperLink.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a job on this machine, and show how it goes."""
    from .core.job_file import read_any_job_file

    kind = read_any_job_file(job, overrides or []).job.kind
    if kind != "FederatedLearningJob":
        if resume or in_process:
            raise SpecError(f"a {kind} has no rounds; leave out --resume and --in-process")
        how = _run_inference if kind == "JointInferenceService" else _run_incremental
        how(job, overrides or [], as_json=as_json)
        return
    from .fl_server.local_run import LocalRun, prepared

    command = ["run", *(["--in-process"] if in_process else [])]
    with prepared(job, overrides or [], command=command, resume=resume, root=_root()) as (file, folder):
        if in_process:
            from .fl_server.in_process import run_in_process as work

            view = _shown(folder, lambda show: work(file, folder, show), as_json=as_json)
        else:
            view = _shown(folder, LocalRun.of(file, folder).run, as_json=as_json)
    _conclude(job, folder, view, as_json=as_json)


def _run_inference(job: Path, overrides: list[str], *, as_json: bool) -> None:
    from .joint_inference.local_run import InferenceRun, prepared
    from .joint_inference.view import display

    with prepared(job, overrides, root=_root()) as (file, folder):
        edges = [edge.name for edge in file.job.spec.edges]
        with display(console, edges=edges, as_json=as_json) as show:
            view = InferenceRun.of(file, folder).run(show)
    if as_json:
        print_json({"result": "succeeded", "run": str(folder.path)})
    elif not console.is_terminal:
        console.print(view.table())


def _run_incremental(job: Path, overrides: list[str], *, as_json: bool) -> None:
    from .incremental.local_run import IncrementalRun, prepared
    from .incremental.loop.display import display

    with prepared(job, overrides, root=_root()) as (file, folder):
        run = IncrementalRun.of(file, folder)
        if not as_json:
            console.print(f"the hub and its pages: {run.page}", soft_wrap=True)
        with display(console, as_json=as_json) as show:
            run.run(show)
    if as_json:
        print_json({"result": "succeeded", "run": str(folder.path)})


def _shown(folder: RunFolder, work: Any, *, as_json: bool) -> RunView:
    """Run `work` with live progress: a table on a terminal, JSON lines or plain lines elsewhere."""
    from .core.run_folder import RunOrigin
    from .fl_server.display import display

    try:
        with display(folder, console, as_json=as_json) as show:
            return work(show)  # type: ignore[no-any-return]
    except KeyboardInterrupt:
        if not as_json:
            origin = folder.read_origin() or RunOrigin(job_file="JOB.yaml")
            errors.print(f"stopped; go on with: {origin.resume(_command())}", soft_wrap=True)
        raise
    except SolarCoronaError:
        _report(folder)
        raise


def _report(folder: RunFolder) -> Path | None:
    """Write the HTML report; a failure to write it is said and changes nothing else."""
    from .core.job_file import read_job
    from .fl_server.report import write_report

    try:
        return write_report(folder, job=read_job(folder.job_file))
    except (SolarCoronaError, OSError) as error:
        errors.print(f"the report could not be written: {error}", style="yellow", soft_wrap=True)
        return None


def _conclude(job: Path, folder: RunFolder, view: RunView, *, as_json: bool) -> None:
    report = _report(folder)
    model = view.finished.model if view.finished is not None else None
    if as_json:
        print_json({"result": "succeeded", "model": model, "report": str(report), "run": str(folder.path)})
        return
    from .fl_server.summary import print_summary

    file_edge = next(iter(view.joined), "NAME")
    print_summary(
        view,
        console=console,
        model=model,
        report=report,
        next_commands=[
            f"{_command()} tasks {job}" if view.tasks.told else f"{_command()} logs {job} --edge {file_edge}",
            f"{_command()} run {job} --set spec.aggregation.algorithm=fedadam",
            f"{_command()} manifests {job} --image YOUR/IMAGE",
        ],
    )


def _command() -> str:
    """Return how the user calls this command from where they are."""
    if shutil.which("solar-corona"):
        return "solar-corona"
    try:
        return str((Path(sys.prefix) / "bin" / "solar-corona").relative_to(Path.cwd()))
    except ValueError:
        return str(Path(sys.prefix) / "bin" / "solar-corona")


def print_json(value: object) -> None:
    """Print one JSON object as a line."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


@app.command()
def validate(job: JobArgument, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Check a job file, its script, its data and its strategy, and start nothing."""
    from .core.incremental_spec import IncrementalLearningJob
    from .core.inference_spec import JointInferenceService
    from .core.job_file import read_any_job_file, read_job_file
    from .core.plan import plan
    from .core.preparation import local_placement
    from .core.run_folder import RunFolder

    file = read_any_job_file(job, overrides or [])
    if isinstance(file.job, JointInferenceService):
        from .joint_inference.local_run import check_inputs

        check_inputs(read_job_file(job, overrides or [], JointInferenceService))
        count = len(file.job.spec.edges)
        told = f"{count} edge{'s' * (count != 1)}, {'a cloud worker' if file.job.spec.cloud_worker else 'an endpoint'}"
    elif isinstance(file.job, IncrementalLearningJob):
        from .incremental.local_run import check_inputs as check_incremental

        check_incremental(read_job_file(job, overrides or [], IncrementalLearningJob))
        count = len(file.job.spec.inference.edges)
        told = f"{count} edge{'s' * (count != 1)}, labels from {file.job.spec.labelling.source}"
    else:
        from .fl_client.edge_data import named_division
        from .fl_server.job_checks import check_job

        check_job(read_job_file(job, overrides or []))
        spec = file.job.spec
        if ":" in spec.tasks.division:
            named_division(spec.tasks.division)
        told = f"{len(spec.edges)} edges, {spec.aggregation.rounds} rounds of {spec.algorithm}"
    here = Path(".solar-corona")
    workers = plan(file, local_placement(file, RunFolder(here), address="127.0.0.1:9", lasting=here)).workers
    if as_json:
        print_json({"valid": True, "job": file.job.metadata.name, "workers": [w.name for w in workers]})
    else:
        console.print(f"{job} is valid: {told}")


def _kind_of(folder: RunFolder) -> str:
    """Return the kind of a run's job; a run whose file is damaged still has a state to tell."""
    from .core.errors import SpecError
    from .core.job_file import read_any_job_file

    try:
        return read_any_job_file(folder.job_file).job.kind
    except SpecError:
        return "FederatedLearningJob"


@app.command()
def status(job: RunArgument, as_json: JsonOption = False) -> None:
    """Tell how the last run of a job stands."""
    from .core.run_folder import find_run

    folder = find_run(job, _root())
    if _kind_of(folder) == "JointInferenceService":
        from .joint_inference.status import describe as describe_service
        from .joint_inference.status import status_of as status_of_service

        service = status_of_service(folder)
        if as_json:
            print_json(service.model_dump(mode="json"))
        else:
            describe_service(service, console)
        return
    if _kind_of(folder) == "IncrementalLearningJob":
        from .incremental.status import describe as describe_loop
        from .incremental.status import status_of as status_of_loop

        loop = status_of_loop(folder)
        if as_json:
            print_json(loop.model_dump(mode="json"))
        else:
            describe_loop(loop, console)
        return
    from .fl_server.status import describe, status_of

    current = status_of(folder)
    if as_json:
        print_json(current.model_dump(mode="json"))
    else:
        describe(current, console)


incremental_app = typer.Typer(help="Look at, and steer, the loop of an incremental learning job.", no_args_is_help=True)
app.add_typer(incremental_app, name="incremental")
WhyOption = Annotated[str, typer.Option("--why", help="A note for those who read the decisions later.")]


@incremental_app.command("status")
def incremental_status(job: RunArgument, as_json: JsonOption = False) -> None:
    """Show one page: samples, triggers, trainings, versions, canaries, and why the last decisions were taken."""
    from .core.run_folder import find_run
    from .incremental.local_run import status_of
    from .incremental.loop.display import page

    folder = find_run(job, _root())
    found = status_of(folder)
    if found is None:
        raise SpecError(f"the hub of {job} has not come up yet; `solar-corona logs {job}` shows what it prints")
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        console.print(page(found))


@incremental_app.command("train")
def incremental_train(job: RunArgument, why: WhyOption = "") -> None:
    """Start a training now, whatever the triggers say."""
    _steer(job, "train", why)


@incremental_app.command("pause")
def incremental_pause(job: RunArgument, why: WhyOption = "") -> None:
    """Take no further step until `resume`; edges go on answering."""
    _steer(job, "pause", why)


@incremental_app.command("resume")
def incremental_resume(job: RunArgument, why: WhyOption = "") -> None:
    """Go on where the loop was paused."""
    _steer(job, "resume", why)


@incremental_app.command("rollback")
def incremental_rollback(job: RunArgument, why: WhyOption = "") -> None:
    """Bring all edges back to the version before."""
    _steer(job, "rollback", why)


def _steer(job: str, command: Any, why: str) -> None:
    from .incremental.local_run import hub_of

    with hub_of(job, _root()) as hub:
        console.print(hub.command(command, why), soft_wrap=True)


@app.command()
def tasks(job: RunArgument, as_json: JsonOption = False) -> None:
    """Show which edges' tasks are similar in the last run, and why."""
    from .core.run_folder import find_run
    from .fl_server.progress import RunView
    from .fl_server.task_text import print_tasks, tasks_status

    folder, view = find_run(job, _root()), RunView()
    view.take(folder.events())
    phase = folder.phase()
    if as_json:
        found = tasks_status(view, job=folder.path.parent.name, run=folder.path.name, phase=phase)
        print_json(found.model_dump(mode="json"))
    else:
        print_tasks(view, console, run=f"{folder.path.parent.name} · run {folder.path.name}", phase=phase)


@app.command()
def logs(
    job: RunArgument,
    edge: Annotated[str | None, typer.Option(help="Show one edge's log (or: server, superlink).")] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as lines are written.")] = False,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="Lines of each log to begin with.")] = 50,
) -> None:
    """Show what the workers of the last run printed."""
    from .core.run_folder import find_run
    from .core.run_status import follow_logs

    folder = find_run(job, _root())
    known = folder.workers()
    if edge is not None and edge not in known:
        raise SpecError(f"this run has no log of {edge!r}; it has: {', '.join(known) or 'none'}")
    for name, line in follow_logs(folder, [edge] if edge else known, lines=lines, follow=follow):
        console.print(line if edge else f"{name:>12} | {line}", soft_wrap=True)


@app.command()
def stop(job: RunArgument) -> None:
    """Stop the running job; its state stays, and `run --resume` goes on."""
    from .core.run_folder import find_run

    folder = find_run(job, _root())
    if not folder.stop():
        ended = {"succeeded": "has succeeded", "failed": "has failed", "stopped": "was stopped already"}
        console.print(f"nothing to stop: the last run {folder.path.name} {ended.get(folder.phase(), 'is not running')}")
        return
    end = time.monotonic() + 20
    while folder.phase() in ("starting", "running") and time.monotonic() < end:
        time.sleep(0.1)
    console.print(f"run {folder.path.name} is {folder.phase()}")


@app.command()
def strategies(as_json: JsonOption = False) -> None:
    """List the aggregation strategies that a job may name."""
    quiet_engines()
    from .strategies import available

    infos = available()
    if as_json:
        print_json([{"name": i.name, "origin": i.origin, "summary": i.summary, "options": i.options} for i in infos])
        return
    for info in infos:
        console.print(Text.assemble((info.name, "bold"), (f"  {info.origin}", "dim")))
        console.print(Padding(Text(info.summary), (0, 0, 0, 4)))
    console.print(
        "Any other class: algorithm: module:Class, with its options under aggregation.options.",
        style="dim",
        soft_wrap=True,
    )


@app.command()
def schema(kind: Annotated[str, typer.Argument(help="FederatedLearningJob, Dataset or Model.")] = "") -> None:
    """Print the JSON schema of the job file, for editors."""
    from .core.schema import job_file_schema

    sys.stdout.write(json.dumps(job_file_schema(kind or None), indent=2) + "\n")


@app.command()
def manifests(
    job: JobArgument,
    image: Annotated[str | None, typer.Option(help="Container image of the workers; by default spec.image.")] = None,
    advertise: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where edges reach the server; by default the Service."),
    ] = None,
    namespace: Annotated[str | None, typer.Option(help="Namespace; by default the job's metadata.namespace.")] = None,
    overrides: SetOption = None,
) -> None:
    """Print the job as Kubernetes objects, for `kubectl apply -f -`."""
    from .core.job_file import read_job_file
    from .k8s.manifests import render, to_yaml

    file = read_job_file(job, overrides or [])
    sys.stdout.write(to_yaml(render(file, image=image, advertise=advertise, namespace=namespace)))


@app.command()
def server(
    job: JobArgument,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 9092,
    overrides: SetOption = None,
    resume: Annotated[bool, typer.Option(help="Go on with the last run from its last checkpoint.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run the server's half of a job; edges come from other machines with `solar-corona edge`."""
    from .fl_server.local_run import LocalRun, prepared

    command = ["server", "--host", host, "--port", str(port)]
    opened = prepared(job, overrides or [], command=command, resume=resume, root=_root(), edges_here=False)
    with opened as (file, folder):
        half = LocalRun.of(file, folder, listen=host, port=port).only("superlink", "server")
        if not as_json:
            console.print(
                f"listening on {host}:{port}; "
                f"on each edge: solar-corona edge {job} --name NAME --superlink HOST:{port}",
                soft_wrap=True,
            )
            if file.job.spec.security.tls:
                console.print(
                    f"keys for the edges: {folder.secret('')} (ca.pem and edge-NAME.key, for --ca and --key)",
                    soft_wrap=True,
                )
        view = _shown(folder, half.run, as_json=as_json)
    _conclude(job, folder, view, as_json=as_json)


@app.command()
def edge(
    job: JobArgument,
    name: Annotated[str, typer.Option(help="Which of the job's edges this is.")],
    superlink: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where the server listens.")],
    ca: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="CA file; makes the connection TLS.")
    ] = None,
    key: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="This edge's private key.")] = None,
    overrides: SetOption = None,
) -> None:
    """Run one edge of a job on this machine, in the foreground."""
    from .fl_client.hand_started import run_edge

    raise typer.Exit(run_edge(job, overrides or [], name=name, address=superlink, ca=ca, key=key, root=_root()))


@app.command()
def serve(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="A model, NAME=MODEL, a folder of versions, or a folder of those."),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for a free one.")] = 8000,
    max_batch: Annotated[int, typer.Option(min=1, help="Samples in a batch, and in a request.")] = 16,
    batch_wait: Annotated[float, typer.Option(min=0, help="Seconds that a batch which is not full waits.")] = 0.0,
    max_queue: Annotated[int, typer.Option(min=1, help="Samples of a model that wait; more are refused.")] = 128,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of a request.")] = 32 << 20,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds in which a request is answered.")] = 30.0,
    threads: Annotated[int, typer.Option(min=1, help="Threads that compute one batch.")] = 1,
    sha256: Annotated[
        list[str] | None, typer.Option(metavar="NAME=SHA256", help="Fingerprint that a model must have.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File of bearer tokens, one a line; only they are let in.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="The service's certificate, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
    client_ca: Annotated[
        Path | None, typer.Option(help="CA of client certificates, PEM; only clients that show one are let in.")
    ] = None,
    model_control: Annotated[bool, typer.Option("--model-control", help="Let clients load and unload models.")] = False,
) -> None:
    """Serve models over the Open Inference Protocol, until SIGTERM or Ctrl-C."""
    from .joint_inference.service.command import run_service

    run_service(
        models,
        host=host,
        port=port,
        fingerprints=sha256 or [],
        token_file=token_file,
        tls_files=(tls_cert, tls_key, client_ca),
        announce=lambda text: console.print(text, soft_wrap=True),
        max_batch=max_batch,
        batch_wait=batch_wait,
        max_queue=max_queue,
        max_body=max_body,
        max_memory=max(256 << 20, 2 * max_body),
        timeout=timeout,
        threads=threads,
        model_control=model_control,
    )


@app.command()
def hub(
    job: JobArgument,
    base: Annotated[Path, typer.Option(help="What relative paths of the job file are relative to.")],
    state: Annotated[Path, typer.Option(help="Folder of samples, versions and the database; it outlives runs.")],
    keys: Annotated[Path, typer.Option(help="Folder of tokens, keys and certificates, as `run` makes them.")],
    run_folder: Annotated[Path, typer.Option("--run", help="Folder for the logs of trainings and evaluations.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 9093,
) -> None:
    """Run the hub of an incremental learning job, until SIGTERM or Ctrl-C."""
    from .core.incremental_spec import IncrementalLearningJob
    from .core.job_file import read_job_file
    from .incremental.loop.command import serve_hub

    file = read_job_file(job, [], IncrementalLearningJob)
    serve_hub(file, base=base, state=state, keys=keys, run=run_folder, host=host, port=port)


@app.command("local-controller")
def local_controller(
    state: Annotated[Path, typer.Option(help="Folder of all that it keeps; one controller at a time may use it.")],
    edge: Annotated[str, typer.Option(help="This edge's name.")],
    job: Annotated[str, typer.Option(help="The job's name.")],
    hub: Annotated[str, typer.Option(metavar="URL", help="Where samples go.")],
    token_file: Annotated[Path, typer.Option(help="File of this edge's token for the hub.")],
    ca: Annotated[Path | None, typer.Option(help="CA of the hub's certificate, PEM; by default the machine's.")] = None,
    public_key: Annotated[
        Path | None, typer.Option(help="Key that the hub's models are signed with; without it none is taken.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME=PATH", help="The model, and its version 1; NAME: the hub has it.")
    ] = None,
    sha256: Annotated[
        str | None, typer.Option(metavar="NAME=SHA256", help="Fingerprint that version 1 must have.")
    ] = None,
    datasets: Annotated[
        list[str] | None, typer.Option("--dataset", metavar="NAME=PATH", help="A dataset of this node.")
    ] = None,
    max_bytes: Annotated[int, typer.Option(help="Bytes that wait to go up, at most.")] = 1 << 30,
    max_rate: Annotated[int | None, typer.Option(help="Bytes a second that go up, at most.")] = None,
    quiet_hours: Annotated[
        str | None, typer.Option(metavar="HH:MM-HH:MM", help="When nothing goes up, in UTC.")
    ] = None,
    socket: Annotated[
        Path | None, typer.Option(help="Unix socket to listen on; by default controller.sock in the state folder.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Listen on this port of 127.0.0.1 instead, with controller.token."),
    ] = None,
) -> None:
    """Run a node's LocalController, until SIGTERM or Ctrl-C: it keeps samples, sends them up, and fetches models."""
    from .local_controller.command import parse_options, run_controller

    if socket is not None and port is not None:
        raise SpecError("--socket and --port exclude each other; give one of them")
    options = parse_options(
        state=state,
        edge=edge,
        job=job,
        hub=hub,
        token_file=token_file,
        ca=ca,
        public_key=public_key,
        model=model,
        sha256=sha256,
        datasets=datasets or [],
        max_bytes=max_bytes,
        max_rate=max_rate,
        quiet_hours=quiet_hours,
    )
    run_controller(options, announce=lambda text: console.print(text, soft_wrap=True), socket_path=socket, port=port)


@app.command()
def calibrate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The shallow model.")],
    data: Annotated[str, typer.Option(help="Labelled samples: a path or URL of npz, npy, csv, parquet or images.")],
    big_model: Annotated[str, typer.Option(help="The deep model: a path, or the URL of a model that is served.")],
    max_loss: Annotated[
        float | None, typer.Option(help="Promise: accuracy at most so much below the deep model's, such as 0.01.")
    ] = None,
    target_accuracy: Annotated[float | None, typer.Option(help="Promise: at least this accuracy.")] = None,
    max_upload: Annotated[float | None, typer.Option(help="Promise: at most this share of uploads.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw the whole trade-off.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Find the fewest uploads that keep a promise, and store the choice beside the model."""
    from .core.errors import DatasetError
    from .joint_inference import calibration
    from .joint_inference.calibrated import Calibrated
    from .lib.datasets import load_dataset

    if max_loss is target_accuracy is max_upload is None:
        raise SpecError("there is nothing to promise; give one of --max-loss, --target-accuracy and --max-upload")
    promise = Calibrated(max_loss=max_loss, target_accuracy=target_accuracy, max_upload=max_upload)
    x, y = load_dataset(data)
    if y is None:
        raise DatasetError(f"{data}: has no labels; calibration compares both models with the truth")
    quiet_engines()
    measured = calibration.calibrate(model, big_model, x, y, promise)
    if plot is not None:
        calibration.plot_tradeoff(measured, promise, plot)
    if as_json:
        print_json(promise.calibration.model_dump(mode="json"))
    else:
        calibration.print_tradeoff(measured, promise, console)


def main() -> None:
    """Run the command; every error that is expected is one message and a documented exit code."""
    settings = Settings.from_environment()
    if "--debug" in sys.argv:
        sys.argv.remove("--debug")
        settings = Settings(settings.context, settings.runs, debug=True)
    quiet_engines()
    # Both are a request to stop; a shell that starts a command in the background has it ignore SIGINT.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else ExitCode.OK)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(ExitCode.INTERRUPTED)
    except SolarCoronaError as error:
        if settings.debug:
            traceback.print_exc()
        elif isinstance(error, JobFailedError) and error.traceback:
            errors.print(error.traceback, style="dim", soft_wrap=True)
        _fail(str(error), error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(ExitCode.BAD_JOB)
    except Exception as error:
        if settings.debug:
            raise
        if isinstance(error, ModuleNotFoundError) and (extra := extra_of(error.name or "")):
            package = str(error.name).partition(".")[0]
            _fail(
                f"this needs the package {package}, which is not installed; pip install 'solar-corona[{extra}]'",
                ExitCode.PLATFORM,
            )
        _fail(
            f"{type(error).__name__}: {error}\nThis is an error in Solar Corona; --debug shows where.",
            ExitCode.INTERNAL,
        )


def _fail(message: str, code: ExitCode) -> None:
    if "--json" in sys.argv:
        print_json({"result": "failed", "error": message, "exit_code": int(code)})
    errors.print(f"error: {message}", style="bold red", soft_wrap=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
