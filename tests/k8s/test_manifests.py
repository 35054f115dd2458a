# SPDX-License-Identifier: Apache-2.0
"""A job as Kubernetes objects: valid, pinned, least-privileged, and saying what the plan says."""

from __future__ import annotations

import asyncio
import base64
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes
import kubernetes_validate
import pytest
import yaml
from cryptography import x509
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from solar_corona.core.context_document import ContextDocument
from solar_corona.core.errors import SpecError
from solar_corona.core.job_file import JobFile, read_job_file
from solar_corona.core.plan import plan
from solar_corona.core.security import make_credentials, make_runtime_secret
from solar_corona.core.spec import FederatedLearningJob
from solar_corona.core.workers import Placement
from solar_corona.k8s import render, to_yaml

IMAGE = "example/digits:1"
DATA = "/var/lib/solar-corona/data"


def job_file(name: str = "digits", *, edges: Any = None, metadata: Any = None, **spec: Any) -> JobFile:
    edges = edges or [{"name": f"edge-{i}", "trainData": f"edge-{i}.npz", "evalData": "eval.npz"} for i in range(2)]
    document = {
        "apiVersion": "solar-corona.io/v1alpha1",
        "kind": "FederatedLearningJob",
        "metadata": {"name": name, **(metadata or {})},
        "spec": {"script": "train.py", "output": {"model": "out/model.keras"}, "edges": edges, **spec},
    }
    return JobFile(Path("job.yaml"), FederatedLearningJob.model_validate(document))


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [item for item in objects if item["kind"] == kind]


def pods(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {job["metadata"]["name"]: job["spec"]["template"]["spec"] for job in of_kind(objects, "Job")}


def containers(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for pod in pods(objects).values():
        yield from pod.get("initContainers", [])
        yield from pod["containers"]


def contexts(objects: list[dict[str, Any]]) -> dict[str, ContextDocument]:
    found = {}
    for item in of_kind(objects, "ConfigMap"):
        (text,) = item["data"].values()
        found[item["metadata"]["name"]] = ContextDocument.model_validate_json(text)
    return found


@pytest.fixture(autouse=True, scope="module")
def _schemas_read_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kubernetes_validate.utils, "schema_contents", cache(kubernetes_validate.utils.schema_contents))
        yield


def validate(objects: list[dict[str, Any]]) -> None:
    for item in objects:
        kubernetes_validate.validate(item, kubernetes_validate.latest_version(), strict=True)


TLS = {"security": {"tls": True}}


@pytest.mark.parametrize("spec", [{}, TLS], ids=["plain", "tls"])
@pytest.mark.parametrize("advertise", [None, "192.0.2.1:30092", "fl.example.com:443"])
def test_every_object_is_valid_for_the_newest_kubernetes(spec: dict[str, Any], advertise: str | None) -> None:
    objects = render(job_file(**spec), image=IMAGE, advertise=advertise, namespace="factory")
    validate(objects)
    assert [item["kind"] for item in objects if item["kind"] == "Job"] == ["Job"] * 3
    assert all(item["metadata"]["namespace"] == "factory" for item in objects)


# What YAML takes for numbers and truth values is a name like any other.
NAMES = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True) | st.sampled_from(
    ["1e3", "0x1f", "y", "no", "null", "1-2", "a" * 63, "9" * 63, "2001-01-01"]
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(job=NAMES, edges=st.lists(NAMES, min_size=1, max_size=3, unique=True), tls=st.booleans())
def test_any_name_gives_valid_objects_with_names_of_their_own(job: str, edges: list[str], tls: bool) -> None:
    file = job_file(job, edges=[{"name": e, "trainData": "a.npz"} for e in edges], security={"tls": tls})
    objects = render(file, image=IMAGE)
    validate(objects)
    names = [(item["kind"], item["metadata"]["name"]) for item in objects]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name) for _, name in names)
    assert len(of_kind(objects, "Job")) == 1 + len(edges)
    assert list(yaml.safe_load_all(to_yaml(objects))) == objects
    bare = re.findall(r"(?m)^[\s-]*[\w./-]+: ([0-9].*|[a-z])$", to_yaml(objects))
    assert all(value.isdigit() for value in bare), "kubectl would read these as something else than text"


