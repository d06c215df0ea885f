"""What take, split, padded and fingerprint of Units keep and change."""

import dataclasses

import numpy as np
import pytest

from amortax._errors import DataError
from amortax.data import Units, units


def same(first: Units, second: Units) -> bool:
    return first.fingerprint() == second.fingerprint()


def check(array, expected, dtype):
    assert array.dtype == dtype
    np.testing.assert_array_equal(array, np.array(expected, dtype), strict=True)


@pytest.fixture
def schools() -> Units:
    scores = [[1.0, np.nan], [3.0], [4.0, 5.0, 6.0], []]
    return units({"score": scores, "size": np.array([1, 2, 3, 4])}, labels=list("abcd"), name="school")


def test_take(schools):
    for chosen in ([2, 0], np.array([2, -4])):
        taken = schools.take(chosen)
        assert taken.labels.tolist() == ["c", "a"]
        check(taken.arrays["score"], [[4, 5, 6], [1, 1, 1]], np.float32)
        check(taken.masks["score"], [[1, 1, 1], [1, 0, 0]], np.bool_)
        assert taken.lengths["score"].tolist() == [3, 2]
        assert (taken.arrays["size"].tolist(), taken.name) == ([3, 1], "school")
    assert same(schools.take(slice(1, 3)), schools.take([False, True, True, False]))
    assert same(schools.take(range(4)), schools)
    with pytest.raises(DataError, match="take.*4 is out of bounds.*-4 to 3"):
        schools.take([4])
    with pytest.raises(DataError, match="at least one of the 4 units"):
        schools.take(slice(0, 0))


def test_split_by_whole_units():
    data = units({"x": np.arange(40.0)})
    kept, held = data.split(seed=1)
    assert (len(kept), len(held)) == (36, 4)
    assert sorted([*kept.labels, *held.labels]) == list(range(40))
    np.testing.assert_array_equal(held.arrays["x"], held.labels)
    np.testing.assert_array_equal(kept.labels, np.sort(kept.labels))
    assert same(held, data.split(0.1, seed=1)[1])
    assert same(held, data.split(num=4, seed=1)[1])
    assert held.labels.tolist() != data.split(seed=2)[1].labels.tolist()
    assert held.labels.tolist() != list(range(36, 40))
    assert len(data.take([0, 1]).split(0.01, seed=0)[1]) == 1
    for options in ({"num": 0}, {"num": 40}):
        with pytest.raises(DataError, match="expected from 1 to 39"):
            data.split(**options, seed=0)
    with pytest.raises(DataError, match="between 0 and 1, got 10.0.*num="):
        data.split(10.0, seed=0)
    with pytest.raises(DataError, match="both"):
        data.split(0.1, num=3, seed=0)
    with pytest.raises(DataError, match="can't hold out 1 of 1"):
        data.take([0]).split(seed=0)


def test_padded(schools):
    wide = schools.padded(6, {"score": 5})
    assert wide.labels.tolist() == list("abcddd")
    assert wide.lengths["score"].tolist() == [2, 1, 3, 0, 0, 0]
    expected = [[1, 1, 1, 1, 1], [3, 3, 3, 3, 3], [4, 5, 6, 6, 6], *[[1, 1, 1, 1, 1]] * 3]
    check(wide.arrays["score"], expected, np.float32)
    check(wide.masks["score"], [[1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 0, 0], *[[0] * 5] * 3], np.bool_)
    assert wide.arrays["size"].tolist() == [1, 2, 3, 4, 4, 4]
    assert same(schools.padded(4, {"score": 3}), schools)
    assert same(schools.padded(4, {}), schools)
    rows = units({"x": [np.ones((1, 2)), np.zeros((2, 2))]}).padded(2, {"x": 4})
    assert rows.masks["x"].sum(axis=(1, 2)).tolist() == [2, 4]
    with pytest.raises(DataError, match="num_units is 3 but there are 4"):
        schools.padded(3, {})
    with pytest.raises(DataError, match="'score' has 3 places on axis 1, more than 2"):
        schools.padded(4, {"score": 2})
    with pytest.raises(DataError, match="'size' is not a ragged argument.*score"):
        schools.padded(4, {"size": 9})


def test_fingerprint_sees_every_real_bit_and_no_order_padding_or_filling(schools):
    before = schools.fingerprint()
    assert len(before) == 64
    flipped = dataclasses.replace(schools, arrays=dict(reversed(schools.arrays.items())))
    assert flipped.fingerprint() == before
    assert schools.take([2, 0, 3, 1]).fingerprint() == before
    assert schools.padded(4, {"score": 9}).fingerprint() == before
    hidden = np.where(schools.masks["score"], schools.arrays["score"], np.float32(7))
    assert dataclasses.replace(schools, arrays=schools.arrays | {"score": hidden}).fingerprint() == before
    found = {before}
    for group in ("arrays", "masks", "lengths"):
        for key, array in getattr(schools, group).items():
            raw = np.frombuffer(array.tobytes(), np.uint8).copy()
            raw[0] ^= 1  # of the first value, which is real
            changed = raw.view(array.dtype).reshape(array.shape)
            found.add(dataclasses.replace(schools, **{group: getattr(schools, group) | {key: changed}}).fingerprint())
    found.add(dataclasses.replace(schools, labels=np.array(list("abce"))).fingerprint())
    found.add(dataclasses.replace(schools, name="class").fingerprint())
    found.add(dataclasses.replace(schools, axes={"size": 1}).fingerprint())
    found.add(dataclasses.replace(schools, categories={"size": (1, 2)}).fingerprint())
    arrays = schools.arrays
    found.add(dataclasses.replace(schools, arrays={"score": arrays["score"], "n": arrays["size"]}).fingerprint())
    found.add(dataclasses.replace(schools, arrays=arrays | {"size": arrays["size"].view(np.float32)}).fingerprint())
    found.add(dataclasses.replace(schools, arrays=arrays | {"size": arrays["size"][:, None]}).fingerprint())
    assert len(found) == 12


def test_repr_is_short(schools):
    assert repr(schools) == "Units(4 x school; score: float32[4, 3] ragged, size: int32[4])"
