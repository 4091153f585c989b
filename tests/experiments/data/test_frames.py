"""Every way to hold a table: text, arrays, and what pandas and Arrow hold or write."""

import sys

import numpy as np
import pytest

from experiments.data import anomalies
from experiments.data.frames import read_frame, read_numbers


@pytest.mark.quick
def test_files_and_tables_in_memory_are_one_table(tmp_path):
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    from pyarrow import feather, ipc, parquet

    rng = np.random.RandomState(0)
    x, y, colour = rng.normal(size=9), 1e6 * rng.normal(size=9), 3 * ["red", "b", "c"]
    lines = [f"{a!s},{b!s},{c}" for a, b, c in zip(x, y, colour)]
    (tmp_path / "a.csv").write_text("\n".join(["x,y,colour", *lines]) + "\n")
    frame = pandas.DataFrame({"x": x, "y": y, "colour": colour})
    table = pyarrow.Table.from_pandas(frame)
    parquet.write_table(table, tmp_path / "a.parquet")
    feather.write_feather(table, tmp_path / "a.feather")
    with ipc.new_stream(tmp_path / "a.arrow", table.schema) as stream:
        stream.write_table(table)
    sources = [tmp_path / f"a.{end}" for end in ("csv", "parquet", "feather", "arrow")]
    sources += [str(tmp_path / "a.csv"), frame, table]
    sources += [frame.astype({"colour": "category", "x": "Float64"})]
    sources += [frame.convert_dtypes(dtype_backend="pyarrow")]
    for source in sources:
        found = read_frame(source)
        assert found.names == ("x", "y", "colour")
        np.testing.assert_array_equal(found.columns[0], x)
        np.testing.assert_array_equal(found.columns[1], y)
        assert found.columns[2].tolist() == colour


def test_arrays_have_numbered_columns_in_files_and_in_memory(tmp_path):
    array = np.arange(6).reshape(3, 2)
    np.save(tmp_path / "a.npy", array)
    for source in (array, tmp_path / "a.npy", array.tolist()):
        found = read_frame(source)
        assert found.names == ("column 1", "column 2")
        np.testing.assert_array_equal(np.stack(found.columns, 1), array)
    with pytest.raises(ValueError, match=r"numbers \[n, columns\], got int64 \(6,\)"):
        read_frame(array.ravel())


def test_missing_cells_are_the_same_in_every_table(tmp_path):
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    (tmp_path / "a.csv").write_text("n,k,t\n1,?,a\n NA ,2,\nnan,3,None\n")
    frame = pandas.DataFrame({"n": [1, None, np.nan], "k": [None, 2, 3]})
    frame["k"] = frame["k"].astype("Int64")
    frame["t"] = ["a", None, np.nan]
    table = pyarrow.table({"n": [1.0, None, None], "k": [None, 2, 3]})
    table = table.append_column("t", pyarrow.array(["a", None, None]))
    for source in (tmp_path / "a.csv", frame, table):
        n, k, t = read_frame(source).columns
        np.testing.assert_array_equal(n, [1, np.nan, np.nan])
        np.testing.assert_array_equal(k, [np.nan, 2, 3])
        assert t.tolist() == ["a", None, None]


def test_columns_that_are_neither_numbers_nor_text_are_refused_by_name(tmp_path):
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    days = pandas.to_datetime(["2020-01-01", "2020-01-02"])
    with pytest.raises(ValueError, match="'day' must be numbers or text, got datetime"):
        read_frame(pandas.DataFrame({"day": days}))
    table = pyarrow.table({"list": [[1], [2]]})
    with pytest.raises(ValueError, match="'list' must be numbers or text, got list"):
        read_frame(table)
    with pytest.raises(ValueError, match="columns of different names, got .*'a', 'a'"):
        read_frame(pandas.DataFrame([[1, 2]], columns=["a", "a"]))
    (tmp_path / "a.parquet").write_bytes(b"none")
    with pytest.raises(ValueError, match="a.parquet cannot be read"):
        read_frame(tmp_path / "a.parquet")
    with pytest.raises(FileNotFoundError, match="there is no file .*b.parquet"):
        read_frame(tmp_path / "b.parquet")


def test_without_pyarrow_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match="a.parquet is read by pyarrow: pip install"):
        read_frame(tmp_path / "a.parquet")


def test_anomalies_are_looked_for_in_such_files_too(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    (tmp_path / "a.csv").write_text("a,b,bad\n1,10,0\n3,30,0\n99,99,1\n")
    frame = pandas.DataFrame({"b": [20, 10], "bad": [1, 0], "a": [2, 3]})
    frame.to_parquet(tmp_path / "b.parquet")
    data = anomalies.tables(
        tmp_path / "a.csv", tmp_path / "b.parquet", label_column="bad"
    )
    np.testing.assert_allclose(data.train, [[-1, -1], [1, 1]])
    np.testing.assert_allclose(data.test, [[0, 0], [1, -1]])
    assert data.is_anomaly.tolist() == [True, False]
    frame.loc[1, "bad"] = 2
    frame.to_parquet(tmp_path / "b.parquet")
    with pytest.raises(
        ValueError, match="b.parquet, row 2, column 'bad': a label must"
    ):
        anomalies.tables(tmp_path / "a.csv", tmp_path / "b.parquet", label_column="bad")
    frame["a"] = [None, 1.0]
    with pytest.raises(ValueError, match="the frame, row 1, column 'a': .* is missing"):
        read_numbers(frame)
