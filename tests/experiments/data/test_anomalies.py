"""Data for anomaly detection: the published protocols, and the user's own tables.

Real files are read where the environment says they are: `EBMJAX_DATA`, a folder of data
sets as published.
"""

import gzip
import os

import numpy as np
import pytest

from experiments.data import anomalies

# KDD Cup 99


def kdd_line(index, label):
    """A row of 41 cells: some of the categories' values, numbers by the row."""
    cells = [str(index + column) for column in range(41)]
    cells[1] = ("tcp", "udp", "icmp")[index % 3]
    cells[2], cells[3] = ("http", "smtp")[index % 2], ("SF", "REJ")[index % 2]
    for column in (6, 11, 20, 21):
        cells[column] = str(index % 2)
    cells[0] = "7"  # constant
    return ",".join([*cells, label])


def write_kdd(folder, monkeypatch, num_normal):
    """400 rows, so many of them normal, evenly."""
    monkeypatch.setattr(anomalies, "NUM_ROWS", 400)
    monkeypatch.setattr(anomalies, "NUM_NORMAL", num_normal)
    every = 400 // num_normal
    lines = [kdd_line(i, "smurf." if i % every else "normal.") for i in range(400)]
    with gzip.open(folder / anomalies.KDD_FILE, "wt") as file:
        file.write("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def small_kdd(tmp_path, monkeypatch):
    """400 rows, 80 of them normal, in the published form."""
    return write_kdd(tmp_path, monkeypatch, 80)


def test_categories_become_columns_and_normal_rows_are_the_anomalies(small_kdd):
    data = anomalies.kdd99(small_kdd)
    # 34 numbers, and 3 + 2 + 2 + 4 times 2 values.
    assert data.train.shape[1] == len(data.columns) == 34 + 3 + 2 + 2 + 8
    assert data.columns[1:4] == (
        "protocol_type=icmp",
        "protocol_type=tcp",
        "protocol_type=udp",
    )
    # "src_bytes" of row i is i + 4: rows are known again by it.
    column = data.columns.index("src_bytes")
    train, test = (rows[:, column] - 4 for rows in (data.train, data.test))
    assert np.all(train % 5 != 0)  # nothing normal is trained on
    np.testing.assert_array_equal(data.is_anomaly, test % 5 == 0)
    assert not set(train) & set(test)
    assert len(train) + np.sum(~data.is_anomaly) == 320  # no attack is lost
    # A fifth at most: no more than a quarter of the attacks.
    assert data.is_anomaly.sum() <= round(np.sum(~data.is_anomaly) / 4)
    first = data.train[
        0, [data.columns.index(f"protocol_type={x}") for x in ("tcp", "udp", "icmp")]
    ]
    np.testing.assert_array_equal(first, np.eye(3)[int(train[0]) % 3])


def test_anomalies_are_cut_to_a_fifth_of_the_test_set(tmp_path, monkeypatch):
    data = anomalies.kdd99(write_kdd(tmp_path, monkeypatch, 200))
    num_known = np.sum(~data.is_anomaly)
    assert 80 < num_known < 120  # a half of 200
    assert data.is_anomaly.sum() == round(num_known / 4)


def test_the_split_is_its_seed_s_and_scaling_the_training_rows(small_kdd):
    same, other = (anomalies.kdd99(small_kdd, split_seed=s) for s in (42, 43))
    np.testing.assert_array_equal(anomalies.kdd99(small_kdd).test, same.test)
    assert not np.array_equal(same.train, other.train)
    scaled = anomalies.kdd99(small_kdd, scaling="min_max")
    low, high = scaled.train.min(0), scaled.train.max(0)
    is_constant = np.ptp(same.train, axis=0) == 0
    np.testing.assert_allclose(low, 0.0, atol=1e-6)
    np.testing.assert_allclose(high, np.where(is_constant, 0.0, 1.0), atol=1e-6)
    assert is_constant[scaled.columns.index("duration")]
    standard = anomalies.kdd99(small_kdd, scaling="standard").train
    np.testing.assert_allclose(standard.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(
        standard.std(0), np.where(is_constant, 0.0, 1.0), atol=1e-5
    )


@pytest.mark.parametrize("name", anomalies.SCALINGS)
def test_the_scaling_that_is_kept_gives_back_the_rows_of_the_file(small_kdd, name):
    raw = anomalies.kdd99(small_kdd)
    scaled = anomalies.kdd99(small_kdd, scaling=name)
    shift, scale = scaled.scaling
    assert shift.shape == scale.shape == (len(raw.columns),)
    np.testing.assert_allclose(
        scaled.test * scale + shift, raw.test, rtol=1e-6, atol=1e-4
    )
    assert (name == "none") == bool(np.all(scale == 1) and np.all(shift == 0))


def test_scikit_learn_s_copy_is_read_alike(small_kdd, monkeypatch):
    """Its categories are bytes, or integers; its labels bytes."""
    import sklearn.datasets
    from sklearn.utils import Bunch

    with gzip.open(small_kdd / anomalies.KDD_FILE, "rt") as file:
        cells = [line.split(",") for line in file.read().split()]

    def typed(name, cell):
        if name in ("protocol_type", "service", "flag"):
            return cell.encode()
        return int(cell)

    table = np.array(
        [
            [typed(name, cell) for name, cell in zip(anomalies.KDD_COLUMNS, row)]
            for row in cells
        ],
        dtype=object,
    )
    target = np.array([row[-1].encode() for row in cells], dtype=object)

    def fetch(*, percent10, download_if_missing):
        assert percent10
        if not download_if_missing:
            raise OSError("Data not found and `download_if_missing` is False")
        return Bunch(data=table, target=target)

    monkeypatch.setattr(sklearn.datasets, "fetch_kddcup99", fetch)
    ours = anomalies.kdd99(small_kdd)
    for found, expected in zip(anomalies.kdd99(None, download=True), ours, strict=True):
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(FileNotFoundError, match="give the folder with kddcup.data"):
        anomalies.kdd99(None)


@pytest.mark.quick
def test_wrong_files_are_refused_by_name(small_kdd, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is neither"):
        anomalies.kdd99(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="scaling must be one of"):
        anomalies.kdd99(small_kdd, scaling="log")
    path = small_kdd / anomalies.KDD_FILE
    whole = gzip.decompress(path.read_bytes()).decode()
    for text, message in (
        (whole.replace("smurf.", "normal.", 1), "80 of them 'normal.'; got 400 and 81"),
        (whole.replace(",smurf.", "", 1), "damaged"),
        (whole.replace("7,udp", "seven,udp", 1), "damaged.*seven"),
    ):
        path.write_bytes(gzip.compress(text.encode()))
        with pytest.raises(ValueError, match=message):
            anomalies.kdd99(small_kdd)
    path.write_bytes(gzip.compress(whole.encode())[:-40])
    with pytest.raises(ValueError, match="damaged"):
        anomalies.kdd99(small_kdd)


@pytest.mark.slow
@pytest.mark.skipif(
    "EBMJAX_DATA" not in os.environ,
    reason="EBMJAX_DATA, a folder of data sets as published, is not set",
)
def test_the_published_file_has_the_published_counts():
    data = anomalies.kdd99(os.environ["EBMJAX_DATA"])
    assert data.train.shape[1] == data.test.shape[1] == len(data.columns) == 121
    # Halves of 396,743 attacks to within four deviations of the random split.
    assert abs(len(data.train) - 198_371) < 4 * 250
    np.testing.assert_allclose(data.is_anomaly.mean(), 0.1969, atol=0.001)
    assert data.columns.index("service=http") > 0 and np.isfinite(data.test).all()


# A class held out

IMAGES = np.arange(100, dtype=np.uint8)[:, None, None, None]
LABELS = np.arange(100) % 4


def test_a_class_is_held_out_and_nothing_else_is_in_both_sets():
    data = anomalies.held_out_class(IMAGES, LABELS, 1)
    train, test = data.train.ravel(), data.test.ravel()
    assert len(train) == 60 and len(test) == 15 + 25
    assert np.all(train % 4 != 1)
    np.testing.assert_array_equal(data.is_anomaly, test % 4 == 1)
    assert sorted([*train, *test]) == list(range(100))
    again = anomalies.held_out_class(IMAGES, LABELS, 1, split_seed=1)
    assert not np.array_equal(again.train, data.train)


def test_the_published_leak_is_there_only_when_asked_for():
    """About four fifths of the test set's known images were trained on."""
    images = np.arange(5_000)[:, None, None, None]
    labels = np.arange(5_000) % 5
    data = anomalies.held_out_class(images, labels, 0, leaks=True)
    known = data.test.ravel()[~data.is_anomaly]
    assert len(known) == 800 == len(set(known))
    share = np.isin(known, data.train.ravel()).mean()
    # Hypergeometric: a deviation of sqrt(.8 * .2 / 800 * .8) = .0126.
    np.testing.assert_allclose(share, 0.8, atol=4 * 0.0126)


def test_a_class_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="label must be one of several"):
        anomalies.held_out_class(IMAGES, LABELS, 7)


# The user's own


def write(path, text):
    path.write_text(text)
    return path


def test_tables_go_by_the_names_of_their_columns(tmp_path):
    train = write(tmp_path / "a.csv", "a,b,bad\n1,10,0\n3,30,0\n99,99,1\n")
    score = write(tmp_path / "b.csv", "bad;b;a\n1;20;2\n0;10;3\n")
    data = anomalies.tables(train, score, label_column="bad")
    assert data.columns == ("a", "b")
    np.testing.assert_allclose(data.train, [[-1, -1], [1, 1]])  # rows of 1 left out
    np.testing.assert_allclose(data.test, [[0, 0], [1, -1]])
    assert data.is_anomaly.tolist() == [True, False]
    plain = anomalies.tables(train, score, label_column="bad", scaling="none")
    np.testing.assert_allclose(plain.test, [[2, 20], [3, 10]])


def test_columns_in_a_circle_find_their_places(tmp_path):
    train = write(tmp_path / "a.csv", "a,b,c\n1,2,3\n4,5,6\n")
    score = write(tmp_path / "b.csv", "c,a,b\n30,10,20\n")
    data = anomalies.tables(train, score, scaling="none")
    np.testing.assert_array_equal(data.test, [[10, 20, 30]])


def test_a_constant_column_stays_small_however_its_deviation_is_rounded(tmp_path):
    """The mean of six times .1 is off by 1e-17, and so is the deviation not 0."""
    train = write(tmp_path / "a.csv", "a,b\n" + "".join(f"0.1,{i}\n" for i in range(6)))
    score = write(tmp_path / "b.csv", "a,b\n0.2,1\n")
    data = anomalies.tables(train, score)
    np.testing.assert_allclose(data.train[:, 0], 0, atol=1e-9)
    np.testing.assert_allclose(data.test[0, 0], 0.1, rtol=1e-6)


def write_column(path, values):
    rows = "".join(f"{float(value)!r},{i}\n" for i, value in enumerate(values))
    return write(path, "a,b\n" + rows)


@pytest.mark.parametrize("scaling", ["none", "min_max", "standard"])
@pytest.mark.parametrize(
    "train, score, moved",
    [
        ([5, 5.0000000000001] * 3, 5.1, 0.1),
        ([5, 5.0000000000001] * 50, 5.1, 0.1),
        ([0.1 + 0.2, 0.3] * 10, 0.4, 0.1),
        ([1e-30 * v for v in (1.1 * 3, 3.3)] * 10, 4e-30, 0.7e-30),
        ([1e20 * v for v in (1.1 * 3, 3.3)] * 10, 3.3e20, 0.0),
    ],
)
def test_a_column_that_is_constant_but_for_rounding_is_only_moved(
    tmp_path, scaling, train, score, moved
):
    """As scikit-learn has it: its deviation of 1e-14 is no scale."""
    data = anomalies.tables(
        write_column(tmp_path / "a.csv", train),
        write_column(tmp_path / "b.csv", [score]),
        scaling=scaling,
    )
    np.testing.assert_array_equal(data.scaling.scale[0], 1.0)
    shift = train[0] if scaling == "none" else 0.0
    error = 1e-7 * abs(score)  # of float32, and of the data's own rounding
    np.testing.assert_allclose(data.test[0, 0] - shift, moved, rtol=1e-6, atol=error)


@pytest.mark.parametrize(
    "values",
    [
        [1.7e9 + i for i in range(50)],  # seconds since 1970: one number in float32
        [2**24 + i for i in range(50)],  # numbers of rows: pairs
        [2**24 + i for i in range(4_000)],
        [1e9 + 0.5 * i for i in range(50)],
        [1e-60 * i for i in range(50)],  # all zero
    ],
)
def test_columns_that_float32_cannot_represent_are_refused_by_name(tmp_path, values):
    paths = [write_column(tmp_path / name, values) for name in ("a.csv", "b.csv")]
    with pytest.raises(ValueError, match="the column 'a', from .* float32 cannot tell"):
        anomalies.tables(*paths, scaling="none")
    # In float64 they are scaled before they are rounded, and all remain.
    data = anomalies.tables(*paths, scaling="standard")
    assert len(np.unique(data.train[:, 0])) == len(values)


def test_columns_that_float32_rounds_a_little_are_accepted(tmp_path):
    """Bytes of up to 1e9, and decimals."""
    rng = np.random.RandomState(0)
    for values in (rng.randint(0, 10**9, 500), rng.normal(size=500)):
        paths = [write_column(tmp_path / name, values) for name in ("a.csv", "b.csv")]
        data = anomalies.tables(*paths, scaling="none")
        np.testing.assert_allclose(data.train[:, 0], values, rtol=1e-7)


def test_marks_blank_lines_and_quotes_of_spreadsheets_are_no_harm(tmp_path):
    train = tmp_path / "a.csv"
    train.write_bytes(b'\xef\xbb\xbf"a";b\r\n\r\n1;2\r\n3;"4"\r\n')
    score = write(tmp_path / "b.csv", "\n\na\tb\n5\t6\n")
    data = anomalies.tables(train, score, scaling="none")
    assert data.columns == ("a", "b")
    np.testing.assert_array_equal(data.train, [[1, 2], [3, 4]])
    np.testing.assert_array_equal(data.test, [[5, 6]])


def test_tables_of_bare_numbers_need_no_names_and_no_labels(tmp_path):
    train = write(tmp_path / "a.csv", "1\t2\n3\t4\n")
    score = write(tmp_path / "b.csv", "5,6\n")
    data = anomalies.tables(train, score, scaling="none")
    assert data.is_anomaly is None and data.columns == ("column 1", "column 2")
    np.testing.assert_allclose(data.train, [[1, 2], [3, 4]])
    np.testing.assert_allclose(data.test, [[5, 6]])


@pytest.mark.parametrize(
    "train, score, label, message",
    [
        ("a,b\n1,2\n3,x\n", "a,b\n1,2\n", "", r"a.csv, line 3, column 'b': 'x' is not"),
        ("a,b\n1,2\n3\n", "a,b\n1,2\n", "", "a.csv, line 3: expected 2 columns, got 1"),
        ("a,b\n1,inf\n", "a,b\n1,2\n", "", "a.csv, line 2, column 'b': 'inf' is not"),
        (
            "a,b\n1,2\n",
            "a,b\n1,\n",
            "",
            "b.csv, line 2, column 'b': '' is not a number",
        ),
        ("a,b\n1,2\n", "a,c\n1,2\n", "", r"lacks \['b'\] and has \['c'\]"),
        ("a,b\n1,2\n", "a,b\n1,2\n", "c", "neither .* has the column 'c'"),
        (
            "a,b\n1,2\n",
            "a,b,c\n1,2,1\n1,2,3\n",
            "c",
            "b.csv, line 3, column 'c': a label must be 0 or 1, got 3",
        ),
        ("a,c\n1,0\n", "a,c\n1,1\n2,1\n", "c", "of both kinds .* got 1 alone"),
        ("a\n1\n", "a\n1\n", "a", "a.csv: there is no column but 'a'"),
        ("a,\n1,2\n", "a,\n1,2\n", "", "a.csv: column 2 has no name"),
        ("", "a,b\n1,2\n", "", "a.csv is empty"),
        (
            "1,x\n3,4\n",
            "1,2\n",
            "",
            "a.csv, line 1: must have names alone, or numbers alone, got '1' beside",
        ),
        (
            "a,b\n1,2\n3,4\n",
            "a,b\n1,1e300\n",
            "",
            "b.csv: the column 'b' is too large for float32, as it is or with",
        ),
        ("a,b\n-1e300,2\n1e300,4\n", "a,b\n1,1\n", "", "a.csv: the column 'a' is too"),
        ("a,b\n1,2\n.9,3\n", "a,b\n3e38,2\n", "", "b.csv: the column 'a' is too"),
        ("a,c\n1,1\n", "a,c\n1,0\n", "c", "all rows are labelled anomalies"),
        ("a,a\n1,1\n", "a,a\n1,0\n", "", r"the names \['a'\] are there more than once"),
        ("a,b\n", "a,b\n1,2\n", "", "no rows below"),
    ],
)
def test_bad_tables_are_refused_by_line(tmp_path, train, score, label, message):
    paths = write(tmp_path / "a.csv", train), write(tmp_path / "b.csv", score)
    with pytest.raises(ValueError, match=message):
        anomalies.tables(*paths, label_column=label)


def test_what_is_no_text_is_refused_by_its_name(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"a,b\n1,\xff\xfe\n")
    with pytest.raises(ValueError, match="a.csv must be text in UTF-8"):
        anomalies.tables(path, path)


def test_a_table_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*a.csv"):
        anomalies.tables(tmp_path / "a.csv", tmp_path / "b.csv")
