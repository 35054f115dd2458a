# SPDX-License-Identifier: Apache-2.0
"""Datasets of every form, from a disk, memory, a web server and an S3 server."""

from __future__ import annotations

import doctest
import subprocess
import sys
import threading
import warnings
import zipfile
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from solar_corona.core.context_document import ContextDocument
from solar_corona.core.errors import DatasetError
from solar_corona.core.spec import DatasetSource
from solar_corona.lib import context, datasets
from solar_corona.lib.datasets import load_dataset, load_eval_dataset, load_train_dataset

X, Y = np.arange(12, dtype=np.float32).reshape(4, 3), np.array([0, 1, 0, 2])


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.delenv("SOLAR_CORONA_CONTEXT", raising=False)


def _document(**data: DatasetSource | None) -> ContextDocument:
    return ContextDocument(
        job="digits",
        kind="FederatedLearningJob",
        run="1",
        role="edge",
        worker="north",
        run_folder="/",
        **data,
    )


def _csv(folder, text: str) -> str:
    path = folder / "data.csv"
    path.write_text(text)
    return str(path)


def _images(folder, sizes=((4, 3),)) -> str:
    for number, (height, width) in enumerate(sizes):
        for color, name in enumerate(("cat", "dog")):
            (folder / name).mkdir(exist_ok=True)
            Image.new("RGB", (width, height), (color * 255, 0, 7)).save(folder / name / f"{number}.png")
    (folder / "dog" / ".hidden.png").write_text("")
    (folder / "dog" / "notes.txt").write_text("")
    return str(folder)


# Where data is


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A folder and the address of a web server that serves it."""
    folder = tmp_path_factory.mktemp("served")

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def bucket():
    """A bucket on a real S3 server."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from moto.server import ThreadedMotoServer

        server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
            patch.setenv("AWS_ACCESS_KEY_ID", "test")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            filesystem = fsspec.filesystem("s3", skip_instance_cache=False)
            filesystem.mkdir("samples")
            yield filesystem
        server.stop()


