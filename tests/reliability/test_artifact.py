"""An artifact is read back bit by bit, or refused with a sentence: under flips, cuts, forgery, full disks."""

import base64
import errno
import hashlib
import io
import json
import os
import resource
import stat
import struct
import zipfile
import zlib

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from amortax import artifact
from amortax._errors import ArtifactError
from amortax.artifact import read_artifact, write_artifact

MANIFEST = {
    "model": "radon",
    "recipe": {"recipe": "dense", "width": 64, "layers": [1, 2]},
    "elbo_per_unit": -1.25,
    "tiny": 5e-324,
    "minus_zero": -0.0,
    "big": 2**80,
    "text": 'ÿ "quoted" \n \ud800',
    "none": None,
    "yes": True,
}
DTYPES = ["bool", "float16", "float32", "float64"] + [f"{s}int{b}" for s in ("", "u") for b in (8, 16, 32, 64)]


def arrays():
    rng = np.random.default_rng(0)
    values = {f"dtype.{name}": rng.integers(0, 2, size=(3, 2)).astype(name) for name in DTYPES}
    return values | {
        "block['county'].layers[0].weight": rng.normal(size=(4, 3)).astype(np.float32),
        "scalar": np.full((), np.pi),
        "empty": np.zeros((0, 7), np.int32),
        "special": np.array([np.nan, -np.inf, -0.0, 5e-324]),
        "": np.arange(3),
        "ünïcode / slash": np.arange(2),
    }


def same(left, right):
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and left[name].tobytes() == right[name].tobytes()
        for name in left
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "posterior.amortax"


@pytest.fixture
def small(path):
    """A path that holds an artifact of some 900 bytes, whose every bit can be tried."""
    write_artifact(path, {"units": 85}, {"scale": np.float32([1, 2]), "shift": np.full((), 3.0)})
    return path


