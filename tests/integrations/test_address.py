"""Addresses: URLs in and out, and each way in which one is wrong named."""

from __future__ import annotations

import pickle

import pytest
from fractal_streams.integrations.address import Address, text_of, value_of
from hypothesis import given, settings, strategies as st

from fractal_streams.errors import AddressError, DeviceError, FractalStreamsError
from fractal_streams.kaleidoscope.fitted_spec import FittedSpec
from fractal_streams.presets import PRESETS
from fractal_streams.stream import SPLITS

FILES = st.one_of(
    st.builds("shard-{:06d}.{}".format, st.integers(0, 4), st.sampled_from(["tar", "arrow", "parquet", "jsonl"])),
    st.builds("endless.{}".format, st.sampled_from(["tar", "arrow"])),
    st.builds("{:08d}.{}".format, st.integers(0, 2**63 - 1), st.sampled_from(["png", "bmp", "npy", "json"])),
    st.just(""),
)
SIZED = [name for name, spec in PRESETS.items() if not isinstance(spec, FittedSpec)]
"""Presets whose height and width are of the spec, and not of a file of weights."""
ADDRESSES = st.builds(
    Address,
    source=st.sampled_from([*SIZED, "mandelbrot", "sine"]),
    split=st.sampled_from(SPLITS),
    seed=st.integers(0, 2**64 - 1),
    settings=st.dictionaries(st.sampled_from(["height", "width"]), st.integers(8, 99)).map(lambda d: tuple(d.items())),
    samples=st.integers(1, 10**6),
    shards=st.none() | st.integers(5, 10**6),
    image=st.none() | st.sampled_from(["png", "bmp", "npy"]),
    start=st.integers(0, 2**62),
    digest=st.none() | st.from_regex(r"[0-9a-f]{8,16}", fullmatch=True),
    file=FILES,
)  # fmt: skip
VALUES = st.one_of(
    st.integers(-(10**20), 10**20), st.booleans(), st.none(), st.floats(allow_nan=False, allow_infinity=False),
    st.from_regex(r"[a-z_]{2,12}", fullmatch=True).filter(lambda word: word not in ("true", "false", "none")),
    st.lists(st.from_regex(r"[a-z_]{2,5}", fullmatch=True), min_size=2, max_size=4).map(tuple),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(ADDRESSES)
def test_an_address_is_read_as_it_was_written(address: Address) -> None:
    assert Address.parse(str(address)) == address
    assert str(Address.parse(str(address))) == str(address)
    assert Address.parse(address.path) == address
    assert pickle.loads(pickle.dumps(address)) == address


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_a_value_is_read_as_it_was_written_with_its_type(value: object) -> None:
    read = value_of("x", text_of(value))
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    "url",
    [
        "fractal://fractal-10/test/seed=7/height=64/samples=20/shard-000003.tar",
        "fractal-10/test/seed=7/samples=20/height=64/shard-000003.tar",
        "fractal-10/test/height=64,seed=7,samples=20/shard-000003.tar",
        "fractal-10/test/seed=7/shard-000003.tar?samples=20&height=64",
        "fractal-10/test/shard-000003.tar?seed=7&samples=20&height=64",
        "/fractal-10/test/seed=7/height=64/shard-000003.tar?samples=20",
    ],
)
def test_the_ways_to_write_one_address_mean_the_same(url: str) -> None:
    address = Address.parse(url)
    assert str(address) == "fractal://fractal-10/test/seed=7/height=64/samples=20/shard-000003.tar"
    assert address.indices == range(60, 80)
    assert (address.seed, address.split, address.settings) == (7, "test", (("height", 64),))


def test_shards_follow_each_other_from_the_start_on() -> None:
    found = [Address.parse(f"sine/train/seed=0,start=100,samples=30/shard-00000{k}.arrow").indices for k in range(3)]
    assert found == [range(100, 130), range(130, 160), range(160, 190)]
    assert Address.parse("sine/train/seed=0/start=100/endless.tar").indices is None
    assert Address.parse("sine/train/seed=0/start=100/00000007.png").indices == range(7, 8)


