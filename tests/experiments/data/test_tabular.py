"""Tables: what is done to them, and every way that a file can be wrong.

Real files are read where the environment says they are: `EBMJAX_DATA`, a folder of data
sets as published.
"""

import math
import os

import numpy as np
import pytest

from experiments.data import tabular

WINE = ";".join([f'"c{index}"' for index in range(11)] + ['"quality"'])
PARKINSONS = ",".join(["subject#", "age", "sex", *(f"c{i}" for i in range(19))])


def write_wine(folder, rows, name="winequality-red.csv"):
    lines = [";".join(map(repr, map(float, row))) for row in rows]
    (folder / name).write_text("\n".join([WINE, *lines]) + "\n")


def write_parkinsons(folder, rows):
    lines = [",".join(map(repr, map(float, row))) for row in rows]
    path = folder / "parkinsons_updrs.data"
    path.write_text("\n".join([PARKINSONS, *lines]) + "\n")


def correlated(num, dim=11, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num, dim)) @ rng.normal(size=(dim, dim)) + 5.0


def wine_rows(num):
    return np.column_stack([correlated(num), np.arange(num) % 9])


@pytest.fixture
def wine(tmp_path):
    write_wine(tmp_path, wine_rows(300))
    return tmp_path


def load(folder, **options):
    return tabular.load("red_wine", data_dir=folder, **options)


# What is done


