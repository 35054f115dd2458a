# SPDX-License-Identifier: Apache-2.0
"""People label in Label Studio (labelstud.io, made for 1.23): tasks with the model's answer, and labels back."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from ...core.errors import DatasetError, SpecError, TemporaryError
from ..hub.hub import LabelSpace
from .label_studio_client import Client, UserError
from .showing import Shown, shown
from .source import Finished, Offer, Setting, SourceStatus

__all__ = ["LabelStudio", "labelling_config"]

_logger = logging.getLogger(__name__)

_PAGE = 100
_AT_ONCE = 50
_FIELDS = "id,updated_at,annotations,result,completed_by,was_cancelled,meta"
_ACTIONS = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED")


class LabelStudio:
    """Keeps a project in a Label Studio for each form of samples: images, sounds, texts and tables.

    Labels are fetched; that Label Studio calls back only makes it sooner.

    Parameters
    ----------
    setting
        What it is made in.
    url
        Label Studio's address.
    token_file
        File with a token of a user there: an access token, or a personal one.
    batch
        Tasks that are ready for people at the same time.
    project
        The projects' title; by default the job's name.
    pre_labels
        Whether people see the model's answer. It saves time where the model is good, and people then tend to agree
        with it: leave it out where labels are to judge models.
    """

    machine = False

    def __init__(
        self,
        setting: Setting,
        url: str,
        *,
        token_file: str,
        batch: int = 200,
        project: str | None = None,
        pre_labels: bool = True,
    ) -> None:
        if isinstance(batch, bool) or not isinstance(batch, int) or not 1 <= batch <= 100_000:
            raise SpecError(f"labelling.options.batch is {batch!r}, expected a whole number from 1 to 100,000")
        if not isinstance(url, str) or not url.startswith(("http://", "https://")):
            raise SpecError(f"labelling.options.url is {url!r}, expected Label Studio's address, http://… or https://…")
        if setting.labels.kind != "text" and not setting.labels.names():
            raise SpecError(
                "Label Studio has to know the classes' names; list them in the job file under model.classes"
            )
        self._setting, self._batch, self._pre_labels = setting, batch, pre_labels
        self._title = f"{project or setting.job}"[:40]
        self._client = Client(url, Path(token_file))
        self._projects: dict[str, int] = {}  # by kind of sample
        self._known: dict[str, str] | None = None  # task of each sample that is there
        self._people: dict[int, str] = {}
        self._seen: dict[int, str] = {}  # when the newest task that was read had changed, by project
        self._calling: set[int] = set()  # projects that call back
        self._out = 0
        self._said = SourceStatus(True, "nothing was asked yet", url)

    def room(self) -> int:
        """Return what is missing from the batch."""
        return max(0, self._batch - self._out)

    def offer(self, samples: Sequence[Offer]) -> Mapping[str, str]:
        """Make tasks, with what the model says as a pre-label; one whose answer was lost is found again."""
        with self._watched():
            known = self._tasks_there()
            found = {each.sample: known[each.sample] for each in samples if each.sample in known}
            kinds: dict[str, list[tuple[Offer, Shown]]] = {}
            for each in (each for each in samples if each.sample not in known):
                try:
                    view = shown(each.content(), each.media_type)
                except DatasetError:
                    continue  # nobody could look at it
                kinds.setdefault("table" if view.kind == "series" else view.kind, []).append((each, view))
            for kind, part in kinds.items():
                for begin in range(0, len(part), _AT_ONCE):
                    found |= self._make_tasks(kind, part[begin : begin + _AT_ONCE])
            known |= found
            self._out += len(found)
        return found

    def withdraw(self, tasks: Sequence[str]) -> None:
        """Delete tasks there, with the samples in them."""
        with self._watched():
            for task in tasks:
                if task.isdigit():
                    self._client.delete(f"/api/tasks/{task}/")
            gone = set(tasks)
            if self._known is not None:
                self._known = {sample: task for sample, task in self._known.items() if task not in gone}

    def poll(self, tasks: Mapping[str, str]) -> Sequence[Finished]:
        """Return the labels of tasks that changed since the last time; after a restart, of all."""
        self._out = len(tasks)
        with self._watched():
            self._tasks_there()
            found: list[Finished] = []
            for project in self._projects.values():
                found += self._changed(project)
        return found

    def status(self) -> SourceStatus:
        """Tell whether it answers, and what to do if it does not."""
        return self._said

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def _watched(self) -> _Watched:
        return _Watched(self)

    def _tasks_there(self) -> dict[str, str]:
        """Return the task of each sample, read once; and find the projects."""
        if self._known is None:
            for kind in ("image", "audio", "text", "table"):
                title = self._project_title(kind)
                answer = self._client.get("/api/projects/", {"title": title})
                same = [each["id"] for each in answer["results"] if each["title"] == title]
                if same:
                    self._projects[kind] = min(same)
            self._known = {
                str(task["meta"]["sample"]): str(task["id"])
                for project in self._projects.values()
                for task in self._tasks(project, "id,meta")
                if isinstance(task.get("meta"), dict) and "sample" in task["meta"]
            }
        return self._known

    def _project_title(self, kind: str) -> str:
        return f"{self._title}: {kind}s"

    def _project(self, kind: str) -> int:
        if kind not in self._projects:
            made = self._client.post(
                "/api/projects/",
                {
                    "title": self._project_title(kind),
                    "label_config": labelling_config(kind, self._setting.labels),
                    "maximum_annotations": self._setting.agreement,
                    "show_collab_predictions": self._pre_labels,
                    "description": f"Samples of the job {self._setting.job}; made by Solar Corona.",
                },
            )
            self._projects[kind] = int(made["id"])
        return self._projects[kind]

    def _ask_for_calls(self, project: int) -> None:
        """Have the hub called when something was labelled, once for each project."""
        if not self._setting.callback or project in self._calling:
            return
        told = self._client.get("/api/webhooks/", {"project": project})
        if not any(each.get("url") == self._setting.callback for each in told):
            asked = {
                "project": project,
                "url": self._setting.callback,
                "send_payload": False,
                "headers": {"X-Webhook-Secret": self._setting.callback_secret},
                "is_active": True,
                "send_for_all_actions": False,
                "actions": list(_ACTIONS),
            }
            try:
                self._client.post("/api/webhooks/", asked)
            except DatasetError as error:
                # Labels are fetched anyway, only later.
                _logger.warning("Label Studio will not call the hub back: %s", error)
        self._calling.add(project)

    def _make_tasks(self, kind: str, part: Sequence[tuple[Offer, Shown]]) -> dict[str, str]:
        project = self._project(kind)
        self._ask_for_calls(project)
        tasks = [self._task(kind, offer, view) for offer, view in part]
        answer = self._client.post(f"/api/projects/{project}/import?return_task_ids=true", tasks)
        made = answer.get("task_ids") or []
        if len(made) != len(tasks):
            self._known = None  # what became of it is read anew
            raise TemporaryError(f"Label Studio made {len(made)} tasks of {len(tasks)}; it is tried again")
        return {offer.sample: str(task) for (offer, _), task in zip(part, made, strict=True)}

    def _task(self, kind: str, offer: Offer, view: Shown) -> dict[str, Any]:
        if kind in ("image", "audio"):
            data: Any = f"data:{view.media_type};base64,{base64.b64encode(view.body).decode()}"
        elif kind == "text":
            data = json.loads(view.body)["text"]
        else:
            data = _table_data(json.loads(view.body))
        task: dict[str, Any] = {"data": {kind: data}, "meta": {"sample": offer.sample}}
        if self._pre_labels and offer.guess is not None:
            result = _result_of(offer.guess, self._setting.labels)
            task["predictions"] = [
                {"model_version": str(offer.model), "score": offer.confidence or 0.0, "result": result}
            ]
        return task

    def _changed(self, project: int) -> list[Finished]:
        seen, found = self._seen.get(project, ""), []
        newest = seen
        for task in self._tasks(project, _FIELDS):
            changed = str(task["updated_at"])
            if changed < seen:
                break
            newest = max(newest, changed)
            sample = task.get("meta", {}).get("sample") if isinstance(task.get("meta"), dict) else None
            if isinstance(sample, str):
                found += [self._finished(sample, each) for each in task.get("annotations", ())]
        self._seen[project] = newest
        return [each for each in found if each is not None]

    def _tasks(self, project: int, fields: str) -> Iterator[dict[str, Any]]:
        """Yield a project's tasks, those changed last first."""
        query = json.dumps({"ordering": ["-tasks:updated_at"]})
        for page in range(1, 10_000):
            asked = {"project": project, "page": page, "page_size": _PAGE, "query": query}
            asked |= {"fields": "all", "include": fields}
            answer = self._client.get("/api/tasks/", asked, missing={"tasks": []})
            tasks = answer["tasks"]
            yield from tasks
            if len(tasks) < _PAGE:
                return

    def _finished(self, sample: str, annotation: Mapping[str, Any]) -> Finished | None:
        by, at = self._person(annotation.get("completed_by")), _time(annotation.get("updated_at"))
        if annotation.get("was_cancelled"):
            return Finished(sample, by, skipped=True, at=at)
        try:
            value = _value_of(annotation.get("result") or [], self._setting.labels)
        except (KeyError, TypeError, IndexError, ValueError):
            return None  # an annotation of somebody who changed the project's form: it says nothing to us
        return Finished(sample, by, value=value, at=at) if value is not None else None

    def _person(self, who: Any) -> str:
        number = who.get("id") if isinstance(who, dict) else who
        if not isinstance(number, int):
            return "label-studio"
        if number not in self._people:
            self._people = {int(user["id"]): str(user["email"])[:200] for user in self._client.get("/api/users/", {})}
        return self._people.get(number, f"label-studio user {number}")