def test_a_stream_is_opened_as_the_address_says() -> None:
    stream = Address.parse("fractal-video/validation/seed=9/frames=3,height=16,iterations=12/endless.tar").open_stream()
    assert (stream.seed, stream.split, stream.device) == (9, "validation", "cpu")
    assert stream.spec.frames == 3  # type: ignore[attr-defined]
    assert (stream.spec.still.height, stream.spec.still.iterations) == (16, 12)  # type: ignore[attr-defined]
    families = Address.parse("mandelbrot/train/seed=0/formulas=sine+julia,num_classes=2/endless.tar").open_stream()
    assert families.spec.formulas == ("sine", "julia")  # type: ignore[attr-defined]


def test_a_stream_is_opened_once() -> None:
    first, second = (Address.parse(f"fractal-10/train/seed=3/shard-00000{k}.tar") for k in (1, 2))
    assert first.open_stream() is second.open_stream()
    assert first.open_stream() is not Address.parse("fractal-10/train/seed=4/shard-000001.tar").open_stream()


def test_a_picture_is_in_the_same_stream() -> None:
    address = Address.parse("fractal-10/train/seed=1/height=16/samples=5/image=bmp/shard-000001.jsonl")
    assert str(address.picture(7, "bmp")) == "fractal://fractal-10/train/seed=1/height=16/00000007.bmp"


WRONG = {
    "fractal-11/train/seed=0/endless.tar": "unknown preset or formula 'fractal-11': did you mean 'fractal-1k'",
    "os:system/train/seed=0/endless.tar": "imports no code and reads no file",
    "spec.json/train/seed=0/endless.tar": "imports no code and reads no file",
    "fractal-10": "lacks a split",
    "fractal-10/train/endless.tar": "lacks a seed: fractal://fractal-10/train/seed=0/endless.tar",
    "fractal-10/train/height=16": "lacks a seed",
    "fractal-10/training/seed=0/endless.tar": "unknown split 'training': did you mean 'train'",
    "fractal-10/train/seed=-1/endless.tar": "seed must be a whole number from 0 to 18446744073709551615, got -1",
    "fractal-10/train/seed=18446744073709551616/endless.tar": "got 18446744073709551616",
    "fractal-10/train/seed=one/endless.tar": "seed must be a whole number",
    "fractal-10/train/seed=1.0/endless.tar": "seed must be a whole number",
    "fractal-10/train/seed=true/endless.tar": "seed must be a whole number",
    "fractal-10/train/seed=0/seed=1/endless.tar": "gives seed twice",
    "fractal-10/train/seed=0/hieght=16/endless.tar": "unknown setting 'hieght': did you mean 'height'",
    "fractal-10/train/seed=0/frames=4/endless.tar": "unknown setting 'frames'",
    "fractal-10/train/seed=0/priors=1/endless.tar": "unknown setting 'priors'",
    "fractal-10/train/seed=0/renderer=numba/endless.tar": "unknown setting 'renderer'",
    "fractal-10/train/seed=0/dtype=float16/endless.tar": "unknown setting 'dtype'",
    "fractal-10/train/seed=0/colouring=os:system/endless.tar": "a value is made of letters",
    "fractal-10/train/seed=0/height=/endless.tar": "a value is made of letters",
    "fractal-10/train/seed=0/samples=0/endless.tar": "samples must be a whole number from 1 to 1000000, got 0",
    "fractal-10/train/seed=0/shards=1000001/endless.tar": "shards must be a whole number from 1 to 1000000",
    "fractal-10/train/seed=0/start=-3/endless.tar": "start must be",
    "fractal-10/train/seed=0/image=gif/endless.tar": "unknown image 'gif': did you mean 'png'|known are bmp, npy, png",
    "fractal-10/train/seed=0/shard-001000.tar": "shard 1000 is out of range.*shards 0 to 999.*give shards=N",
    "fractal-10/test/seed=0/shard-000010.tar": "shard 10 is out of range.*shards 0 to 9;",
    "fractal-10/train/seed=0/shards=3/shard-000003.tar": "shards 0 to 2;",
    "fractal-10/train/seed=0/shard-000000.zip": "unknown format of shard files 'zip'",
    "fractal-10/train/seed=0/endless.parquet": "unknown format of endless files 'parquet'",
    "fractal-10/train/seed=0/00000001.jpg": "unknown format of picture files 'jpg'",
    "fractal-10/train/seed=0/shard-0.tar": "no file 'shard-0.tar'.*shard-000000.tar",
    "fractal-10/train/seed=0/000000001.png": "an index is 0 to 2\\*\\*63 - 1 in 8 digits",
    "fractal-10/train/seed=0/9223372036854775808.png": "an index is 0 to 2\\*\\*63 - 1",
    "fractal-10/train/seed=0/oops/endless.tar": "'oops' in .* is no setting",
    "fractal-10/train/seed=0/shard-00000\u0661.tar": "no file 'shard-00000\u0661.tar'",
    "fractal-10/train/seed=0/0000000\u0661.png": "no file '0000000\u0661.png'",
    "fractal-10/train/seed=0/channels_last=no/endless.tar": "channels_last must be true or false, got 'no'",
    "fractal-10/train/seed=0/channels_last=0/endless.tar": "channels_last must be true or false, got 0",
}


