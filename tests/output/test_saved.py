"""Files: what comes back, and what is refused."""

import hashlib
import io
import json
import os
import zipfile

import numpy as np
import pandas as pd
import pytest

from mixmoe.errors import ArgumentError, DesignError, SavedFileError
from mixmoe.families import register, unregister
from mixmoe.loading import load
from mixmoe.mixture.estimate import Flag
from mixmoe.output.saved import read, write
from tests.fake_model import BOUNDARY, FakeModel, make_data, make_results, replace


@pytest.fixture(autouse=True, scope="module")
def fake():
    register(FakeModel)
    yield
    unregister("Fake")


def rich_data():
    data = make_data()
    data["g"] = pd.Categorical(np.where(data["x"] > 0, "a", "b"), categories=["b", "a"])
    data.loc[3, "x"] = np.nan
    data.index = pd.Index([f"row{i}" for i in range(len(data))], name="label")
    return data.sample(frac=1, random_state=3)


@pytest.fixture
def fit():
    return make_results(
        "y ~ scale(time) + x + C(g) | gate: z | re: (1 + time | id)", rich_data(), flags=(BOUNDARY,), blank=(11,)
    )


@pytest.fixture
def path(tmp_path, fit):
    fit.save(tmp_path / "fit.mixmoe")
    return tmp_path / "fit.mixmoe"


def test_everything_comes_back(fit, path):
    back = load(path)
    assert str(back.summary()) == str(fit.summary())
    pd.testing.assert_frame_equal(back.to_frame(), fit.to_frame())
    pd.testing.assert_frame_equal(back.cov_params(), fit.cov_params())
    pd.testing.assert_frame_equal(back.responsibilities, fit.responsibilities)
    pd.testing.assert_frame_equal(back.model.design.frame, fit.model.design.frame)
    np.testing.assert_array_equal(back.model.design.position, fit.model.design.position)
    assert back.model.design.dropped == fit.model.design.dropped
    assert back.flags == fit.flags
    np.testing.assert_array_equal(back.em.trace, fit.em.trace)
    np.testing.assert_array_equal(back.model.design.expert, fit.model.design.expert)


def test_the_file_is_json_and_npz_only(path):
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == ["arrays.npz", "fit.json", "sha256.json"]
        json.loads(archive.read("sha256.json"))
        json.loads(archive.read("fit.json"))
        with zipfile.ZipFile(io.BytesIO(archive.read("arrays.npz"))) as inner:
            assert all(name.endswith(".npy") for name in inner.namelist())


def saved_with(frame, path):
    """A file with a frame of any columns."""
    fit = make_results()
    fit.save(path, data=False)
    write(path, replace(read(path), data=frame))


def test_a_loaded_fit_can_be_compared_with_a_live_one(path):
    small = make_results("y ~ scale(time) + x | gate: z | re: (1 + time | id)", rich_data(), loglik=-203)
    large = load(path)
    regular = type(large)(large.model, replace(large.em, flags=()), large.cov)
    assert small.lr_test(regular).df == 2


def test_without_data_no_row_is_in_the_file(fit, tmp_path):
    fit.save(tmp_path / "f", data=False)
    assert read(tmp_path / "f").data is None
    with zipfile.ZipFile(tmp_path / "f") as archive:
        assert b"s001" not in archive.read("fit.json")
    with pytest.raises(SavedFileError, match="saved without data"):
        load(tmp_path / "f")
    assert str(load(tmp_path / "f", data=fit.model.data).summary()) == str(fit.summary())


def test_other_data_are_refused(fit, tmp_path):
    fit.save(tmp_path / "f", data=False)
    frame = fit.model.data
    with pytest.raises(SavedFileError, match="the response differs"):
        load(tmp_path / "f", data=frame.assign(y=frame["y"] + 1))
    with pytest.raises(SavedFileError, match="cannot be rebuilt"):
        load(tmp_path / "f", data=frame.iloc[:80])
    with pytest.raises(SavedFileError, match="other parameters, the first is"):
        load(tmp_path / "f", data=frame.assign(g=np.where(frame["time"] > 0, "u", "v")))
    with pytest.raises(DesignError, match="or a mapping of names to columns, got list"):
        load(tmp_path / "f", data=[1])


