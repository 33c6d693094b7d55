"""Images: every encoding against the colours that went in, and damage of every kind against a clear refusal."""

from __future__ import annotations

import contextlib
import struct
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vmloc_ros.errors import MessageError
from vmloc_ros.images import RAW_COLOUR, decode_depth, decode_image
from vmloc_ros.types import EncodedImage, RawImage

RNG = np.random.default_rng(3)
RGB = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
SMOOTH = cv2.resize(RNG.integers(0, 256, (4, 5, 3), dtype=np.uint8), (64, 48), interpolation=cv2.INTER_CUBIC)


def raw(pixels: NDArray, encoding: str, padding: int = 0, is_bigendian: bool = False) -> RawImage:
    """A message of pixels whose dtype already has the byte order wanted."""
    height, width = pixels.shape[:2]
    row = pixels.reshape(height, -1).view(np.uint8)
    padded = np.full((height, row.shape[1] + padding), 0xAB, dtype=np.uint8)
    padded[:, : row.shape[1]] = row
    return RawImage(5, "cam", height, width, encoding, padded.shape[1], is_bigendian, padded.tobytes())


def mosaic(rgb: NDArray[np.uint8], encoding: str) -> NDArray[np.uint8]:
    """What a sensor with this pattern measures, from the letters of ROS's name alone."""
    letters = encoding.removeprefix("bayer_").removesuffix("8")
    out = np.empty(rgb.shape[:2], dtype=np.uint8)
    for place, letter in enumerate(letters):
        row, column = divmod(place, 2)
        out[row::2, column::2] = rgb[row::2, column::2, "rgb".index(letter)]
    return out


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    ("encoding", "pixels"),
    [
        ("rgb8", RGB),
        ("bgr8", RGB[..., ::-1]),
        ("rgba8", np.dstack([RGB, np.full((6, 8), 7, np.uint8)])),
        ("bgra8", np.dstack([RGB[..., ::-1], np.full((6, 8), 7, np.uint8)])),
    ],
)
def test_raw_colour_gives_back_what_went_in(encoding: str, pixels: NDArray, padding: int) -> None:
    decoded = decode_image(raw(np.ascontiguousarray(pixels), encoding, padding))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, RGB)


def test_grey_becomes_three_equal_channels() -> None:
    decoded = decode_image(raw(RGB[..., 0].copy(), "mono8", padding=3))
    np.testing.assert_array_equal(decoded, np.repeat(RGB[..., :1], 3, axis=2))


@pytest.mark.parametrize("padding", [0, 6])
def test_rgb8_is_a_view_of_the_message(padding: int) -> None:
    message = raw(RGB, "rgb8", padding)
    assert np.shares_memory(decode_image(message), np.frombuffer(message.data, np.uint8))


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, lambda b: np.frombuffer(b, np.uint8)])
def test_takes_whatever_buffer_a_message_library_stores(wrap: type) -> None:
    message = RawImage(0, "cam", 6, 8, "rgb8", 24, False, wrap(RGB.tobytes()))
    np.testing.assert_array_equal(decode_image(message), RGB)


@pytest.mark.parametrize("encoding", [name for name in RAW_COLOUR if name.startswith("bayer")])
@pytest.mark.parametrize("padding", [0, 9])
def test_bayer_pattern_is_named_from_the_first_pixel(encoding: str, padding: int) -> None:
    colour = np.broadcast_to(np.array([200, 100, 30], dtype=np.uint8), (10, 12, 3))
    decoded = decode_image(raw(mosaic(colour, encoding), encoding, padding))
    np.testing.assert_array_equal(decoded[2:-2, 2:-2], colour[2:-2, 2:-2])


def test_bayer_agrees_with_opencv_short_names() -> None:
    sensor = RNG.integers(0, 256, (20, 30), dtype=np.uint8)
    for encoding, short in (("rggb", "BG"), ("bggr", "RG"), ("gbrg", "GR"), ("grbg", "GB")):
        expected = cv2.cvtColor(sensor, getattr(cv2, f"COLOR_Bayer{short}2RGB"))
        np.testing.assert_array_equal(decode_image(raw(sensor, f"bayer_{encoding}8")), expected)


