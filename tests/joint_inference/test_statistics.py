# SPDX-License-Identifier: Apache-2.0
"""What an edge counts while it answers."""

from __future__ import annotations

import io
import json
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from solar_corona.joint_inference.statistics import Latencies, Recorder, statistics_file
from solar_corona.joint_inference.view import InferenceView


def printed(recorder: Recorder) -> str:
    console = Console(file=io.StringIO(), width=2000)
    console.print(InferenceView(["a"], {"a": recorder.snapshot()}).table())
    return console.file.getvalue()


@given(st.lists(st.floats(1e-6, 500), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_quantile_is_exact_to_five_percent(seconds, share):
    found = Latencies()
    for value in seconds:
        found.add(value)
    exact = float(np.quantile(seconds, share, method="inverted_cdf"))
    assert found.quantile(share) == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e9])
def test_a_duration_beyond_all_bounds_is_counted(seconds):
    found = Latencies()
    found.add(seconds)
    assert found.count == 1
    assert found.quantile(0.5) > 0


def test_no_answers_have_no_latency():
    assert Latencies().quantile(0.5) is None
    assert Recorder("a").snapshot().frames_per_second == 0


def test_threads_lose_no_count():
    recorder = Recorder("a")

    def work():
        for _ in range(1000):
            recorder.answered("edge", 0.001)
            recorder.uploaded(bytes_up=3, bytes_down=2)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = recorder.snapshot()
    assert (found.frames, found.uploads, found.bytes_up, found.bytes_down) == (8000, 8000, 24000, 16000)
    assert found.sources["edge"].answers == 8000
    assert found.upload_ratio == 1


def test_status_tells_why_the_deep_model_does_not_answer_until_it_does():
    recorder = Recorder("a")
    recorder.answered("edge", 0.1, degraded=True)
    recorder.told(circuit="open", trouble="http://large: cannot be reached" + "!" * 1000)
    shown = printed(recorder)
    assert "a: http://large: cannot be reached!" in shown
    assert len(recorder.snapshot().trouble) == 500
    recorder.told(trouble="")
    assert "cannot be reached" not in printed(recorder)


def test_the_last_snapshot_lies_in_the_run_folder(tmp_path):
    path = statistics_file(tmp_path, "camera-1")
    recorder = Recorder("camera-1", path, algorithm={"name": "margin"})
    recorder.answered("cloud", 0.2)
    recorder.answered("edge", 0.002, degraded=True)
    recorder.told(circuit="open", model="small", deep_model="large 3")
    recorder.close()
    said = json.loads(path.read_text())
    assert (said["frames"], said["degraded"], said["circuit"]) == (2, 1, "open")
    assert said["sources"]["cloud"]["p50_ms"] == pytest.approx(200, rel=0.05)
    assert (said["model"], said["deep_model"], said["algorithm"]) == ("small", "large 3", {"name": "margin"})


def test_an_algorithm_that_describes_itself_in_no_json_does_not_stop_the_statistics(tmp_path):
    path = statistics_file(tmp_path, "a")
    recorder = Recorder("a", path, algorithm={"name": "own", "pairs": {frozenset((1, 2))}})
    recorder.answered("edge", 0.002)
    recorder.close()
    said = json.loads(path.read_text())
    assert said["frames"] == 1
    assert said["algorithm"] == {"name": "own", "pairs": "{frozenset({1, 2})}"}


def test_two_models_of_one_script_are_counted_together(tmp_path):
    path = statistics_file(tmp_path, "a")
    first, second = (Recorder("a", path) for _ in range(2))
    first.told(model="cars", circuit="open", trouble="away")
    for _ in range(300):
        first.answered("edge", 0.001)
    second.told(model="plates")
    second.answered("cloud", 0.1)
    second.uploaded(bytes_up=10, bytes_down=5)
    for recorder in (first, second):
        recorder.close()
    said = json.loads(path.read_text())
    assert (said["frames"], said["uploads"], said["bytes_up"], said["bytes_down"]) == (301, 1, 10, 5)
    assert (said["circuit"], said["trouble"], said["model"]) == ("open", "away", "cars, plates")
    assert said["sources"]["edge"]["answers"] == 300
    assert said["sources"]["cloud"]["p50_ms"] == pytest.approx(100, rel=0.05)


def test_a_folder_that_cannot_be_written_is_told_and_stops_nothing(tmp_path, caplog):
    (tmp_path / "edges").write_text("a file where a folder should be")
    recorder = Recorder("a", statistics_file(tmp_path, "a"))
    recorder.answered("edge", 0.1)
    recorder.close()
    assert "statistics cannot be written" in caplog.text
    assert recorder.snapshot().frames == 1