def refuses(path, match):
    with pytest.raises(ArtifactError, match=match) as caught:
        read_artifact(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# Round trips


def test_round_trip_bit_by_bit(path):
    write_artifact(path, MANIFEST, arrays())
    manifest, read = read_artifact(path)
    assert manifest == MANIFEST
    assert str(manifest["minus_zero"]) == "-0.0"
    assert same(read, arrays())
    read["scalar"][()] = 1.0  # writable, as arrays are
    assert list(path.parent.iterdir()) == [path]


def test_nothing_at_all_is_legal(path):
    write_artifact(path, {}, {})
    assert read_artifact(path) == ({}, {})


def test_layout_in_memory_does_not_matter(path):
    matrix = np.arange(6, dtype=np.float64).reshape(2, 3)
    write_artifact(path, {"tuple": (1, 2)}, {"t": matrix.T, "big": matrix.astype(">f8"), "step": matrix[:, ::2]})
    manifest, read = read_artifact(path)
    assert manifest == {"tuple": [1, 2]}
    assert same(read, {"t": matrix.T.copy(), "big": matrix, "step": matrix[:, ::2].copy()})


def test_equal_content_is_equal_bytes(tmp_path):
    shuffled = dict(reversed(list(arrays().items())))
    write_artifact(tmp_path / "a", MANIFEST, arrays())
    write_artifact(tmp_path / "b", dict(reversed(list(MANIFEST.items()))), shuffled)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


FORMAT_1 = (  # what amortax 0.1 wrote for `small`, zlib and base 85
    "c-nPRu};G<5KUV^s1gg}1A-@pP$hQkI4pEx=|J}?LYLSUMQwuWAW>D3K>PqBAHa_wzJZ0W!A_eN3OG8)cjtF^es{w`XXnUSu4Cuq?R5ImavU"
    "oM#xjL`tfVe`H@e6dT^GS@26K(hT%)*1XE2c~#YLi=-&zf+NdYCn$g9oz8fx>%YA&{WVz$bwBV3PF`A-BEZbztb-5QFrA}?j$V9{MZE^S?$u"
    "Ka2|k?TU2W%o2FX+XM|>2=O@Ue@=5FkENDl+{&`h>(=ZIP*a;9;5;DqnH!Qi~(dCVH%1k3;ZmVic_D(ku(-CUQGP}(6@3`F`I&|Hn7?zM+Q6"
    "=nW8*a9Mc$x;5djFBPLOlG9t53C}7H`g!>c=fn!i47KAf_1r?}U4S%%olV5&3o0FA8Bfp=1zq-3<*k3fnqYKM<!}lohkbn}d3Z=BP?2deoCz"
    "aRq{Tt49dyT`tf!qsNQdM>W+-3ItzT-Tcn?rv%Xtj?z{|{laULT$9k=%xEKYjy!Z~aBZaIm{){cZCt%>SuvwJ#YEzYY"
)


def test_format_1_is_read_for_ever(path):
    path.write_bytes(zlib.decompress(base64.b85decode(FORMAT_1)))
    manifest, read = read_artifact(path)
    assert manifest == {"units": 85}
    assert same(read, {"scale": np.float32([1, 2]), "shift": np.full((), 3.0)})


def test_everyday_tools_open_it(small):
    with zipfile.ZipFile(small) as archive:
        assert archive.testzip() is None
        manifest = json.loads(archive.read("manifest.json"))
        assert manifest["content"] == {"units": 85}
        assert manifest["arrays"]["scale"] == {"shape": [2], "dtype": "float32"}
        data = archive.read("arrays.safetensors")
    assert manifest["files"] == {"arrays.safetensors": {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}}
    np.testing.assert_array_equal(safetensors.numpy.load(data)["scale"], [1, 2])


# Damage


def test_every_flipped_bit_is_refused_or_harmless(small):
    good = small.read_bytes()
    manifest, expected = read_artifact(small)
    harmless = 0
    for position in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[position] ^= 1 << bit
            small.write_bytes(bad)
            try:
                content, read = read_artifact(small)
            except ArtifactError:
                continue
            harmless += 1
            assert content == manifest, (position, bit)
            assert same(read, expected), (position, bit)
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        believed = sum(info.file_size for info in archive.infolist())
    assert harmless <= 8 * (len(good) - believed)  # nothing inside a member is harmless
    assert harmless < 8 * 150


def test_every_flipped_bit_inside_a_member_is_refused_even_with_its_checksum_mended(small):
    """The CRC of the zip is no protection against a writer who mends it: the hashes must see the flip alone."""
    with zipfile.ZipFile(small) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    for name, data in members.items():
        for position in range(len(data)):
            bad = bytearray(data)
            bad[position] ^= 1 << position % 8
            rezip(small, members | {name: bytes(bad)})
            with pytest.raises(ArtifactError):
                read_artifact(small)


def test_a_flip_in_a_larger_file_is_refused(path):
    write_artifact(path, MANIFEST, {"weights": np.random.default_rng(1).normal(size=(200, 200))})
    good = path.read_bytes()
    for position in np.random.default_rng(2).integers(100, len(good) - 400, size=50):
        bad = bytearray(good)
        bad[position] ^= 1
        path.write_bytes(bad)
        refuses(path, "damaged|not JSON|not an artifact")


def test_truncated_anywhere_is_refused(small):
    good = small.read_bytes()
    for length in range(len(good)):
        small.write_bytes(good[:length])
        with pytest.raises(ArtifactError):
            read_artifact(small)


def test_not_an_artifact(tmp_path):
    refuses(tmp_path / "nowhere", "doesn't exist")
    refuses(tmp_path, "is a directory")
    (tmp_path / "text").write_text("hello")
    refuses(tmp_path / "text", "not an artifact")
    (tmp_path / "file" / "under").parent.write_text("a file where a folder should be")
    refuses(tmp_path / "file" / "under", "can't be read")
    os.mkfifo(tmp_path / "pipe")
    refuses(tmp_path / "pipe", "pipe")  # and does not wait for a writer
    with pytest.raises(ArtifactError, match="doesn't exist"):
        read_artifact("null\0byte")


# Forgery: well-formed zips that say something else than they hold


SHIFT = {"shape": [], "dtype": "float64"}


def rezip(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, data)


def forged(path, *, seal=True, data=None, **changes):
    """Rewrites the artifact at `path` with top-level keys changed, and hashed again if `seal`."""
    with zipfile.ZipFile(path) as archive:
        manifest = json.loads(archive.read("manifest.json"))
        old = archive.read("arrays.safetensors")
    data = old if data is None else data
    manifest["files"]["arrays.safetensors"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    manifest = {key: value for key, value in (manifest | changes).items() if value is not ...}
    if seal:
        manifest.pop("sha256", None)
        manifest["sha256"] = hashlib.sha256(artifact._canonical(manifest)).hexdigest()
    rezip(path, {"manifest.json": artifact._canonical(manifest), "arrays.safetensors": data})
    return manifest


def test_a_faithful_forgery_is_read(small):
    """The tool itself makes a readable artifact, so what the next tests refuse is what they changed."""
    forged(small)
    assert read_artifact(small)[0] == {"units": 85}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": 2}, "written in format 2.*reads formats up to 1.*reads format 2"),
        ({"format": 2, "unheard": "of"}, "written in format 2"),
        ({"format": 0}, "states the format 0"),
        ({"format": "1"}, "states the format '1'"),
        ({"format": True}, "states the format True"),
        ({"format": ...}, "states the format None"),
        ({"extra": 1}, r"unknown keys \['extra'\]"),
        ({"arrays": ...}, r"without \['arrays'\]"),
        ({"content": [1]}, "has a list as its content"),
        ({"files": {}}, "describes the files {}"),
        ({"files": 3}, "describes the files 3"),
        ({"files": {"arrays.safetensors": {"sha256": "0"}}}, "by sha256 and bytes"),
        ({"files": {"arrays.safetensors": {"sha256": "0", "bytes": 3}}}, "its manifest says 3"),
        ({"files": {"arrays.safetensors": {}, "../evil": {}}}, "evil"),
        ({"arrays": {}}, r"\['scale', 'shift'\] besides"),
        ({"arrays": []}, r"\['scale', 'shift'\] besides"),
        ({"arrays": {"scale": {}, "shift": {}, "absent": {}}}, r"lacks the arrays \['absent'\]"),
        ({"arrays": {"scale": {"shape": [1, 2], "dtype": "float32"}, "shift": SHIFT}}, "has array 'scale'"),
        ({"arrays": {"scale": {"shape": [2], "dtype": "int32"}, "shift": SHIFT}}, "has array 'scale'"),
    ],
)
def test_a_manifest_that_differs_is_refused(small, changes, match):
    forged(small, **changes)
    refuses(small, match)