def test_real_robotcar_image_has_red_bricks(shared_data: Path) -> None:
    folder = shared_data / "robotcar" / "raw_images_2014-05-06"
    sensor = cv2.imread(str(sorted(folder.rglob("*.png"))[3]), cv2.IMREAD_UNCHANGED)
    assert sensor.shape == (960, 1280)
    bricks = decode_image(raw(sensor, "bayer_gbrg8"))[300:360, 1075:1130].reshape(-1, 3).mean(axis=0)
    swapped = decode_image(raw(sensor, "bayer_grbg8"))[300:360, 1075:1130].reshape(-1, 3).mean(axis=0)
    assert bricks[0] > 1.1 * bricks[2]
    assert swapped[0] < swapped[2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": b""}, "truncated, has 0 bytes instead of 144"),
        ({"data": bytes(143)}, "truncated"),
        ({"data": bytes(145)}, "too long"),
        ({"data": [1, 2, 3]}, "list, not a contiguous buffer"),
        ({"data": None}, "NoneType"),
        ({"height": 0, "data": b""}, "empty"),
        ({"width": -8}, "empty"),
        ({"step": 23}, "step 23 is less than the 24 bytes"),
        ({"step": 0, "data": b""}, "step 0"),
    ],
)
def test_sizes_that_disagree_are_named(change: dict, words: str) -> None:
    values = {"height": 6, "width": 8, "step": 24, "data": RGB.tobytes()} | change
    message = RawImage(0, "cam", values["height"], values["width"], "rgb8", values["step"], False, values["data"])
    with pytest.raises(MessageError, match=words):
        decode_image(message)


def test_tiny_mosaic_is_refused() -> None:
    with pytest.raises(MessageError, match="2x2"):
        decode_image(raw(np.zeros((1, 4), np.uint8), "bayer_rggb8"))


# ---------------------------------------------------------------------------------------------------------- cv_bridge


def test_unknown_encoding_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv_bridge", None)
    with pytest.raises(MessageError, match=r"'yuv422_yuy2' is unknown here.*cv_bridge"):
        decode_image(raw(np.zeros((2, 2), np.uint16), "yuv422_yuy2"))


def test_other_encodings_go_through_cv_bridge(monkeypatch: pytest.MonkeyPatch) -> None:
    class CvBridge:
        def imgmsg_to_cv2(self, message: RawImage, desired_encoding: str) -> NDArray[np.uint8]:
            assert desired_encoding == "rgb8"
            if message.encoding == "broken":
                raise TypeError("no conversion")
            return np.zeros((1, 1, 3), np.uint8) if message.encoding == "wrong_size" else RGB

    monkeypatch.setitem(sys.modules, "cv_bridge", types.SimpleNamespace(CvBridge=CvBridge))
    np.testing.assert_array_equal(decode_image(raw(np.zeros((6, 8), np.uint16), "uyvy")), RGB)
    for encoding in ("broken", "wrong_size"):
        with pytest.raises(MessageError, match=encoding):
            decode_image(raw(np.zeros((6, 8), np.uint16), encoding))


@pytest.mark.parametrize("encoding", sorted(RAW_COLOUR))
def test_agrees_with_cv_bridge_of_a_distribution(encoding: str) -> None:
    cv_bridge = pytest.importorskip("cv_bridge", reason="cv_bridge comes with a ROS distribution")
    sensor_msgs = pytest.importorskip("sensor_msgs.msg")
    channels = RAW_COLOUR[encoding][0]
    ours = raw(RNG.integers(0, 256, (20, 30 * channels), dtype=np.uint8).reshape(20, 30, channels), encoding)
    message = sensor_msgs.Image(height=20, width=30, encoding=encoding, step=30 * channels, data=ours.data)
    theirs = cv_bridge.CvBridge().imgmsg_to_cv2(message, desired_encoding="rgb8")
    np.testing.assert_array_equal(decode_image(ours), theirs)


# -------------------------------------------------------------------------------------------------------------- depth


@pytest.mark.parametrize("encoding", ["16UC1", "mono16"])
@pytest.mark.parametrize("is_bigendian", [False, True])
@pytest.mark.parametrize("padding", [0, 4, 7])
def test_millimetres_become_metres(encoding: str, is_bigendian: bool, padding: int) -> None:
    values = np.array([[0, 1, 1000], [65535, 65534, 256]], dtype=">u2" if is_bigendian else "<u2")
    depth = decode_depth(raw(values, encoding, padding, is_bigendian))
    assert depth.dtype == np.float32
    assert depth.dtype.isnative
    np.testing.assert_allclose(depth, [[0, 0.001, 1.0], [0, 65.534, 0.256]], rtol=1e-6)