@pytest.mark.parametrize("url", WRONG)
def test_a_wrong_address_says_what_is_wrong(url: str) -> None:
    with pytest.raises(AddressError, match=WRONG[url]) as caught:
        Address.parse(f"fractal://{url}")
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value, FractalStreamsError)


@pytest.mark.parametrize(
    "settings, said",
    [
        ("height=7", "height must be a whole number from 8 to 4096 pixels, got 7"),
        ("height=32.0", "height must be a whole number"),
        ("colouring=plaid", "plaid"),
        ("formulas=nonsense", "nonsense"),
        ("formulas=sine+julia+kali", "num_classes"),
    ],
)
def test_a_value_that_the_spec_refuses_is_a_wrong_address(settings: str, said: str) -> None:
    address = Address.parse(f"mandelbrot/train/seed=0/{settings}/endless.tar")
    with pytest.raises(AddressError, match=said):
        address.open_stream()


def test_a_digest_holds_an_address_to_its_stream() -> None:
    address = Address.parse("fractal-10/train/seed=0/height=64/00000001.png")
    digest = address.open_stream().digest().partition("-")[0]
    held = f"fractal-10/train/seed=0/height=64/digest={digest}/00000001.png"
    assert Address.parse(held).open_stream() is address.open_stream()
    with pytest.raises(AddressError, match=f"is not what it was when digest={digest} was written"):
        Address.parse(held.replace("=64", "=65")).open_stream()
    with pytest.raises(AddressError, match="at least 8 characters, got '12e4567'"):
        Address.parse("fractal-10/train/seed=0/digest=12e4567/00000001.png")


def test_equal_keys_of_another_type_are_other_settings() -> None:
    Address.parse("mandelbrot/train/seed=0/height=33/endless.tar").open_stream()
    with pytest.raises(AddressError, match="got 33.0"):
        Address.parse("mandelbrot/train/seed=0/height=33.0/endless.tar").open_stream()


def test_a_device_that_is_not_there_is_an_error_of_the_device() -> None:
    with pytest.raises(DeviceError):
        Address.parse("mandelbrot/train/seed=0/device=cuda:9999/endless.tar").open_stream()


def test_a_kaleidoscope_has_settings_of_its_own() -> None:
    fingerprint = "1" * 32  # digits alone, and yet no number
    url = f"fractal://kaleidoscope-10/test/seed=3/fingerprint={fingerprint}/most=40/stratified=false/00000007.png"
    address = Address.parse(url)
    assert dict(address.settings) == {"fingerprint": fingerprint, "most": 40, "stratified": False}
    assert str(address) == url
    for name in ("model", "height"):
        with pytest.raises(AddressError, match=f"unknown setting '{name}'"):
            Address.parse(f"kaleidoscope-10/test/seed=3/{name}=8/00000007.png")