def test_content_changed_without_its_hash_is_refused(small):
    forged(small, seal=False, content={"units": 86})
    refuses(small, "manifest.json has SHA-256")


def test_other_arrays_of_equal_size_are_refused(small):
    with zipfile.ZipFile(small) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    other = {"scale": np.float32([1, 3]), "shift": np.full((), 3.0)}
    rezip(small, members | {"arrays.safetensors": safetensors.numpy.save(other)})
    refuses(small, "arrays.safetensors has SHA-256")


@pytest.mark.parametrize("data", [b"", b"garbage", struct.pack("<Q", 2**60) + b"{}", struct.pack("<Q", 2) + b"[]"])
def test_arrays_that_are_not_safetensors_are_refused(small, data):
    forged(small, data=data)
    refuses(small, "of another kind")


def test_a_dtype_outside_the_format_is_refused(small):
    data = safetensors.numpy.save({"z": np.zeros(2, np.complex64)})
    forged(small, data=data, arrays={"z": {"shape": [2], "dtype": "complex64"}})
    refuses(small, "has array 'z'")


@pytest.mark.parametrize(
    "text", [b"", b"\xff", b"[" * 100_000, b'{"format": 1', b"null", b'{"format": ' + b"9" * 5000 + b"}"]
)
def test_a_manifest_that_is_not_json_is_refused(small, text):
    rezip(small, {"manifest.json": text, "arrays.safetensors": b""})
    refuses(small, "not JSON|states the format")


@pytest.mark.parametrize(
    "edit",
    [lambda t: t.replace(b"85", b"NaN"), lambda t: t.replace(b"{", b"{ ", 1), lambda t: t.replace(b"1", b"1.0", 1)],
)
def test_only_the_canonical_text_is_believed(small, edit):
    with zipfile.ZipFile(small) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    assert edit(members["manifest.json"]) != members["manifest.json"]
    rezip(small, members | {"manifest.json": edit(members["manifest.json"])})
    with pytest.raises(ArtifactError, match="damaged|canonical|states the format"):
        read_artifact(small)