@pytest.mark.parametrize(
    "column",
    [
        pd.Series([1, 2, 3]),
        pd.Series([1.5, np.nan, np.inf]),
        pd.Series([True, False, True]),
        pd.Series(["a", None, "c\x00"]),
        pd.Series(["a", "b", "c"], dtype=object),
        pd.Series([1, "b", None], dtype=object),
        pd.Series([1, None, 3], dtype="Int64"),
        pd.Series([True, None, False], dtype="boolean"),
        pd.Series([1.5, None, 3], dtype="Float64"),
        pd.Series(["a", None, "b"], dtype="category"),
        pd.Series(pd.Categorical([3, 1, 3], categories=[3, 1, 2], ordered=True)),
        pd.Series(pd.to_datetime(["2020-01-01", None, "2021-05-05 10:11:12.5"], format="ISO8601")),
        pd.Series(pd.to_datetime(["2020-01-01", "2020-01-02", "2020-01-03"]).tz_localize("Europe/Berlin")),
        pd.Series(pd.to_timedelta([1, None, 3], unit="D")),
        pd.Series([1, 2, 3], dtype="int8"),
        pd.Series([1, 2, 3], dtype="float32"),
    ],
    ids=lambda s: str(s.dtype),
)
def test_columns_come_back_as_they_were(tmp_path, column):
    extended = make_data().iloc[:3].assign(extra=column.array)
    saved_with(extended, tmp_path / "f")
    pd.testing.assert_frame_equal(read(tmp_path / "f").data, extended)


@pytest.mark.parametrize(
    "index",
    [
        pd.RangeIndex(5, 8),
        pd.Index([3, 1, 2], name="n"),
        pd.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1)], names=["g", None]),
        pd.to_datetime(["2020-01-01", "2020-01-02", "2020-01-03"]),
    ],
    ids=["range", "named", "multi", "dates"],
)
def test_indexes_come_back(tmp_path, index):
    frame = make_data().iloc[:3].set_axis(index)
    saved_with(frame, tmp_path / "f")
    pd.testing.assert_frame_equal(read(tmp_path / "f").data, frame, check_index_type=False, check_freq=False)


def test_objects_that_are_no_plain_values_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match="column 'extra' cannot be saved"):
        saved_with(make_data().iloc[:1].assign(extra=[{"a": 1}]), tmp_path / "f")
    assert os.listdir(tmp_path) == ["f"]
    assert read(tmp_path / "f").data is None


