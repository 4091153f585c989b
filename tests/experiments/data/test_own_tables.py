"""Tables of the user: categories, missing values, division, and their likelihoods."""

import math

import numpy as np
import pytest

from experiments.data import own_tables, tabular
from experiments.data.frames import read_frame
from experiments.data.own_tables import fit

COLOURS = ("red", "green", "blue")


def rows(num=60, seed=0):
    """Two columns of numbers that depend on one another, and a colour."""
    rng = np.random.RandomState(seed)
    x = rng.normal(size=num)
    return x, 3 * x + rng.normal(size=num) + 100, [COLOURS[i % 3] for i in range(num)]


def write_csv(path, num=60, change=lambda lines: lines, names="x,y,colour"):
    x, y, colour = rows(num)
    cells = zip(x.tolist(), y.tolist(), colour)
    lines = [",".join(map(str, row)) for row in cells]
    path.write_text("\n".join([names, *change(lines)]) + "\n")
    return path


def section(path, **options):
    return own_tables.own_section(10) | {"csv": str(path)} | options


def load(path, **options):
    return tabular.from_section(section(path, **options))


# Encoding


def encode(path, columns="", categorical="", missing="refuse"):
    frame = read_frame(path)
    every = np.arange(len(frame.columns[0]))
    encoding = fit(frame, every, columns, categorical, missing)
    return encoding, encoding.encode(frame)


def test_categories_are_cells_of_width_one(tmp_path):
    encoding, x = encode(write_csv(tmp_path / "a.csv"))
    assert encoding.columns == ["x", "y", "colour"]
    assert encoding.categories == {"colour": ["blue", "green", "red"]}
    np.testing.assert_array_equal(x[:, :2], np.stack(rows()[:2], 1))
    expected = [encoding.categories["colour"].index(c) for c in rows()[2]]
    np.testing.assert_array_equal(np.floor(x[:, 2]), expected)
    inside = x[:, 2] - expected
    assert inside.std() > 0.2 and len(np.unique(inside)) == 60