def test_a_key_given_twice_is_refused(small):
    with zipfile.ZipFile(small) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    text = members["manifest.json"].replace(b'"units": 85', b'"units": 84,\n  "units": 85')
    rezip(small, members | {"manifest.json": text})
    refuses(small, "other spacing")


EVIL = ["../evil", "/etc/evil", "a/../../evil", "C:\\evil", "pickle.pkl", "manifest.json\0.txt", "MANIFEST.JSON"]


@pytest.mark.parametrize("name", EVIL)
def test_other_members_are_refused(small, name):
    with zipfile.ZipFile(small) as archive:
        manifest, data = (archive.read(info) for info in archive.infolist())
    raw = name.encode()
    placeholder = "x" * len(raw)  # zipfile cleans names as it writes them, so they are planted afterwards
    for members in (
        [("manifest.json", manifest), ("arrays.safetensors", data), (placeholder, b"")],
        [(placeholder, manifest), ("arrays.safetensors", data)],
        [("manifest.json", manifest), (placeholder, data)],
    ):
        rezip(small, members)
        small.write_bytes(small.read_bytes().replace(placeholder.encode(), raw))
        refuses(small, "has the members|damaged")


def test_missing_duplicate_or_reordered_members_are_refused(small):
    with zipfile.ZipFile(small) as archive:
        manifest, data = ((info.filename, archive.read(info)) for info in archive.infolist())
    for members in ([], [manifest], [data], [data, manifest]):
        rezip(small, members)
        refuses(small, "has the members")
    for members in ([manifest, data, data], [manifest, manifest, data]):
        with pytest.warns(UserWarning, match="Duplicate"):
            rezip(small, members)
        refuses(small, "has the members")


def test_compressed_or_linked_members_are_refused(small):
    with zipfile.ZipFile(small) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    rezip(small, members, zipfile.ZIP_DEFLATED)
    refuses(small, "compressed")
    for kind in (stat.S_IFLNK, stat.S_IFDIR, stat.S_IFIFO):
        with zipfile.ZipFile(small, "w") as archive:
            for name, data in members.items():
                info = zipfile.ZipInfo(name)
                info.external_attr = (kind | 0o777) << 16
                archive.writestr(info, data)
        refuses(small, "link or special")


def test_claimed_sizes_are_measured_before_anything_is_allocated(small, monkeypatch):
    good = small.read_bytes()
    central = good.index(b"PK\x01\x02", good.index(b"PK\x01\x02") + 1)  # the second entry: the arrays
    bad = bytearray(good)
    struct.pack_into("<II", bad, central + 20, 2**32 - 2, 2**32 - 2)
    small.write_bytes(bad)

    def never(*_):
        raise AssertionError("read a member before its size was checked")

    monkeypatch.setattr(zipfile.ZipFile, "read", never)
    refuses(small, "its members claim 4,294,9")
    small.write_bytes(good)
    with pytest.raises(ArtifactError, match="max_bytes = 100;"):
        read_artifact(small, max_bytes=100)
    monkeypatch.setattr(artifact, "_MAX_MANIFEST_BYTES", 50)
    refuses(small, "at most 50")


def test_the_manifest_names_the_size_before_the_arrays_are_read(small, monkeypatch):
    forged(small, files={"arrays.safetensors": {"sha256": "0", "bytes": 3}})
    asked = []
    read = zipfile.ZipFile.read
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda self, info: (asked.append(info.filename), read(self, info))[1])
    refuses(small, "its manifest says 3")
    assert asked == ["manifest.json"]


# What can't be written