def test_a_path_a_file_url_memory_and_the_web_are_the_same(tmp_path, served):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    data = (tmp_path / "a.npz").read_bytes()
    fsspec.filesystem("memory").pipe("/d/a.npz", data)
    (served[0] / "a.npz").write_bytes(data)
    local = [tmp_path / "a.npz", f"file://{tmp_path}/a.npz"]
    for place in [*local, "memory://d/a.npz", f"{served[1]}/a.npz?token=t"]:
        x, y = load_dataset(place)
        np.testing.assert_array_equal(x, X)
        np.testing.assert_array_equal(y, Y)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_files_and_folders_of_images_on_s3_are_the_same(bucket, tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    bucket.put(str(tmp_path / "a.npz"), "samples/a.npz")
    np.testing.assert_array_equal(load_dataset("s3://samples/a.npz").x, X)
    (tmp_path / "pets").mkdir()
    bucket.put(_images(tmp_path / "pets"), "samples/pets", recursive=True)
    remote, local = load_dataset("s3://samples/pets/"), load_dataset(tmp_path / "pets")
    np.testing.assert_array_equal(remote.x, local.x)
    assert remote.y.tolist() == [0, 1]
    with pytest.raises(DatasetError, match=r"s3://samples/b\.npz: there is no such file"):
        load_dataset("s3://samples/b.npz")


def test_a_missing_file_is_told_with_its_near_names(tmp_path):
    (tmp_path / "train.npz").touch()
    with pytest.raises(DatasetError, match=r"trian\.npz: there is no such file; in .* there is train\.npz"):
        load_dataset(tmp_path / "trian.npz")
    with pytest.raises(DatasetError, match="nor the folder"):
        load_dataset(tmp_path / "no" / "train.npz")


def test_a_404_says_that_there_is_no_such_file(served):
    with pytest.raises(DatasetError, match=r"http://.*/none\.npz: there is no such file.*; check path"):
        load_dataset(f"{served[1]}/none.npz?token=secret")


def test_an_unknown_protocol_or_form_is_told():
    with pytest.raises(DatasetError, match=r"no such file .Protocol not known: ftpx.*check path"):
        load_dataset("ftpx://host/a.npz")
    with pytest.raises(DatasetError, match=r"memory://a\.dat: the name's ending does not tell.*set format"):
        load_dataset("memory://a.dat")


# Jobs


def test_a_job_gives_each_edge_its_own_data(tmp_path):
    np.savez(tmp_path / "a", x=X, y=Y)
    np.savez(tmp_path / "b", images=X[:2], labels=Y[:2])
    document = _document(
        train_data=DatasetSource(path=f"{tmp_path}/a.npz"),
        eval_data=DatasetSource(path=f"{tmp_path}/b.npz", x="images", y="labels"),
    )
    with context.using(document):
        assert [len(part) for part in load_train_dataset()] == [4, 4]
        assert [len(part) for part in load_eval_dataset()] == [2, 2]


def test_without_a_job_the_error_says_how_to_go_on():
    with pytest.raises(DatasetError, match=r"alone; start it with `solar-corona run .* load_dataset\(path\)"):
        load_train_dataset()


def test_a_job_without_evaluation_data_says_what_to_add(tmp_path):
    with (
        context.using(_document(train_data=DatasetSource(path="a.npz"))),
        pytest.raises(DatasetError, match=r"edge 'north' has no evalData; add evalData: PATH"),
    ):
        load_eval_dataset()


def test_errors_in_a_job_name_the_jobs_field(tmp_path):
    np.savez(tmp_path / "a", image=X, y=Y)
    document = _document(train_data=DatasetSource(path=f"{tmp_path}/a.npz", x="images"))
    with (
        context.using(document),
        pytest.raises(
            DatasetError, match=r"no array 'images'; did you mean 'image'\? It has image, y; set trainData\.x"
        ),
    ):
        load_train_dataset()


# npz and npy


@given(
    x=arrays.arrays(
        st.sampled_from([np.float32, np.uint8, np.int64, np.bool_]),
        st.tuples(st.just(3), st.integers(0, 4), st.integers(0, 4)),
    ),
    y=arrays.arrays(np.int64, 3),
    packed=st.booleans(),
)
def test_arrays_come_back_as_they_were_saved(tmp_path_factory, x, y, packed):
    path = tmp_path_factory.getbasetemp() / "round.npz"
    (np.savez_compressed if packed else np.savez)(path, x=x, y=y)
    back = load_dataset(path)
    assert (back.x.dtype, back.x.shape) == (x.dtype, x.shape)
    np.testing.assert_array_equal(back.x, x)
    np.testing.assert_array_equal(back.y, y)


def test_the_usual_names_are_taken_only_if_nothing_else_is_in_the_file(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x_train=X, y_train=Y)
    assert len(load_dataset(path).x) == 4
    np.savez(path, x_train=X, y_train=Y, x_test=X, y_test=Y)
    with pytest.raises(DatasetError, match=r"no array 'x'; it has x_train, y_train, x_test, y_test; set x"):
        load_dataset(path)
    assert len(load_dataset(DatasetSource(path=str(path), x="x_test", y="y_test")).y) == 4


def test_an_npy_file_has_features_alone(tmp_path):
    np.save(tmp_path / "a.npy", X)
    x, y = load_dataset(tmp_path / "a.npy")
    np.testing.assert_array_equal(x, X)
    assert y is None
    with pytest.raises(DatasetError, match=r"holds one array without a name"):
        load_dataset(DatasetSource(path=str(tmp_path / "a.npy"), y="label"))


def test_an_empty_dataset_is_no_error(tmp_path):
    np.savez(tmp_path / "a.npz", x=X[:0], y=Y[:0])
    (tmp_path / "images" / "cat").mkdir(parents=True)
    for place, shape in [
        ("a.npz", (0, 3)),
        (_csv(tmp_path, "a,b,label\n"), (0, 2)),
        ("images", (0, 0, 0, 3)),
    ]:
        x, y = load_dataset(tmp_path / place)
        assert (x.shape, y.shape) == (shape, (0,))


def test_pickled_objects_are_refused_with_the_way_to_save_them(tmp_path):
    ragged = np.array([[1], [1, 2]], dtype=object)
    np.savez(tmp_path / "a.npz", x=ragged, y=Y[:2])
    np.save(tmp_path / "a.npy", ragged)
    for name in ("a.npz", "a.npy"):
        with pytest.raises(DatasetError, match=r"holds Python objects.*np\.savez\(path, x=np\.stack"):
            load_dataset(tmp_path / name)


@pytest.mark.parametrize("cut", [0, 10, 200, -30])
def test_a_cut_file_is_told_as_damaged(tmp_path, cut):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    data = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(data[:cut])
    with pytest.raises(DatasetError, match=r"a\.npz: is no \.npz file, or is damaged or cut short"):
        load_dataset(tmp_path / "a.npz")


@given(place=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_changed_byte_gives_data_or_a_dataset_error(tmp_path_factory, place, byte):
    path = tmp_path_factory.getbasetemp() / "changed.npz"
    np.savez_compressed(path, x=X, y=Y)
    data = bytearray(path.read_bytes())
    data[place % len(data)] = byte
    path.write_bytes(data)
    with suppress(DatasetError):
        load_dataset(path)


def test_an_array_that_grows_a_thousandfold_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"\x93NUMPY")
        archive.writestr("y.npy", b"\x93NUMPY")
        archive.filelist[0].file_size = 5 << 30
    with pytest.raises(DatasetError, match=r"'x' would grow from .* to 5,368,709,120 bytes"):
        load_dataset(tmp_path / "a.npz")


def test_an_array_larger_than_memory_is_refused(tmp_path):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(DatasetError, match=r"a\.npy"):
        load_dataset(tmp_path / "a.npy")


def test_words_as_labels_in_an_npz_become_numbers(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=np.array(["b", "a", "b", "c"]))
    samples = load_dataset(tmp_path / "a.npz")
    assert (samples.y.tolist(), samples.class_names) == ([1, 0, 1, 2], ("a", "b", "c"))


# csv and parquet

_cells = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(rows=st.lists(st.tuples(_cells, _cells, st.sampled_from(["cat", "dog", "a,b", "ü"])), min_size=1))
def test_tables_come_back_as_they_were_written(tmp_path_factory, rows):
    folder = tmp_path_factory.getbasetemp()
    table = pa.table({"a": [r[0] for r in rows], "b": [r[1] for r in rows], "kind": [r[2] for r in rows]})
    pa.csv.write_csv(table, folder / "round.csv")
    pa.parquet.write_table(table, folder / "round.parquet")
    for name in ("round.csv", "round.parquet"):
        samples = load_dataset(folder / name)
        np.testing.assert_array_equal(samples.x, np.array([r[:2] for r in rows], np.float32))
        assert [samples.class_names[code] for code in samples.y] == [r[2] for r in rows]


def test_the_last_column_is_the_label_unless_the_source_names_one(tmp_path):
    path = _csv(tmp_path, "label,a,b\n5,1,2\n6,3,4\n")
    assert load_dataset(path).y.tolist() == [2, 4]
    x, y = load_dataset(DatasetSource(path=path, y="label"))
    assert (x.dtype, x.tolist(), y.dtype, y.tolist()) == (np.float32, [[1, 2], [3, 4]], np.int64, [5, 6])
    assert load_dataset(DatasetSource(path=path, x="b", y="label")).x.tolist() == [[2], [4]]


def test_labels_that_are_no_whole_numbers_are_float32(tmp_path):
    assert load_dataset(_csv(tmp_path, "a,price\n1,2.5\n")).y.dtype == np.float32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,y\n1,,0\n2,,0\n", r"column 'b' has 2 missing value\(s\), the first in row 1"),
        ("a,b,y\n1,2,0\n2,NaN,0\n", r"column 'b' has 1 missing value\(s\), the first in row 2"),
        ("a,y\n1,cat\n2,\n", r"column 'y' has 1 missing value\(s\), the first in row 2"),
        ("town,y\nOslo,0\n", r"column 'town' holds string, such as 'Oslo' in row 1, expected numbers"),
        ("a,y\n1,0\n2,0\nn/k,0\n", r"column 'a' holds string, such as 'n/k' in row 3, expected numbers"),
        ("a,a,y\n1,2,0\n", r"column 'a' stands more than once"),
        ("a,y\n1,2,3\n", r"cannot be read as CSV .*Expected 2 columns, got 3"),
        ("", r"cannot be read as CSV"),
    ],
)
def test_a_table_that_cannot_be_used_is_told_by_its_column(tmp_path, text, message):
    with pytest.raises(DatasetError, match=rf"data\.csv: {message}"):
        load_dataset(_csv(tmp_path, text))


