# SPDX-License-Identifier: Apache-2.0
"""What the kinds of documents have in common, as pydantic models."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

__all__ = [
    "API_VERSION",
    "Dataset",
    "DatasetSource",
    "EnvName",
    "Metadata",
    "Model",
    "ModelSource",
    "Name",
    "Parameter",
    "Part",
    "Resource",
    "Security",
]

API_VERSION: Literal["solar-corona.io/v1alpha1"] = "solar-corona.io/v1alpha1"

_ENV_NAME = re.compile(r"[A-Za-z_][-A-Za-z0-9_.]*")


def _env_name(name: str) -> str:
    if not _ENV_NAME.fullmatch(name):
        raise ValueError(f"{name!r} names no environment variable; use letters, digits and '_'")
    return name


Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
EnvName = Annotated[str, AfterValidator(_env_name)]  # no pattern: a CRD's schema knows none for the keys of a map
Pixels = Annotated[int, Field(ge=1, le=100_000)]
Parameter = str | int | float | bool | None | list[Any] | dict[str, Any]


class Part(BaseModel):
    """One part of a job file: camelCase outside, unknown fields refused, never changed after it was read."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class Metadata(Part):
    """What a document is called."""

    name: Name = Field(description="Name of the document; lower-case letters, digits and '-', at most 63.")
    namespace: Name | None = Field(default=None, description="Kubernetes namespace; on a laptop it is ignored.")
    labels: dict[str, str] = Field(default_factory=dict, description="Kubernetes labels.")
    annotations: dict[str, str] = Field(default_factory=dict, description="Kubernetes annotations.")


class DatasetSource(Part):
    """Where samples are and how to read them."""

    path: str = Field(min_length=1, description="File, folder or URL (s3://, https://); relative to the job file.")
    format: Literal["npz", "npy", "csv", "parquet", "images"] | None = Field(
        default=None, description="Form of the data; by default told by the name's ending."
    )
    x: str | list[str] | None = Field(
        default=None,
        description="Array (npz) or columns (csv, parquet) of the features; by default x, or all others.",
    )
    y: str | None = Field(
        default=None,
        description="Array (npz) or column (csv, parquet) of the labels; by default y, or the last column.",
    )
    size: tuple[Pixels, Pixels] | None = Field(
        default=None, description="Height and width in pixels to which images are resized."
    )


class ModelSource(Part):
    """A model that exists already."""

    path: str = Field(min_length=1, description="File or URL; relative to the job file.")
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        default=None, description="SHA-256 that the file must have."
    )


class Security(Part):
    """Protection of the connection between server and edges."""

    tls: bool = Field(
        default=False,
        description="Encrypt, with a CA made for the run, and let only this job's edges in, by their keys.",
    )


class Resource(Part):
    """One document: what it is and what it is called."""

    api_version: Literal["solar-corona.io/v1alpha1"] = Field(description="Group and version of the document.")
    metadata: Metadata = Field(description="What the document is called.")


class Dataset(Resource):
    """Samples under a name that jobs can use."""

    kind: Literal["Dataset"]
    spec: DatasetSource


class Model(Resource):
    """A model under a name that jobs can use."""

    kind: Literal["Model"]
    spec: ModelSource