@pytest.mark.parametrize("is_bigendian", [False, True])
@pytest.mark.parametrize("padding", [0, 3])
def test_metres_lose_only_what_is_invalid(is_bigendian: bool, padding: int) -> None:
    values = np.array([[np.nan, np.inf, -np.inf], [-1.0, 0.0, 3.25]], dtype=">f4" if is_bigendian else "<f4")
    message = raw(values, "32FC1", padding, is_bigendian)
    before = bytes(message.data)
    np.testing.assert_array_equal(decode_depth(message), [[0, 0, 0], [0, 0, 3.25]])
    assert message.data == before


def test_colour_is_not_depth() -> None:
    with pytest.raises(MessageError, match="'rgb8' is not depth"):
        decode_depth(raw(RGB, "rgb8"))


# --------------------------------------------------------------------------------------------------------- compressed


def encoded(pixels: NDArray, suffix: str, message_format: str) -> EncodedImage:
    """Pixels in OpenCV's order to a file's bytes."""
    return EncodedImage(5, "cam", message_format, cv2.imencode(suffix, pixels)[1].tobytes())


BGR = np.ascontiguousarray(SMOOTH[..., ::-1])


@pytest.mark.parametrize(
    "message_format",
    ["jpeg", "jpg", "", "rgb8; jpeg compressed bgr8", "bgr8; jpeg compressed bgr8", "yuv422; jpeg compressed bgr8"],
)
def test_jpeg_in_the_usual_order(message_format: str) -> None:
    message = encoded(BGR, ".jpg", message_format)
    expected = cv2.cvtColor(cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(decode_image(message), expected)
    assert np.abs(decode_image(message).astype(int) - SMOOTH).mean() < 4


def test_png_is_exact_with_and_without_alpha() -> None:
    np.testing.assert_array_equal(decode_image(encoded(BGR, ".png", "bgr8; png compressed bgr8")), SMOOTH)
    with_alpha = np.dstack([BGR, np.full(BGR.shape[:2], 9, np.uint8)])
    np.testing.assert_array_equal(decode_image(encoded(with_alpha, ".png", "png")), SMOOTH)


@pytest.mark.parametrize("message_format", ["rgb8; png compressed rgb8", "bgr8; png compressed"])
def test_codec_that_was_given_rgb(message_format: str) -> None:
    np.testing.assert_array_equal(decode_image(encoded(SMOOTH, ".png", message_format)), SMOOTH)


def test_compressed_grey_and_mosaic() -> None:
    grey = SMOOTH[..., 0].copy()
    np.testing.assert_array_equal(decode_image(encoded(grey, ".png", "mono8; png compressed ")), np.dstack([grey] * 3))
    expected = decode_image(raw(grey, "bayer_gbrg8"))
    np.testing.assert_array_equal(decode_image(encoded(grey, ".png", "bayer_gbrg8; png compressed ")), expected)
    with pytest.raises(MessageError, match="bayer_xxxx8"):
        decode_image(encoded(grey, ".png", "bayer_xxxx8; png compressed "))


def test_exif_does_not_turn_the_image() -> None:
    """A calibration is of the sensor's rows and columns; a viewer's wish to see it upright is not for us."""
    content = cv2.imencode(".jpg", BGR)[1].tobytes()
    tiff = b"MM\x00*\x00\x00\x00\x08\x00\x01" + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + bytes(4)
    app1 = b"\xff\xe1" + struct.pack(">H", 2 + 6 + len(tiff)) + b"Exif\0\0" + tiff
    turned = EncodedImage(0, "cam", "jpeg", content[:2] + app1 + content[2:])
    np.testing.assert_array_equal(decode_image(turned), decode_image(EncodedImage(0, "cam", "jpeg", content)))


def test_sixteen_bits_are_not_a_picture() -> None:
    with pytest.raises(MessageError, match="16 bits"):
        decode_image(encoded(np.zeros((4, 4), np.uint16), ".png", "mono16; png compressed "))


MILLIMETRES = np.array([[0, 1, 1500], [65535, 40000, 300]], dtype=np.uint16)
METRES = np.array([[0, 0.001, 1.5], [0, 40.0, 0.3]], dtype=np.float32)


def test_compressed_depth_in_millimetres() -> None:
    np.testing.assert_allclose(decode_depth(encoded(MILLIMETRES, ".png", "png")), METRES, rtol=1e-6)
    plain = encoded(MILLIMETRES, ".png", "16UC1; png compressed ")
    np.testing.assert_allclose(decode_depth(plain), METRES, rtol=1e-6)
    transported = EncodedImage(0, "cam", "16UC1; compressedDepth png", bytes(12) + plain.data)
    np.testing.assert_allclose(decode_depth(transported), METRES, rtol=1e-6)


def test_compressed_depth_of_floats() -> None:
    """compressed_depth_image_transport: quantised inverse depth, a / d + b."""
    quant_a, quant_b = 30000.0, 50.0
    metres = np.array([[1.0, 2.0], [7.5, 0.0]], dtype=np.float32)
    with np.errstate(divide="ignore"):
        stored = np.where(metres > 0, quant_a / metres + quant_b, 0).astype(np.uint16)
    content = struct.pack("<iff", 0, quant_a, quant_b) + cv2.imencode(".png", stored)[1].tobytes()
    depth = decode_depth(EncodedImage(0, "cam", "32FC1; compressedDepth png", content))
    np.testing.assert_allclose(depth, metres, rtol=2e-3)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (encoded(MILLIMETRES.astype(np.uint8), ".png", "png"), "16 bits"),
        (EncodedImage(0, "cam", "16UC1; compressedDepth rvl", bytes(40)), "RVL"),
        (EncodedImage(0, "cam", "16UC1; compressedDepth png", bytes(11)), "header's 12"),
        (EncodedImage(0, "cam", "16UC1; compressedDepth png", bytes(12)), "empty"),
    ],
)
def test_bad_compressed_depth_is_named(message: EncodedImage, words: str) -> None:
    with pytest.raises(MessageError, match=words):
        decode_depth(message)


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(MessageError, match="'webp'"):
        decode_image(EncodedImage(0, "cam", "webp", data))