def test_a_column_that_is_not_there_is_told_with_its_near_name(tmp_path):
    path = _csv(tmp_path, "width,height,kind\n1,2,0\n")
    with pytest.raises(DatasetError, match=r"no column 'widht'; did you mean 'width'\? It has .*; set x to"):
        load_dataset(DatasetSource(path=path, x=["widht"]))
    with pytest.raises(DatasetError, match=r"column 'kind' is both a feature and the label; set y"):
        load_dataset(DatasetSource(path=path, x=["kind"]))


def test_missing_numbers_in_parquet_are_told_also_as_nan(tmp_path):
    table = pa.table({"a": [1.0, float("nan")], "b": pa.array([None, 1]), "y": [0, 1]})
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DatasetError, match="column 'a' has 1 missing"):
        load_dataset(tmp_path / "a.parquet")
    with pytest.raises(DatasetError, match="column 'b' has 1 missing"):
        load_dataset(DatasetSource(path=str(tmp_path / "a.parquet"), x="b"))
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DatasetError, match="cannot be read as Parquet"):
        load_dataset(tmp_path / "a.parquet")


def test_given_classes_number_the_labels_the_same_on_every_edge(tmp_path):
    path = _csv(tmp_path, "a,kind\n1,dog\n2,frog\n")
    assert load_dataset(path, classes=["cat", "dog", "frog"]).y.tolist() == [1, 2]
    with pytest.raises(DatasetError, match=r"labels that are not in classes: frog; add them"):
        load_dataset(path, classes=["cat", "dog"])