class _Watched:
    """Notes how an exchange with Label Studio went, for its status."""

    def __init__(self, source: LabelStudio) -> None:
        self._source = source

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        source = self._source
        link = source._client.url  # noqa: SLF001
        if error is None:
            source._said = SourceStatus(True, f"{source._out} tasks wait for people in Label Studio", link)  # noqa: SLF001
        elif isinstance(error, TemporaryError | UserError):
            source._said = SourceStatus(False, str(error), link)  # noqa: SLF001


def labelling_config(kind: str, labels: LabelSpace) -> str:
    """Return the form that people fill in: the sample, and what there is to choose.

    >>> print(labelling_config("text", LabelSpace(classes=("spam", "ham"))))
    <View><Text name="sample" value="$text"/><Choices name="label" toName="sample" choice="single" \
showInline="true" required="true"><Choice value="spam" hotkey="1"/><Choice value="ham" hotkey="2"/></Choices></View>
    """
    tag = {"image": "Image", "audio": "Audio", "text": "Text", "table": "Table"}[kind]
    sample = f'<{tag} name="sample" value="${kind}"/>'
    names = [quoteattr(name) for name in labels.names()]
    if labels.kind == "text":
        form = '<TextArea name="label" toName="sample" required="true" maxSubmissions="1"/>'
    elif labels.kind == "boxes":
        values = "".join(f"<Label value={name}/>" for name in names)
        form = f'<RectangleLabels name="label" toName="sample">{values}</RectangleLabels>'
    else:
        keys = "1234567890"
        choices = "".join(
            f"<Choice value={name}" + (f' hotkey="{keys[place]}"' if place < len(keys) else "") + "/>"
            for place, name in enumerate(names)
        )
        form = (
            '<Choices name="label" toName="sample" choice="single" showInline="true" required="true">'
            f"{choices}</Choices>"
        )
    return f"<View>{sample}{form}</View>"