def test_columns_are_chosen_and_numbers_can_be_categories(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("k,y,z\n3,1.5,0\n1,2,0\n3,3,0\n1,4,0\n")
    encoding, x = encode(path, columns="y, k", categorical="k")
    assert encoding.columns == ["y", "k"] and encoding.categories == {"k": ["1", "3"]}
    np.testing.assert_array_equal(np.floor(x), [[1, 1], [2, 0], [3, 1], [4, 0]])


def test_missing_values_are_refused_or_filled_from_the_rows_trained_on(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("x,c\n1,a\n2,b\n9,b\n,a\n100,a\n3,\n3,a\n3,a\n")
    with pytest.raises(ValueError, match="a.csv, line 5, column 'x': .* is missing"):
        encode(path)
    with pytest.raises(ValueError, match="a.csv, line 7, column 'c': .* is missing"):
        encode(path, columns="c")
    frame = read_frame(path)
    encoding = fit(frame, np.array([0, 1, 2]), "", "", "impute")
    assert encoding.fill == {"x": 2.0, "c": "b"}
    x = encoding.encode(frame)
    assert x[3, 0] == 2.0 and math.floor(x[5, 1]) == 1
    with pytest.raises(ValueError, match="data.missing must be one of .* got 'drop'"):
        encode(path, missing="drop")


@pytest.mark.parametrize(
    "text, options, message",
    [
        ("x,y\n1,2\n3,4\n5,6x\n", {}, "line 4, column 'y': '6x' is not a .* 2 others"),
        ("x,y\n1,2\n3,inf\n", {}, "line 3, column 'y': inf is not finite"),
        ("x,y\n1,a\n3,b\n5,c\n", {}, "'y' has 3 different values in 3 rows"),
        ("x,y\n1,a\n3,a\n5,a\n", {}, "'y' has 1 different values in 3 rows"),
        ("x,y\n1,2\n", {"columns": "x,z"}, r"columns of .*'x', 'y'.*, got \['z'\]"),
        ("x,y\n1,2\n", {"columns": "x,x"}, "must name each column once, got 'x,x'"),
        ("x,y\n1,2\n", {"columns": "x", "categorical": "y"}, "among data.columns"),
        ("x,y\n,2\n,3\n", {"missing": "impute"}, "the column 'x' has no numbers"),
    ],
)
def test_what_cannot_be_encoded_is_named(text, options, message, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        encode(tmp_path / "a.csv", **options)
    assert "\n" not in str(error.value)


def test_other_rows_must_have_the_columns_and_known_categories(tmp_path):
    encoding, _ = encode(write_csv(tmp_path / "a.csv"))
    other = tmp_path / "b.csv"
    other.write_text("colour,extra,y,x\ngreen,7,2,1\n")
    found = encoding.encode(read_frame(other))
    np.testing.assert_array_equal(np.floor(found), [[1, 2, 1]])
    other.write_text("colour,y,x\npink,2,1\n")
    with pytest.raises(ValueError, match="b.csv, line 2, .* 'pink' is not among"):
        encoding.encode(read_frame(other))
    other.write_text("y,x\n2,1\n")
    with pytest.raises(ValueError, match=r"b.csv lacks the columns \['colour'\]"):
        encoding.encode(read_frame(other))


# A table to train on


def test_rows_are_divided_once_and_the_training_rows_whiten(tmp_path):
    table = load(write_csv(tmp_path / "a.csv", 200), noise_scale=0.0)
    assert [len(x) for x in table[:3]] == [162, 18, 20]
    assert table.columns == ("x", "y", "colour") and table.scored is None
    np.testing.assert_allclose(table.train.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(np.cov(table.train.T, bias=True), np.eye(3), atol=1e-5)
    # Every row of the file is in one of the parts, in its own units.
    back = np.concatenate([table.encoding.undo(x) for x in table[:3]])
    np.testing.assert_allclose(sorted(back[:, 0]), sorted(rows(200)[0]), atol=1e-5)
    other = load(tmp_path / "a.csv", noise_scale=0.0, split_seed=1)
    assert other.digest != table.digest
    assert load(tmp_path / "a.csv", noise_scale=0.0).digest == table.digest


def test_noise_is_added_to_the_training_rows_alone(tmp_path):
    path = write_csv(tmp_path / "a.csv", 2_000)
    clean, noisy = load(path, noise_scale=0.0), load(path, noise_scale=0.5)
    for name in ("validation", "test"):
        np.testing.assert_array_equal(getattr(noisy, name), getattr(clean, name))
    # A standard deviation of 4,860 normals: 0.5 with a relative error of 0.01.
    np.testing.assert_allclose((noisy.train - clean.train).std(), 0.5, rtol=0.05)


def test_log_likelihoods_are_in_the_units_of_the_file(tmp_path):
    """A normal model of white rows is, in the units of the file, the normal
    distribution with the moments of the training rows."""
    path = write_csv(tmp_path / "a.csv", 200)
    write_csv(tmp_path / "b.csv", 7)
    options = {"columns": "x,y", "noise_scale": 0.0}
    table = load(path, score_csv=str(tmp_path / "b.csv"), **options)

    def log_prob(z):
        return -0.5 * np.sum(z**2, 1) - math.log(2 * math.pi)

    scalars, scored = own_tables.log_likelihoods(table, log_prob)
    train = table.encoding.undo(table.train).astype(np.float64)
    mean, covariance = train.mean(0), np.cov(train.T, bias=True)

    def expected(x):
        squares = np.einsum(
            "ni,ij,nj->n", x - mean, np.linalg.inv(covariance), x - mean
        )
        log_det = np.linalg.slogdet(covariance)[1]
        return -0.5 * (squares + log_det) - math.log(2 * math.pi)

    at_test = expected(table.encoding.undo(table.test).astype(np.float64))
    np.testing.assert_allclose(
        scalars["test_log_likelihood"], at_test.mean(), rtol=1e-4
    )
    np.testing.assert_allclose(
        scalars["test_log_likelihood_error"], at_test.std(ddof=1) / 20**0.5, rtol=1e-3
    )
    # The model is that normal distribution.
    np.testing.assert_allclose(
        scalars["normal_test_log_likelihood"], scalars["test_log_likelihood"], rtol=1e-5
    )
    found = np.stack(rows(7)[:2], 1)
    np.testing.assert_allclose(scored, expected(found), rtol=1e-4)
    assert not np.allclose(scored, scored[0])


def test_draws_within_categories_are_averaged(tmp_path):
    path = write_csv(tmp_path / "a.csv", 200)
    table = load(path, score_csv=str(write_csv(tmp_path / "b.csv", 7)))
    assert table.scored.shape == (own_tables.NUM_DRAWS, 7, 3)
    back = np.stack([table.encoding.undo(z) for z in table.scored])
    np.testing.assert_allclose(back[:, :, 0], back[:1, :, 0].repeat(10, 0), atol=1e-4)
    assert back[:, :, 2].std(0).min() > 0.1
    _, scored = own_tables.log_likelihoods(table, lambda z: z[:, 0])
    expected = table.scored[:, :, 0].mean(0) + table.encoding.log_determinant
    np.testing.assert_allclose(scored, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "change, options, message",
    [
        (lambda x: x[:15], {}, r"a.csv: each .* at least 2, got \[13, 1, 1\] of 15"),
        (lambda x: x, {"noise_scale": -1.0}, "data.noise_scale must not be negative"),
        (
            lambda x: [f"1,{line.split(',', 1)[1]}" for line in x],
            {},
            "a.csv: the column 'x' is constant in the rows trained on",
        ),
        (
            lambda x: [f"{i},{2 * i},{COLOURS[i % 2]}" for i in range(60)],
            {},
            "a.csv: the columns cannot be whitened: they are linearly dependent",
        ),
    ],
)
def test_a_table_without_a_density_is_refused(change, options, message, tmp_path):
    path = write_csv(tmp_path / "a.csv", change=change)
    with pytest.raises(ValueError, match=message):
        load(path, **options)


def test_a_path_is_asked_for():
    with pytest.raises(ValueError, match="data.csv must be the path .*, got ''"):
        load("")