# Images


def test_sub_folders_are_the_classes_of_images(tmp_path):
    samples = load_dataset(_images(tmp_path, sizes=((4, 3), (4, 3))))
    assert (samples.x.shape, samples.x.dtype) == ((4, 4, 3, 3), np.uint8)
    assert (samples.y.tolist(), samples.class_names) == ([0, 0, 1, 1], ("cat", "dog"))
    assert samples.x[3, 0, 0].tolist() == [255, 0, 7]
    assert load_dataset(tmp_path, classes=["ape", "cat", "dog"]).y.tolist() == [1, 1, 2, 2]


def test_images_of_different_sizes_need_a_size(tmp_path):
    path = _images(tmp_path, sizes=((4, 3), (5, 6)))
    with pytest.raises(DatasetError, match=r"cat/1\.png is 5×6 pixels, and cat/0\.png is 4×3 .*set size"):
        load_dataset(path)
    assert load_dataset(DatasetSource(path=path, size=(8, 2))).x.shape == (4, 8, 2, 3)


def test_a_damaged_image_is_told_by_its_name(tmp_path):
    path = _images(tmp_path)
    data = (tmp_path / "dog" / "0.png").read_bytes()
    for bad in (b"no image", data[:40], b""):
        (tmp_path / "dog" / "0.png").write_bytes(bad)
        with pytest.raises(DatasetError, match=r"dog/0\.png cannot be read as an image"):
            load_dataset(path)


@pytest.mark.parametrize("limit", [5, 10])
def test_an_image_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DatasetError, match=r"cat/0\.png has far more pixels"):
        load_dataset(_images(tmp_path))


def test_images_without_sub_folders_are_told(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match="has images but no sub-folder"):
        load_dataset(tmp_path)


# Parse


def test_parse_sees_the_whole_data_and_its_result_is_taken(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    x, y = load_dataset(tmp_path / "a.npz", parse=lambda x, y: (x[::2] / 2, y[::2].tolist()))
    assert (x.shape, y.tolist()) == ((2, 3), [0, 0])


@pytest.mark.parametrize(
    ("parse", "message"),
    [
        (lambda x, y: None, r"what parse returned is a NoneType, expected the pair"),
        (lambda x, y: (x, y, x), r"what parse returned is 3 values, expected the pair"),
        (lambda x, y: (x, y[1:]), r"what parse returned: x has 4 samples and y has 3 labels"),
        (lambda x, y: ([[1], [1, 2]], y), r"what parse returned is no array"),
        (lambda x, y: ({"a": 1}, y), r"what parse returned holds Python objects"),
        (lambda x, y: (None, y), r"what parse returned has None for x"),
    ],
)
def test_a_parse_that_returns_something_else_is_told(tmp_path, parse, message):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    with pytest.raises(DatasetError, match=message):
        load_dataset(tmp_path / "a.npz", parse=parse)


def test_as_many_labels_as_samples_are_expected(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y[1:])
    with pytest.raises(DatasetError, match=r"a\.npz: x has 4 samples and y has 3 labels"):
        load_dataset(tmp_path / "a.npz")


# Packages


def test_no_engine_is_imported_and_a_missing_package_is_told_by_its_extra(tmp_path):
    (tmp_path / "images" / "cat").mkdir(parents=True)
    (tmp_path / "images" / "cat" / "a.png").touch()
    script = f"""
import sys
from solar_corona.lib.datasets import load_dataset
assert not {{"tensorflow", "keras", "torch", "pyarrow", "PIL", "flwr", "aiohttp"}} & set(sys.modules)
sys.modules.update(dict.fromkeys(["pyarrow", "PIL", "s3fs"]))
for path in {[_csv(tmp_path, "a,y"), str(tmp_path / "images"), "s3://b/a.npz"]}:
    try:
        load_dataset(path)
    except ValueError as error:
        print(str(error).rpartition("; ")[2])
"""
    told = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert told.stdout.splitlines() == [f"pip install 'solar-corona[{extra}]'" for extra in ("data", "data", "s3")]


def test_the_examples_in_the_docstrings_run():
    assert doctest.testmod(datasets).failed == 0