@pytest.mark.parametrize("whiten", ["train", "all"])
def test_the_rows_that_whiten_have_mean_zero_and_covariance_one(wine, whiten):
    """To 1e-5, as float32 has seven digits and a sum of 300 loses at most one."""
    table = load(wine, whiten=whiten, noise_scale=0.0)
    rows = table.train if whiten == "train" else np.concatenate(table[:3])
    rows = rows.astype(np.float64)
    np.testing.assert_allclose(rows.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(np.cov(rows.T, bias=True), np.eye(11), atol=1e-5)


def test_held_out_rows_have_no_say_unless_asked(tmp_path):
    """Of a row that is moved far away after training rows were chosen: nothing changes
    in the training set, but for the published whitening."""
    rows = wine_rows(300)
    first, second = tmp_path / "first", tmp_path / "second"
    order = np.random.RandomState(2019).permutation(300)
    moved = rows.copy()
    moved[order[-1], :11] = moved[order[-2], :11] * 2  # both are test rows
    for folder, x in ((first, rows), (second, moved)):
        folder.mkdir()
        write_wine(folder, x)

    def train(folder, whiten):
        return load(folder, whiten=whiten, noise_scale=0.0).train

    # Not equal: the width of the dequantisation is a median over all rows.
    change = np.abs(train(first, "train") - train(second, "train")).max()
    assert change < 0.01
    assert np.abs(train(first, "all") - train(second, "all")).max() > 5 * change


def test_splits_are_disjoint_make_up_the_table_and_are_the_same_every_time(tmp_path):
    """A table of integers far apart: whitened, each row still shows which it was."""
    rows = wine_rows(300)
    rows[:, 0] = 1000.0 * np.arange(300)
    write_wine(tmp_path, rows)
    table = load(tmp_path)
    assert [len(split) for split in table[:3]] == [243, 27, 30]
    again, other = load(tmp_path), load(tmp_path, seed=1)
    for a, b in zip(table[:3], again[:3]):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(table.test, other.test)

    # The map that undoes the whitening, from the published order of the rows.
    order = np.random.RandomState(2019).permutation(300)
    whitened = np.concatenate(load(tmp_path, noise_scale=0.0)[:3]).astype(np.float64)
    inputs = np.hstack([whitened, np.ones((300, 1))])
    undo, *_ = np.linalg.lstsq(inputs, order, rcond=None)
    # Dequantised by one place at most, which the fit can only make up for.
    assert np.abs(inputs @ undo - order).max() < 1.5
    assert table.train.dtype == table.validation.dtype == table.test.dtype == np.float32


@pytest.mark.parametrize(
    "num, most, sizes",
    [
        (1_599, 1_000, [1296, 144, 159]),
        (50_000, 1_000, [48_000, 1_000, 1_000]),
        (50_000, math.inf, [44_000, 1_000, 5_000]),
    ],
)
def test_a_tenth_is_held_out_and_of_small_tables_at_most_a_thousand(num, most, sizes):
    splits = tabular.split_rows(np.arange(num)[:, None], most)
    assert [len(split) for split in splits] == sizes
    np.testing.assert_array_equal(np.concatenate(splits)[:, 0], np.arange(num))


def test_collisions_are_those_with_a_particle_without_six_columns(tmp_path):
    """Column j of the file's 28 is j plus noise: which ones are left can be read off
    the mean, and the label off the number of rows."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(600, 28)) + 100 * np.arange(28)
    rows[:, 0] = np.arange(600) % 3 == 0
    text = [",".join(map(str, range(28))), *(",".join(map(str, row)) for row in rows)]
    path = tmp_path / "1000_train.csv"
    path.write_text("\n".join(text) + "\n")
    found = tabular.read_hepmass(path).values
    left = [j for j in range(28) if j not in (0, 6, 10, 14, 18, 22)]
    np.testing.assert_allclose(found, rows[::3][:, left], rtol=1e-12)
    table = tabular.load("hepmass", data_dir=tmp_path, noise_scale=0.0)
    assert [len(split) for split in table[:3]] == [162, 18, 20]
    path.write_text("\n".join([*text, "x" + text[1][1:]]) + "\n")
    with pytest.raises(ValueError, match="1000_train.csv must be numbers .*'x"):
        tabular.load("hepmass", data_dir=tmp_path)
    path.write_text("\n".join(line.rsplit(",", 1)[0] for line in text) + "\n")
    with pytest.raises(ValueError, match=r"must have 28 columns, .* \(600, 27\)"):
        tabular.load("hepmass", data_dir=tmp_path)


def test_the_array_of_miniboone_is_read_as_it_is(tmp_path):
    rows = np.random.default_rng(0).normal(size=(500, 43))
    path = tmp_path / "miniboone" / "data.npy"
    path.parent.mkdir()
    np.save(path, rows)
    table = tabular.load("miniboone", data_dir=tmp_path, whiten="all", noise_scale=0.0)
    everything = np.concatenate(table[:3]).astype(np.float64)
    np.testing.assert_allclose(np.cov(everything.T, bias=True), np.eye(43), atol=1e-5)
    assert len(table.test) == 50
    rows[3, 4] = np.nan
    np.save(path, rows)
    with pytest.raises(ValueError, match="data.npy must be of finite numbers"):
        tabular.load("miniboone", data_dir=tmp_path)
    path.write_text("no array")
    with pytest.raises(ValueError, match="data.npy must be an array of numpy's"):
        tabular.load("miniboone", data_dir=tmp_path)


def test_noise_is_drawn_once_with_the_deviation_asked(wine):
    quiet, noisy = load(wine, noise_scale=0.0), load(wine, noise_scale=0.3)
    noise = np.concatenate(
        [a.astype(np.float64) - b for a, b in zip(noisy[:3], quiet[:3])]
    )
    assert abs(noise.mean()) < 5 * 0.3 / noise.size**0.5
    np.testing.assert_allclose(noise.std(), 0.3, rtol=5 / (2 * noise.size) ** 0.5)
    assert len(np.unique(noise)) > 0.99 * noise.size


def test_dequantised_columns_are_as_wide_as_their_median_step():
    """Values 0, 1, 2, 7: the median step is 1, and rows move by less than 1, on
    average by a half; uniform on (-1, 1) has the variance 1 / 3."""
    column = np.tile([0.0, 1.0, 2.0, 7.0], 1000)
    rows = np.stack([column, 10 * column], 1)
    found = (
        tabular.dequantize_columns(np.random.RandomState(0), rows, ("a", "b")) - rows
    )
    for steps, scale in ((found[:, 0], 1.0), (found[:, 1], 10.0)):
        assert np.abs(steps).max() < scale and np.abs(steps).max() > 0.99 * scale
        # The standard error of a variance, with a fourth moment of 1 / 5.
        error = (1 / 5 - 1 / 9) ** 0.5 / 4000**0.5
        assert abs(steps.var() / scale**2 - 1 / 3) < 5 * error


def test_copies_are_left_out_and_named(tmp_path):
    """Columns 2 and 5 are 0 and -1 times a factor, with a little noise: the first of
    each pair goes, be the correlation positive or negative."""
    rng = np.random.default_rng(0)
    rows = np.column_stack([np.zeros((400, 3)), correlated(400, 19)])
    rows[:, 3 + 2] = 2 * rows[:, 3] + 0.01 * rng.normal(size=400)
    rows[:, 3 + 5] = -rows[:, 3 + 1] + 0.01 * rng.normal(size=400)
    write_parkinsons(tmp_path, rows)
    table = tabular.load("parkinsons", data_dir=tmp_path)
    assert table.dropped == ("c0", "c1")
    assert table.columns == tuple(f"c{i}" for i in range(2, 19))
    assert table.train.shape[1] == 17


def test_a_column_that_is_left_out_is_not_read_into_the_rest(tmp_path):
    """Quality, and the subject's columns: whatever they are, the table is the same."""
    rows = wine_rows(100)
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, quality in zip(folders, (1.0, 77.0)):
        folder.mkdir()
        rows[:, -1] = quality
        write_wine(folder, rows)
    np.testing.assert_array_equal(load(folders[0]).train, load(folders[1]).train)


def test_a_file_may_lie_in_the_folder_of_its_set(wine, tmp_path):
    (tmp_path / "uci_wine_quality").mkdir()
    name = "winequality-red.csv"
    before = load(tmp_path)
    (tmp_path / name).rename(tmp_path / "uci_wine_quality" / name)
    np.testing.assert_array_equal(load(tmp_path).test, before.test)


# What can be wrong


def test_a_file_that_is_not_there_is_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        tabular.load("white_wine", data_dir=tmp_path)
    message = str(error.value)
    assert str(tmp_path / "winequality-white.csv") in message
    assert str(tmp_path / "uci_wine_quality" / "winequality-white.csv") in message
    assert "https://archive.ics.uci.edu/dataset/186" in message


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("7.25;", "", r"red.csv, line 4: expected 12 columns, got 11"),
        ("7.25;", "7.25;1;", r"line 4: expected 12 columns, got 13"),
        ("7.25;", "seven;", r"line 4, column 'c0': 'seven' is not a number"),
        ("7.25;", ";", r"line 4, column 'c0': '' is not a number"),
        ("7.25;", "inf;", r"line 4, column 'c0': 'inf' is not finite"),
        ("7.25;", "nan;", r"line 4, column 'c0': 'nan' is not finite"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, old, new, message):
    rows = wine_rows(50)
    rows[2, 0] = 7.25
    write_wine(tmp_path, rows)
    path = tmp_path / "winequality-red.csv"
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


@pytest.mark.quick
def test_tables_that_cannot_be_whitened_are_refused(tmp_path):
    rows = wine_rows(300)
    rows[:, 4] = 3.0
    write_wine(tmp_path, rows)
    with pytest.raises(ValueError, match="column 'c4' has only one value"):
        load(tmp_path)
    write_wine(tmp_path, wine_rows(12))
    with pytest.raises(ValueError, match="cannot be whitened.*fewer than 12 rows"):
        load(tmp_path)
    (tmp_path / "winequality-red.csv").write_text(WINE + "\n")
    with pytest.raises(ValueError, match="no rows below the line of names"):
        load(tmp_path)
    copied = np.column_stack([np.zeros((300, 3)), correlated(300, 19)])
    copied[:, 5] = copied[:, 3] + copied[:, 4]  # of three, no two are copies
    write_parkinsons(tmp_path, copied)
    with pytest.raises(ValueError, match="they are linearly dependent"):
        tabular.load("parkinsons", data_dir=tmp_path)


def test_a_table_that_is_cut_at_a_line_s_end_is_noticed(tmp_path, caplog):
    """As published there are 1,599 rows; of 15 a tenth is one row to test on."""
    write_wine(tmp_path, wine_rows(15))
    with pytest.raises(ValueError, match=r"must have 2 rows, got \[13, 1, 1\]"):
        load(tmp_path)
    write_wine(tmp_path, wine_rows(1_598))
    load(tmp_path)
    assert "winequality-red.csv has 1598 rows, not 1599" in caplog.text
    caplog.clear()
    write_wine(tmp_path, wine_rows(1_599))
    load(tmp_path)
    assert "rows, not" not in caplog.text


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("rose_wine", {}, "data.name 'rose_wine' is not one of .*'red_wine'"),
        ("red_wine", {"whiten": "test"}, r"whiten must be one of .*got 'test'"),
        ("red_wine", {"noise_scale": -1.0}, "noise_scale must not be negative"),
    ],
)
def test_bad_options_are_named(tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        tabular.load(name, data_dir=tmp_path, **options)


# Real files

needs_files = pytest.mark.skipif(
    "EBMJAX_DATA" not in os.environ,
    reason="EBMJAX_DATA, a folder of data sets as published, is not set",
)


@needs_files
@pytest.mark.parametrize(
    "name, num_rows, num_dims",
    [("red_wine", 1_599, 11), ("white_wine", 4_898, 11), ("parkinsons", 5_875, 15)],
)
def test_real_tables_have_the_published_sizes(name, num_rows, num_dims):
    table = tabular.load(name, data_dir=os.environ["EBMJAX_DATA"])
    assert sum(len(split) for split in table[:3]) == num_rows
    assert {split.shape[1] for split in table[:3]} == {num_dims}
    assert len(table.columns) == num_dims
    # Whitened, and the noise's variance added.
    covariance = np.cov(table.train.T.astype(np.float64), bias=True)
    error = 5 * 1.0025 * 0.05 * 2 / len(table.train) ** 0.5
    np.testing.assert_allclose(covariance, 1.0025 * np.eye(num_dims), atol=error)
    if name == "parkinsons":  # one jitter of three is another times three, to rounding
        assert table.dropped == ("Jitter(%)", "Jitter:RAP", "Shimmer", "Shimmer:APQ3")


def test_rounding_makes_no_steps_between_values():
    """0.3 and 0.6, half of them as sums: noise is 0.3 wide on either side. Most
    neighbouring values are 1e-16 apart, by rounding."""
    column = np.array([0.3, 0.1 + 0.2, 0.6, 3 * 0.2] * 700)
    noisy = tabular.dequantize_columns(
        np.random.RandomState(0), column[:, None], ("tenths",)
    )
    noise = noisy[:, 0] - column
    # The variance of a uniform law of width 0.6; its estimate's error is 2 %.
    np.testing.assert_allclose(noise.var(), 0.6**2 / 12, rtol=0.1)


def test_rounding_alone_is_no_column():
    with pytest.raises(ValueError, match="column 'a' has only one value"):
        tabular.dequantize_columns(
            np.random.RandomState(0), np.array([[0.1 + 0.2], [0.3]]), ("a",)
        )


def test_whether_columns_can_be_whitened_does_not_depend_on_their_units():
    rng = np.random.RandomState(0)
    rows = rng.normal(size=(200, 3)) * np.array([1e-9, 1.0, 1e9])
    mean, matrix = tabular.whitening(rows)
    white = (rows - mean) @ matrix
    np.testing.assert_allclose(white.T @ white / 200, np.eye(3), atol=1e-4)
    for bad in (
        np.stack([rows[:, 0], 2 * rows[:, 0]], 1),
        np.stack([rows[:, 1], np.full(200, 0.3) + 1e-17 * rows[:, 1]], 1),
    ):
        with pytest.raises(ValueError, match="cannot be whitened"):
            tabular.whitening(bad)