@pytest.mark.parametrize(
    ("manifest", "match"),
    [
        ({"a": {"b": [0.0, float("nan")]}}, r"manifest\['a'\]\['b'\]\[1\] is nan"),
        ({"a": float("inf")}, r"manifest\['a'\] is inf"),
        ({"a": np.float32(1)}, r"manifest\['a'\] is of type float32"),
        ({"a": np.zeros(2)}, r"manifest\['a'\] is of type ndarray"),
        ({"a": {1: 2}}, r"manifest\['a'\] has the key 1; expected a string"),
        ({"a": {None: 2}}, "has the key None"),
        ({"a": b"bytes"}, "of type bytes"),
        ({"a": 10**5000}, "can't be written"),
    ],
)
def test_a_manifest_that_json_would_change_is_refused(path, manifest, match):
    with pytest.raises(ArtifactError, match=match):
        write_artifact(path, manifest, {})
    assert list(path.parent.iterdir()) == []


def test_a_manifest_that_holds_itself_or_is_too_long_is_refused(path, monkeypatch):
    loop: dict = {}
    loop["self"] = loop
    with pytest.raises(ArtifactError, match="recursion"):
        write_artifact(path, loop, {})
    monkeypatch.setattr(artifact, "_MAX_MANIFEST_BYTES", 1000)
    with pytest.raises(ArtifactError, match="at most 1,000; use arrays"):
        write_artifact(path, {"long": "x" * 1000}, {})
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("z", np.zeros(2, np.complex64), "array 'z' has dtype complex64"),
        ("o", np.array([{}], object), "array 'o' has dtype object"),
        ("s", np.array(["text"]), "array 's' has dtype <U4"),
        ("t", np.zeros(1, "datetime64[s]"), "has dtype datetime64"),
        ("r", np.zeros(1, [("a", "f4")]), "array 'r' has dtype"),
        ("b", np.zeros(1, ml_dtypes.bfloat16), "has dtype bfloat16"),
        ("l", np.zeros(1, np.longdouble), "array 'l' has dtype"),
        ("m", np.ma.masked_array([1.0], [True]), "array 'm' is masked"),
        ("__metadata__", np.zeros(1), "can't be named '__metadata__'"),
        ("\ud800", np.zeros(1), "can't be written"),
    ],
)
def test_an_array_that_would_not_come_back_is_refused(path, name, value, match):
    with pytest.raises(ArtifactError, match=match):
        write_artifact(path, {}, {name: value})
    assert list(path.parent.iterdir()) == []


# Failing disks


def fail(code):
    def raising(*_args, **_kwargs):
        raise OSError(code, os.strerror(code))

    return raising


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_failing_disk_leaves_the_old_file_alone(small, monkeypatch, call, code):
    before = small.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail(code))
        with pytest.raises(ArtifactError, match=rf"\(\d[\d,]* bytes\) can't be written: {os.strerror(code)}") as caught:
            write_artifact(small, {"units": 86}, {})
    assert str(small) in str(caught.value)
    assert small.read_bytes() == before
    assert list(small.parent.iterdir()) == [small]


def test_a_full_disk_in_the_middle_of_writing(small):
    """A limit on file size stands for the full disk: the system itself cuts the write short."""
    before = small.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(ArtifactError, match=r"\(8,000,\d+ bytes\) can't be written: File too large"):
            write_artifact(small, {}, {"large": np.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert small.read_bytes() == before
    assert list(small.parent.iterdir()) == [small]


def test_an_interrupt_leaves_no_stray_file(small, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    before = small.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write_artifact(small, {}, {})
    assert small.read_bytes() == before
    assert list(small.parent.iterdir()) == [small]


def test_places_that_can_not_be_written(tmp_path):
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "folder", tmp_path / "absent" / "a.amortax", "null\0byte"):
        with pytest.raises(ArtifactError, match="can't be written"):
            write_artifact(place, {}, {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]
    assert list((tmp_path / "folder").iterdir()) == []


def test_order_of_the_write(path, monkeypatch):
    """Data reaches the disk before the name does, and the name before the call returns."""
    events = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor):
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def watched_replace(source, target):
        assert os.path.dirname(source) == os.path.dirname(target)
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    write_artifact(path, {}, {})
    assert events == ["file", "rename", "folder"]


def test_a_relative_path_and_the_users_permissions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    previous = os.umask(0o022)
    try:
        write_artifact("here.amortax", {}, {})
    finally:
        os.umask(previous)
    assert stat.S_IMODE(os.stat("here.amortax").st_mode) == 0o644
    assert read_artifact("here.amortax") == ({}, {})