def _result_of(value: Any, labels: LabelSpace) -> list[dict[str, Any]]:
    """Return a label as Label Studio's result."""
    common = {"from_name": "label", "to_name": "sample"}
    names = labels.names()
    if labels.kind == "text":
        return [{**common, "type": "textarea", "value": {"text": [value]}}]
    if labels.kind == "classes":
        return [{**common, "type": "choices", "value": {"choices": [names[value]]}}]
    return [
        {
            **common,
            "type": "rectanglelabels",
            "value": {
                "x": 100 * x1, "y": 100 * y1, "width": 100 * (x2 - x1), "height": 100 * (y2 - y1), "rotation": 0,
                "rectanglelabels": [names[int(label)]],
            },
        }
        for x1, y1, x2, y2, label in value
    ]  # fmt: skip


def _value_of(result: Sequence[Mapping[str, Any]], labels: LabelSpace) -> Any:
    """Return Label Studio's result as a label; None where nothing was chosen."""
    values = [each["value"] for each in result if each.get("from_name") == "label"]
    if labels.kind == "boxes":
        return [_box_of(value) for value in values]
    if not values:
        return None
    return values[0]["choices"][0] if labels.kind == "classes" else "\n".join(values[0]["text"])


def _box_of(value: Mapping[str, Any]) -> list[Any]:
    x, y, width, height = (float(value[name]) / 100 for name in ("x", "y", "width", "height"))
    return [max(x, 0.0), max(y, 0.0), min(x + width, 1.0), min(y + height, 1.0), value["rectanglelabels"][0]]


def _table_data(told: Mapping[str, Any]) -> Any:
    if "series" in told:
        return [
            {str(curve): values[place] for curve, values in enumerate(told["series"])}
            for place in range(len(told["series"][0]))
        ]
    return [dict(zip(told["columns"], row, strict=True)) for row in told["rows"]]


def _time(text: Any) -> float:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return 0.0