def test_each_edge_is_pinned_to_its_node_and_the_server_stays_off_the_edges() -> None:
    edges = [
        {"name": "north", "trainData": "a.npz", "node": "rpi-7.plant.example"},
        {"name": "south", "trainData": "b.npz"},
    ]
    found = pods(render(job_file(edges=edges), image=IMAGE))
    assert found["digits-edge-north"]["nodeSelector"] == {"kubernetes.io/hostname": "rpi-7.plant.example"}
    assert found["digits-edge-south"]["nodeSelector"] == {"kubernetes.io/hostname": "south"}
    toleration = {"key": "node-role.kubernetes.io/edge", "operator": "Exists", "effect": "NoSchedule"}
    assert toleration in found["digits-edge-north"]["tolerations"]
    affinity = found["digits-server"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert affinity["nodeSelectorTerms"] == [
        {"matchExpressions": [{"key": "node-role.kubernetes.io/edge", "operator": "DoesNotExist"}]}
    ]
    assert "tolerations" not in found["digits-server"]


def test_commands_environment_and_contexts_are_the_plan_s() -> None:
    edges = [
        {"name": "north", "trainData": "a.npz", "env": {"MODE": "edge"}},
        {"name": "south", "trainData": "s3://b/b.npz"},
    ]
    file = job_file(edges=edges, env={"MODE": "job", "LEVEL": "3"}, parameters={"epochs": 2}, **TLS)
    objects = render(file, image=IMAGE, advertise="192.0.2.1:30092")
    documents = contexts(objects)
    run = documents["digits-server"].run
    folder = f"/var/lib/solar-corona/runs/digits/{run}"
    whole = plan(
        file,
        Placement(
            run=run,
            python="python",
            superlink="flower-superlink",
            address="192.0.2.1:30092",
            listen="0.0.0.0",
            run_folder=lambda _: folder,
            base=lambda role: DATA if role == "edge" else folder,
            keys="/etc/solar-corona/keys",
            server_address="127.0.0.1:9092",
            script_base="",
        ),
    )
    found = pods(objects)
    superlink, server, *workers = whole.workers
    rendered = [
        found["digits-server"]["initContainers"][0],
        found["digits-server"]["containers"][0],
        *(found[f"digits-edge-{worker.name}"]["containers"][0] for worker in workers),
    ]
    for worker, container in zip(whole.workers, rendered, strict=True):
        assert container["command"] == list(worker.command)
        environment = {variable["name"]: variable["value"] for variable in container["env"]}
        assert {name: environment[name] for name in worker.env} == dict(worker.env)
        assert environment["HOME"] == "/tmp"
    assert documents == {
        "digits-server": server.context,
        **{f"digits-edge-{worker.name}": worker.context for worker in workers},
    }
    assert superlink.command[superlink.command.index("--port") + 1] == "9092"
    assert workers[0].command[-1] == "train.py", "found in the image's working folder"
    assert documents["digits-edge-south"].train_data.path == "s3://b/b.npz"


def test_every_pod_reads_its_own_context_document() -> None:
    for name, pod in pods(render(job_file(), image=IMAGE)).items():
        container = pod["containers"][0]
        path = next(v["value"] for v in container["env"] if v["name"] == "SOLAR_CORONA_CONTEXT")
        mount = next(m for m in container["volumeMounts"] if m["name"] == "context")
        volume = next(v for v in pod["volumes"] if v["name"] == "context")
        assert path == f"{mount['mountPath']}/context.json"
        assert volume["configMap"]["name"] == name


def test_the_image_and_command_of_the_job_are_used() -> None:
    file = job_file(image="example/own:2", command=["python", "edge.py", "--name=$(HOSTNAME)"])
    found = pods(render(file))
    assert {c["image"] for c in containers(render(file))} == {"example/own:2"}
    assert {c["image"] for c in containers(render(file, image=IMAGE))} == {IMAGE}
    # Kubernetes would put a variable's value there, which the local launcher does not.
    assert found["digits-edge-edge-0"]["containers"][0]["command"] == ["python", "edge.py", "--name=$$(HOSTNAME)"]
    assert found["digits-server"]["containers"][0]["command"] == ["python", "-m", "solar_corona.fl_server"]


def test_an_edge_s_secret_holds_its_own_key_and_no_other() -> None:
    objects = render(job_file(**TLS), image=IMAGE)
    secrets = {item["metadata"]["name"]: item["data"] for item in of_kind(objects, "Secret")}
    assert set(secrets["digits-edge-edge-0"]) == {"ca.pem", "edge-edge-0.key"}
    assert set(secrets["digits-edge-edge-1"]) == {"ca.pem", "edge-edge-1.key"}
    assert not any(name.startswith("edge-") and name.endswith(".key") for name in secrets["digits-server"])
    for name, pod in pods(objects).items():
        mounted = [volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume]
        assert mounted == [name]


def test_every_key_that_a_context_names_is_in_the_pod_s_secret() -> None:
    for spec in ({}, TLS):
        objects = render(job_file(**spec), image=IMAGE)
        secrets = {item["metadata"]["name"]: set(item["data"]) for item in of_kind(objects, "Secret")}
        words = [word for c in containers(objects) for word in c["command"]]
        for name, document in contexts(objects).items():
            named = re.findall(r"/etc/solar-corona/keys/([\w.-]+)", document.model_dump_json())
            assert set(named) <= secrets.get(name, set())
        named = re.findall(r"/etc/solar-corona/keys/([\w.-]+)", " ".join(words))
        assert set(named) <= secrets["digits-server"]


def test_without_tls_an_edge_has_no_secret_at_all() -> None:
    objects = render(job_file(), image=IMAGE)
    assert [item["metadata"]["name"] for item in of_kind(objects, "Secret")] == ["digits-server"]
    assert not any("secret" in volume for volume in pods(objects)["digits-edge-edge-0"]["volumes"])


def test_the_certificate_names_every_way_to_the_superlink() -> None:
    objects = render(job_file(**TLS), image=IMAGE, advertise="[2001:db8::1]:30092", namespace="factory")
    pem = base64.b64decode(of_kind(objects, "Secret")[0]["data"]["server.pem"])
    names = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"digits-superlink.factory.svc", "localhost"} <= set(names.get_values_for_type(x509.DNSName))
    assert {"2001:db8::1", "127.0.0.1"} == {str(ip) for ip in names.get_values_for_type(x509.IPAddress)}


