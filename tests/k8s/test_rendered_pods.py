# SPDX-License-Identifier: Apache-2.0
"""The rendered pods, run: a stand-in for the kubelet starts their commands with what they mount, and no more."""

from __future__ import annotations

import base64
import json
import re
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from solar_corona.core.job_file import JobFile
from solar_corona.core.local_launcher import free_port
from solar_corona.core.spec import FederatedLearningJob
from solar_corona.k8s import render

ROUNDS = 12
SCRIPT = """
import numpy as np, solar_corona as sc

class Mean:
    def __init__(self): self.w = np.zeros(4, np.float32)
    def get_weights(self): return {"w": self.w}
    def set_weights(self, weights): self.w = weights["w"]
    def train(self, config):
        self.w = self.w + (x.mean(0) - self.w) / 2
        return len(x), {"loss": float(np.abs(x.mean(0) - self.w).sum())}
    def evaluate(self): return len(x), {"loss": float(np.abs(x.mean(0) - self.w).sum())}
    def save(self, path): np.savez(path, w=self.w)

x = np.load(sc.context.current().train_data.path)["x"]
model = sc.collaborative_training.fit(model=Mean())
sc.save_model(model)
"""


class Pod:
    """One pod of a Job: its volumes as folders, its containers as processes."""

    def __init__(self, root: Path, objects: list[dict[str, Any]], job: dict[str, Any], *, port: int) -> None:
        self.root, self.port = root, port
        self.name = job["metadata"]["name"]
        self.spec = job["spec"]["template"]["spec"]
        self.permanent = job["spec"]["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"]
        self.restarts_left = job["spec"]["backoffLimit"]
        self.process: subprocess.Popen[bytes] | None = None
        self.log = root / f"{self.name}.log"
        self._objects = {(o["kind"], o["metadata"]["name"]): o for o in objects}
        self._volumes = {volume["name"]: self._folder(volume) for volume in self.spec["volumes"]}

    def _folder(self, volume: dict[str, Any]) -> Path:
        own = self.root / self.name / volume["name"]
        if "persistentVolumeClaim" in volume:
            own = self.root / "claims" / volume["persistentVolumeClaim"]["claimName"]
        elif "hostPath" in volume:
            own = (
                self.root / self.spec["nodeSelector"]["kubernetes.io/hostname"] / volume["hostPath"]["path"].strip("/")
            )
        own.mkdir(parents=True, exist_ok=True)
        return own

    def tend(self) -> int | None:
        """Start the worker, and again while the Job's policy allows; return its last exit code."""
        code = self.process.poll() if self.process else None
        if self.process is None or (code and code not in self.permanent and self.restarts_left):
            self.restarts_left -= self.process is not None
            self.process = self.start(self.spec["containers"][0])
            return None
        return code

    def start(self, container: dict[str, Any]) -> subprocess.Popen[bytes]:
        mounts = {}
        for mount in container["volumeMounts"]:
            folder = self._volumes[mount["name"]] / mount.get("subPath", "")
            folder.mkdir(exist_ok=True)
            mounts[mount["mountPath"]] = str(folder)
        self._fill(mounts)
        environment = {v["name"]: self._seen(v["value"], mounts) for v in container["env"]}
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [self._seen(word, mounts) for word in container["command"]],
                cwd=self.root / "app",
                env={"PATH": str(Path(sys.executable).parent), **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _fill(self, mounts: dict[str, str]) -> None:
        for volume in self.spec["volumes"]:
            for name, value in self._content(volume).items():
                (self._volumes[volume["name"]] / name).write_bytes(value(mounts))

    def _content(self, volume: dict[str, Any]) -> dict[str, Callable[[dict[str, str]], bytes]]:
        if "configMap" in volume:
            data = self._objects["ConfigMap", volume["configMap"]["name"]]["data"]
            return {name: lambda mounts, text=text: self._seen(text, mounts).encode() for name, text in data.items()}
        if "secret" in volume:
            data = self._objects["Secret", volume["secret"]["secretName"]]["data"]
            return {name: lambda mounts, text=text: base64.b64decode(text) for name, text in data.items()}
        return {}

    def _seen(self, text: str, mounts: dict[str, str]) -> str:
        """Put the folders of this machine where the container has its mounts, in one pass, the longest first."""
        paths = "|".join(sorted(map(re.escape, mounts), key=len, reverse=True))
        text = re.sub(rf"(?<![\w/.])({paths})(?![\w.-])", lambda match: mounts[match[1]], text)
        return re.sub(r"\b9092\b", str(self.port), text).replace("$$", "$")


@pytest.fixture
def running() -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def wait_until(true: Callable[[], bool], pods: list[Pod], *, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            logs = {pod.name: pod.log.read_text()[-2000:] for pod in pods if pod.log.exists()}
            raise AssertionError(json.dumps(logs, indent=1).replace("\\n", "\n"))
        time.sleep(0.05)


def healthy(pod: Pod) -> bool:
    (superlink,) = pod.spec["initContainers"]
    probe = superlink["startupProbe"]["httpGet"]
    assert probe["scheme"] == "HTTPS"
    trusted = ssl.create_default_context(cafile=pod.root / pod.name / "keys" / "ca.pem")
    try:
        url = f"https://127.0.0.1:{pod.port}{probe['path']}"
        with urllib.request.urlopen(url, timeout=5, context=trusted) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


@pytest.mark.system
def test_the_rendered_pods_train_a_model_and_outlive_the_server_s_pod(
    tmp_path: Path, running: list[subprocess.Popen[bytes]]
) -> None:
    import numpy as np

    port = free_port()
    edges = [{"name": f"edge-{i}", "trainData": "line/x.npz"} for i in range(2)]
    spec = {
        "edges": edges,
        "aggregation": {"rounds": ROUNDS},
        "output": {"model": "out/mean.npz"},
        "security": {"tls": True},
    }
    document = {"apiVersion": "solar-corona.io/v1alpha1", "kind": "FederatedLearningJob", "metadata": {"name": "mean"}}
    file = JobFile(Path("job.yaml"), FederatedLearningJob.model_validate({**document, "spec": spec}))
    objects = render(file, image="example/mean:1", advertise=f"127.0.0.1:{port}")
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "train.py").write_text(SCRIPT)
    for i in range(2):
        data = tmp_path / f"edge-{i}" / "var/lib/solar-corona/data/line"
        data.mkdir(parents=True)
        np.savez(data / "x.npz", x=np.full((5, 4), float(i), np.float32))
    server, *workers = [Pod(tmp_path, objects, o, port=port) for o in objects if o["kind"] == "Job"]

    def start_server() -> subprocess.Popen[bytes]:
        superlink = server.start(server.spec["initContainers"][0])
        running.append(superlink)
        wait_until(lambda: healthy(server), [server])
        server.process = None
        return superlink

    def tend() -> list[int | None]:
        codes = [pod.tend() for pod in (server, *workers)]
        running.extend(pod.process for pod in (server, *workers) if pod.process not in (None, *running))
        assert not any(codes), {pod.name: pod.log.read_text()[-3000:] for pod in (server, *workers)}
        return codes

    superlink = start_server()
    claim = tmp_path / "claims" / "mean-server"
    wait_until(lambda: bool(tend()) and any(claim.glob("*/checkpoint/round-*.bin")), [server, *workers])
    for process in (superlink, server.process):
        assert process is not None
        process.kill()
        process.wait()
    start_server()
    wait_until(lambda: tend() == [0, 0, 0], [server, *workers])

    (model,) = claim.glob("*/out/mean.npz")
    assert np.load(model)["w"] == pytest.approx(np.full(4, 0.5), abs=0.1)
    started = [json.loads(line) for line in next(claim.glob("*/events.jsonl")).read_text().splitlines()]
    assert [event["resumed_at"] > 0 for event in started if "resumed_at" in event] == [False, True]
    for pod in workers:
        runs = tmp_path / pod.name.removeprefix("mean-edge-") / "var/lib/solar-corona/runs"
        assert list(runs.glob("mean/*/edges/*/mean.npz")), "the edge keeps the model on its node"