FILES = {suffix: encoded(BGR, suffix, suffix[1:]).data for suffix in (".jpg", ".png")}


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_every_truncation_is_noticed(suffix: str) -> None:
    """OpenCV itself would fill the rest of a JPEG with grey."""
    content = FILES[suffix]
    for length in sorted({*range(0, len(content), max(1, len(content) // 60)), len(content) - 1, len(content) - 2}):
        with pytest.raises(MessageError):
            decode_image(EncodedImage(0, "cam", "", content[:length]))


@settings(deadline=None, max_examples=150)
@given(st.sampled_from([".jpg", ".png"]), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8))
def test_garbled_files_are_refused_or_decoded_never_worse(suffix: str, changes: list[tuple[float, int]]) -> None:
    content = bytearray(FILES[suffix])
    for place, value in changes:
        # The size fields stay: a header that claims a gigapixel would only make the machine allocate it.
        index = 180 + int(place * (len(content) - 181)) if suffix == ".jpg" else int(place * (len(content) - 1))
        content[index] = value
    for decode in (decode_image, decode_depth):
        with contextlib.suppress(MessageError):
            assert decode(EncodedImage(0, "cam", "", bytes(content))).ndim in (2, 3)


@settings(deadline=None, max_examples=300)
@given(
    height=st.integers(-2, 6) | st.sampled_from([2**31, 2**32 - 1]),
    width=st.integers(-2, 6) | st.sampled_from([2**31, 2**32 - 1]),
    encoding=st.sampled_from([*RAW_COLOUR, "16UC1", "mono16", "32FC1", "", "nonsense"]),
    step=st.integers(-1, 30) | st.just(2**32 - 1),
    is_bigendian=st.booleans(),
    data=st.binary(max_size=160),
)
def test_garbled_raw_messages(
    height: int, width: int, encoding: str, step: int, is_bigendian: bool, data: bytes
) -> None:
    message = RawImage(0, "cam", height, width, encoding, step, is_bigendian, data)
    for decode in (decode_image, decode_depth):
        try:
            pixels = decode(message)
        except MessageError:
            continue
        assert pixels.shape[:2] == (height, width)
        assert step * height == len(data)