def test_no_pod_is_root_writes_its_image_or_holds_a_token() -> None:
    objects = render(job_file(**TLS), image=IMAGE)
    for pod in pods(objects).values():
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        writable = {v["name"] for v in pod["volumes"] if not {"configMap", "secret"} & set(v)}
        assert writable <= {"tmp", "runs", "data"}
    for container in containers(objects):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"]
        for mount in container["volumeMounts"]:
            assert mount["name"] in ("tmp", "runs") or mount["readOnly"] is True


def test_a_script_that_raised_fails_its_job_at_once_and_an_eviction_does_not_count() -> None:
    for job in of_kind(render(job_file(), image=IMAGE), "Job"):
        evicted, raised = job["spec"]["podFailurePolicy"]["rules"]
        pod = job["spec"]["template"]["spec"]
        assert evicted["action"] == "Ignore"
        assert evicted["onPodConditions"][0]["type"] == "DisruptionTarget"
        assert raised["action"] == "FailJob"
        assert raised["onExitCodes"]["values"] == [1, 2, 3]
        assert raised["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
        assert pod["restartPolicy"] == "Never", "the policy asks for it"
        assert job["spec"]["backoffLimit"] == 20


def test_the_superlink_is_a_sidecar_that_is_ready_before_the_server_starts() -> None:
    for spec, scheme in (({}, "HTTP"), (TLS, "HTTPS")):
        pod = pods(render(job_file(**spec), image=IMAGE))["digits-server"]
        (superlink,) = pod["initContainers"]
        assert superlink["restartPolicy"] == "Always"
        assert superlink["startupProbe"]["httpGet"] == {"path": "/health", "port": 9092, "scheme": scheme}
        assert [container["name"] for container in pod["containers"]] == ["server"]


def test_the_server_s_checkpoints_and_model_are_on_its_volume() -> None:
    objects = render(job_file(), image=IMAGE)
    (claim,) = of_kind(objects, "PersistentVolumeClaim")
    pod, document = pods(objects)["digits-server"], contexts(objects)["digits-server"]
    (mount,) = (m for m in pod["containers"][0]["volumeMounts"] if m["name"] == "runs")
    (volume,) = (v for v in pod["volumes"] if v["name"] == "runs")
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert document.run_folder == mount["mountPath"]
    assert document.output_model == f"{mount['mountPath']}/out/model.keras"


def test_an_edge_reads_its_node_s_data_only_where_the_job_says_so() -> None:
    edges = [{"name": "here", "trainData": "a.npz"}, {"name": "there", "trainData": "https://example.com/a.npz"}]
    found = pods(render(job_file(edges=edges), image=IMAGE))
    paths = {name: {v["hostPath"]["path"] for v in pod["volumes"] if "hostPath" in v} for name, pod in found.items()}
    assert paths["digits-edge-here"] == {DATA, "/var/lib/solar-corona/runs"}
    assert paths["digits-edge-there"] == {"/var/lib/solar-corona/runs"}
    assert paths["digits-server"] == set()


@pytest.mark.parametrize(
    ("advertise", "kind", "port", "address", "dns"),
    [
        (None, "ClusterIP", {"port": 9092}, "digits-superlink.factory.svc:9092", "ClusterFirst"),
        ("192.0.2.1:30092", "NodePort", {"port": 9092, "nodePort": 30092}, "192.0.2.1:30092", "Default"),
        ("fl.example.com:443", "LoadBalancer", {"port": 443}, "fl.example.com:443", "Default"),
    ],
)
def test_edges_reach_the_superlink_where_it_is_advertised(
    advertise: str | None, kind: str, port: dict[str, int], address: str, dns: str
) -> None:
    objects = render(job_file(), image=IMAGE, advertise=advertise, namespace="factory")
    (service,) = of_kind(objects, "Service")
    server = next(job for job in of_kind(objects, "Job") if job["metadata"]["name"] == "digits-server")
    assert service["spec"]["type"] == kind
    assert service["spec"]["ports"] == [{"name": "superlink", "protocol": "TCP", "targetPort": 9092, **port}]
    assert service["spec"]["selector"].items() <= server["spec"]["template"]["metadata"]["labels"].items()
    documents = contexts(objects)
    assert documents["digits-edge-edge-0"].superlink.address == address
    assert documents["digits-server"].superlink.address == "127.0.0.1:9092", "the server's SuperLink is beside it"
    assert pods(objects)["digits-edge-edge-0"]["dnsPolicy"] == dns


def test_network_policies_select_the_pods_they_are_for() -> None:
    objects = render(job_file(), image=IMAGE)
    policies = {item["metadata"]["name"]: item["spec"] for item in of_kind(objects, "NetworkPolicy")}
    assert policies["digits-server"]["ingress"] == [{"ports": [{"protocol": "TCP", "port": 9092}]}]
    assert policies["digits-edge"]["ingress"] == []
    for job in of_kind(objects, "Job"):
        tags = job["spec"]["template"]["metadata"]["labels"].items()
        assert sum(policy["podSelector"]["matchLabels"].items() <= tags for policy in policies.values()) == 1


def test_what_pods_need_comes_before_them() -> None:
    kinds = [item["kind"] for item in render(job_file(**TLS), image=IMAGE)]
    order = ["Secret", "ConfigMap", "PersistentVolumeClaim", "NetworkPolicy", "Service", "Job"]
    assert sorted(kinds, key=order.index) == kinds


def test_objects_carry_the_recommended_labels_and_the_job_s_own() -> None:
    metadata = {"labels": {"team": "vision", "app.kubernetes.io/instance": "mine"}, "annotations": {"note": "a"}}
    for item in render(job_file(metadata=metadata), image=IMAGE):
        tags = item["metadata"]["labels"]
        assert {"name", "instance", "component", "part-of", "managed-by"} <= {
            key.removeprefix("app.kubernetes.io/") for key in tags
        }
        assert tags["app.kubernetes.io/instance"] == "digits", "objects are selected by it"
        assert tags["team"] == "vision"
        assert item["metadata"]["annotations"] == {"note": "a"}


def test_the_job_s_namespace_is_used_unless_another_is_given() -> None:
    file = job_file(metadata={"namespace": "plant"})
    assert {item["metadata"]["namespace"] for item in render(file, image=IMAGE)} == {"plant"}
    assert {item["metadata"]["namespace"] for item in render(file, image=IMAGE, namespace="b")} == {"b"}
    assert not any("namespace" in item["metadata"] for item in render(job_file(), image=IMAGE))


def test_two_renders_differ_in_their_keys_alone() -> None:
    first, second = (render(job_file(**TLS), image=IMAGE) for _ in range(2))
    assert [a for a in first if a["kind"] != "Secret"] == [b for b in second if b["kind"] != "Secret"]
    assert all(a != b for a, b in zip(of_kind(first, "Secret"), of_kind(second, "Secret"), strict=True))


def test_given_keys_make_a_render_reproducible(tmp_path: Path) -> None:
    make_runtime_secret(tmp_path)
    make_credentials(tmp_path, hosts=["fl.example.com"], edges=["edge-0", "edge-1"])
    first, second = (to_yaml(render(job_file(**TLS), image=IMAGE, keys=tmp_path)) for _ in range(2))
    assert first == second


def test_keys_that_lack_an_edge_s_are_refused(tmp_path: Path) -> None:
    make_runtime_secret(tmp_path)
    make_credentials(tmp_path, hosts=["fl.example.com"], edges=["edge-0"])
    with pytest.raises(SpecError, match=r"edge-edge-1\.pub is missing"):
        render(job_file(**TLS), image=IMAGE, keys=tmp_path)


def test_keys_that_were_applied_cannot_be_swapped_under_a_running_job() -> None:
    objects = render(job_file(**TLS), image=IMAGE)
    assert all(item["immutable"] for item in objects if item["kind"] in ("Secret", "ConfigMap"))


def test_a_changed_job_is_another_run_and_resumes_no_other_s_checkpoint() -> None:
    runs = {
        contexts(render(job_file(**spec), image=IMAGE))["digits-server"].run
        for spec in ({}, {"parameters": {"epochs": 3}}, {"aggregation": {"rounds": 9}})
    }
    assert len(runs) == 3
    labelled = job_file(metadata={"labels": {"team": "vision"}})
    assert contexts(render(labelled, image=IMAGE))["digits-server"].run in runs


@pytest.mark.parametrize(
    ("spec", "options", "says"),
    [
        ({}, {"image": None}, r"spec\.image is missing.*--image"),
        ({"output": {"model": "/srv/model.keras"}}, {}, r"output\.model.*expected a relative path"),
        ({"output": {"model": "../model.keras"}}, {}, r"output\.model.*expected a relative path"),
        ({"model": "../start.keras"}, {}, r"spec\.model is \.\./start\.keras.*leads out"),
        ({"edges": [{"name": "a", "trainData": "x/../../a.npz"}]}, {}, r"edge a: trainData.*leads out"),
        ({"edges": [{"name": "a", "trainData": {"path": "../a.npz"}}]}, {}, r"edge a: trainData.*leads out"),
        ({"edges": [{"name": "a", "trainData": "a", "node": "rack 1"}]}, {}, r"node is 'rack 1'.*hostname"),
        ({"edges": [{"name": "a", "trainData": "dataset:none"}]}, {}, r"Dataset 'none'"),
        ({}, {"advertise": "192.0.2.1"}, r"--advertise.*HOST:PORT"),
        ({}, {"advertise": "https://192.0.2.1:1"}, r"--advertise.*HOST:PORT"),
        ({}, {"advertise": "192.0.2.1:99999"}, r"--advertise.*HOST:PORT"),
        ({}, {"advertise": "2001:db8::1:9092"}, r"--advertise.*HOST:PORT"),
        ({"parameters": {"table": "x" * 2**20}}, {}, r"ConfigMap of server.*Kubernetes allows"),
    ],
)
def test_a_job_that_no_cluster_can_run_is_refused_with_what_to_do(
    spec: dict[str, Any], options: dict[str, Any], says: str
) -> None:
    with pytest.raises(SpecError, match=says):
        render(job_file(**spec), **{"image": IMAGE, **options})


def test_a_dataset_of_the_same_file_is_checked_and_found(tmp_path: Path) -> None:
    text = """
apiVersion: solar-corona.io/v1alpha1
kind: FederatedLearningJob
metadata: {name: digits}
spec: {edges: [{name: a, trainData: "dataset:line-1"}]}
---
apiVersion: solar-corona.io/v1alpha1
kind: Dataset
metadata: {name: line-1}
spec: {path: PATH}
"""
    path = tmp_path / "job.yaml"
    path.write_text(text.replace("PATH", "line/1.npz"))
    objects = render(read_job_file(path), image=IMAGE)
    assert contexts(objects)["digits-edge-a"].train_data.path == f"{DATA}/line/1.npz"
    path.write_text(text.replace("PATH", "../1.npz"))
    with pytest.raises(SpecError, match="leads out"):
        render(read_job_file(path), image=IMAGE)


@pytest.fixture
async def cluster(kmock: Any) -> kubernetes.client.ApiClient:
    """A real cluster where KUBECONFIG names one, else a Kubernetes API of this process."""
    if os.environ.get("KUBECONFIG"):
        return kubernetes.config.new_client_from_config()
    for name in ("secrets", "configmaps", "persistentvolumeclaims", "services"):
        kmock.resources[f"v1/{name}"] = {}
    kmock.resources["batch/v1/jobs"] = {}
    kmock.resources["networking.k8s.io/v1/networkpolicies"] = {}
    return kubernetes.client.ApiClient(kubernetes.client.Configuration(host=str(kmock.url)))


@pytest.mark.parametrize("spec", [{}, TLS], ids=["plain", "tls"])
async def test_a_cluster_takes_every_object(cluster: kubernetes.client.ApiClient, spec: dict[str, Any]) -> None:
    objects = list(yaml.safe_load_all(to_yaml(render(job_file(**spec), image=IMAGE, namespace="default"))))
    for item in objects:
        (taken,) = await asyncio.to_thread(
            kubernetes.utils.create_from_dict, cluster, item, dry_run="All", field_validation="Strict"
        )
        assert taken.metadata.name == item["metadata"]["name"]
        assert taken.metadata.namespace == "default"
        assert item["metadata"]["labels"].items() <= taken.metadata.labels.items()