class Trap:
    """Unpickling it would leave a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (self.mark, "w")


def rewritten(path, change=None, arrays=None):
    """The file with a changed document or changed arrays, and the checksums that belong to them."""
    with zipfile.ZipFile(path) as archive:
        document, raw = json.loads(archive.read("fit.json")), archive.read("arrays.npz")
    if arrays is not None:
        with np.load(io.BytesIO(raw)) as stored:
            content = {name: stored[name] for name in stored.files} | arrays
        buffer = io.BytesIO()
        np.savez(buffer, **content)
        raw = buffer.getvalue()
    if change is not None:
        change(document)
    parts = {"fit.json": json.dumps(document).encode(), "arrays.npz": raw}
    right = {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}
    parts["sha256.json"] = json.dumps(right).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)


@pytest.mark.parametrize(
    ("part", "change", "arrays"),
    [
        ("arrays.npz", None, lambda stored: {"params": stored["params"][::-1]}),
        ("arrays.npz", None, lambda stored: {"params": np.zeros_like(stored["params"])}),
        ("arrays.npz", None, lambda stored: {"responsibilities": stored["responsibilities"][:, ::-1]}),
        ("arrays.npz", None, lambda stored: {"cov": 2 * stored["cov"]}),
        ("arrays.npz", None, lambda stored: {"trace": stored["trace"][:-1]}),
        ("arrays.npz", None, lambda stored: {"column1": stored["column1"] + 1}),
        ("fit.json", lambda d: d["fit"].update(loglik=0.0), None),
        ("fit.json", lambda d: d["fit"].update(flags=[]), None),
        ("fit.json", lambda d: d["settings"].update(experts=3), None),
        ("fit.json", lambda d: d.update(formula="y ~ x | re: (1 | id)"), None),
        ("fit.json", lambda d: d["names"].reverse(), None),
        ("fit.json", lambda d: d["cov"].update(kind="nonrobust"), None),
    ],
)
def test_no_part_can_be_changed_by_hand(path, part, change, arrays):
    with zipfile.ZipFile(path) as archive:
        before = {name: archive.read(name) for name in archive.namelist()}
    with np.load(io.BytesIO(before["arrays.npz"])) as stored:
        changed = None if arrays is None else arrays({name: stored[name] for name in stored.files})
    rewritten(path, change, changed)
    with zipfile.ZipFile(path) as archive:
        after = archive.read(part)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (before | {part: after}).items():
            archive.writestr(name, content)
    with pytest.raises(SavedFileError, match=f"the part '{part}' of .* was damaged or changed after it was saved"):
        load(path)


def test_a_file_without_its_checksums_is_refused(path):
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in ("fit.json", "arrays.npz")}
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    with pytest.raises(SavedFileError, match=r"has lost the part 'sha256\.json' with the checksums"):
        load(path)


def test_a_head_that_claims_too_much_takes_no_memory(path):
    raw, member = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": (10**13,)})
    with zipfile.ZipFile(raw, "w") as inner:
        inner.writestr("params.npy", member.getvalue())
    with zipfile.ZipFile(path) as archive:
        document = archive.read("fit.json")
    parts = {"fit.json": document, "arrays.npz": raw.getvalue()}
    parts["sha256.json"] = json.dumps({n: hashlib.sha256(p).hexdigest() for n, p in parts.items()}).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    with pytest.raises(SavedFileError, match="claims to hold 80000000000000 bytes and holds 0"):
        load(path)


def test_a_pickle_inside_is_never_loaded(path, tmp_path):
    mark = tmp_path / "mark"
    rewritten(path, arrays={"params": np.array([Trap(str(mark))], dtype=object)})
    with pytest.raises(SavedFileError, match="is not a saved fit"):
        load(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "expert",
    [
        "{__import__('os').system('touch {mark}')}",
        "I(__import__('pathlib').Path('{mark}').touch())",
        "I(open('{mark}', 'w'))",
        "time.real.__class__()",
        "eval('1')",
        "np.save('{mark}', time)",
        "I(().__class__.__base__.__subclasses__())",
    ],
)
def test_a_formula_with_code_is_never_evaluated(path, tmp_path, expert):
    mark = tmp_path / "mark"
    text = f"y ~ time + {expert.replace('{mark}', str(mark))} | gate: z | re: (1 + time | id)"
    rewritten(path, lambda document: document.update(formula=text))
    with pytest.raises(SavedFileError, match="not evaluated"):
        load(path)
    assert not mark.exists()
    assert not list(tmp_path.glob("mark*"))


def test_a_formula_of_the_users_own_needs_its_context(tmp_path):
    context = {"double": lambda v: 2 * v}
    fit = make_results("y ~ double(time) | re: (1 | id)", context=context)
    fit.save(tmp_path / "f")
    with pytest.raises(SavedFileError, match="context="):
        load(tmp_path / "f")
    back = load(tmp_path / "f", context=context)
    np.testing.assert_array_equal(back.params, fit.params)


def test_dropped_rows_are_not_reported_again(path):
    load(path)  # a warning would be an error here


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="other"), "not a saved fit"),
        (lambda d: d.update(format_version=99), "format version 99, this mixmoe reads version 3"),
        (lambda d: d.update(family="Other"), "holds a 'Other', known are 'Fake'"),
        (lambda d: d.pop("fit"), "KeyError: 'fit'"),
        (lambda d: d.update(fit=3), "TypeError"),
        (lambda d: d.update(names=["a"]), "shape"),
        (lambda d: d["names"].__setitem__(0, "other"), "other parameters, the first is 'other'"),
        (lambda d: d["cov"].update(kind="hc3"), "got 'hc3'"),
        (lambda d: d.update(formula="y ~ ~"), "not evaluated"),
        (lambda d: d["data"]["columns"][1].update(kind="time", dtype="no_such"), "unknown type 'no_such'"),
    ],
)
def test_damaged_documents(path, change, message):
    rewritten(path, change)
    with pytest.raises(SavedFileError, match=message):
        load(path)


@pytest.mark.parametrize(
    "arrays",
    [
        {"params": np.zeros(2)},
        {"params": np.array(["a"] * 19)},
        {"cov": np.zeros((2, 2))},
        {"responsibilities": np.zeros(5)},
        {"responsibilities": np.zeros((5, 2))},
        {"responsibilities": np.full((40, 2), "0.5")},
        {"responsibilities": np.full((40, 2), 0.5 + 0j)},
        {"trace": np.zeros((3, 3))},
        {"smoothing": np.array(1.0)},
        {"logliks": np.array(["a"])},
        {"column1": np.array(1.0)},
        {"column1": np.zeros((159, 1))},
        {"position": np.zeros(159, dtype=int)},
        {"position": np.arange(159) + 7},
        {"position": np.arange(10)},
        {"position": np.linspace(0, 1, 159)},
    ],
)
def test_damaged_arrays(path, arrays):
    rewritten(path, arrays=arrays)
    with pytest.raises(SavedFileError):
        load(path)


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip", b"\x80\x04K\x01."])
def test_other_files(tmp_path, content):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(SavedFileError, match="is not a saved fit of mixmoe or is damaged"):
        load(tmp_path / "f")


def test_another_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "f", "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(SavedFileError, match=r"fit\.json"):
        load(tmp_path / "f")


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_truncated_files(path, keep):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(SavedFileError, match="damaged"):
        load(path)


def test_flipped_bytes_are_noticed_or_harmless(path, fit):
    content = path.read_bytes()
    for place in np.random.default_rng(0).integers(len(content), size=150):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        path.write_bytes(bytes(damaged))
        try:
            back = read(path)
        except SavedFileError:
            continue
        np.testing.assert_array_equal(back.fit.params, fit.params)


def test_a_directory_that_points_before_the_file_is_refused(path):
    content = bytearray(path.read_bytes())
    size = content.rindex(b"PK\x05\x06") + 12
    content[size : size + 8] = b"\xff\xff\xff\x7f" * 2  # of the zip: length and place of its directory
    path.write_bytes(bytes(content))
    with pytest.raises(SavedFileError, match="is not a saved fit of mixmoe or is damaged"):
        load(path)


def test_deep_nesting_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "f", "w") as archive:
        archive.writestr("fit.json", "[" * 100_000)
    with pytest.raises(SavedFileError, match="RecursionError"):
        load(tmp_path / "f")


def test_a_file_that_claims_to_be_huge_is_refused(path, monkeypatch):
    monkeypatch.setattr("mixmoe.output.saved._MAX_BYTES", 1000)
    with pytest.raises(SavedFileError, match="more than the 1000 that are read"):
        load(path)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        make_results().save(tmp_path / "none" / "f")


def test_saving_over_a_file_replaces_it(path, fit):
    other = type(fit)(fit.model, fit.em, fit.model.covariance(fit.em, "nonrobust"))
    other.save(path)
    assert load(path).cov_type == "nonrobust"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_flags_of_any_text(tmp_path):
    flags = (Flag("code", 'quotes " and \\ and é 漢'),)
    make_results(flags=flags).save(tmp_path / "f")
    assert load(tmp_path / "f").flags == flags
