"""Image messages to arrays: colour as RGB, depth as float32 metres.

Raw encodings are decoded here, without a copy where the message already holds RGB; compressed images by OpenCV. An
encoding that is not listed in `RAW_COLOUR` goes to cv_bridge where a ROS distribution has it, and is refused by name
where not: nothing is guessed.

ROS names a Bayer pattern by the first two pixels of the first two rows (`bayer_rggb8`: red is the upper left one).
OpenCV's short names (`COLOR_BayerBG2RGB`) start at the second pixel of the second row, so that they read the other way
round; its long names (`COLOR_BayerRGGB2RGB`, the same constant) agree with ROS and are used below.
"""

from __future__ import annotations

import importlib
import struct
import zlib
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vmloc_ros.buffers import byte_order, byte_view, require_size
from vmloc_ros.errors import MessageError
from vmloc_ros.types import EncodedImage, RawImage

RgbImage = NDArray[np.uint8]
DepthImage = NDArray[np.float32]

RAW_COLOUR: dict[str, tuple[int, int | None]] = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
    "bayer_rggb8": (1, cv2.COLOR_BayerRGGB2RGB),
    "bayer_bggr8": (1, cv2.COLOR_BayerBGGR2RGB),
    "bayer_gbrg8": (1, cv2.COLOR_BayerGBRG2RGB),
    "bayer_grbg8": (1, cv2.COLOR_BayerGRBG2RGB),
}
"""Raw encoding: bytes per pixel and OpenCV's conversion to RGB (None: it is RGB)."""

RAW_DEPTH: dict[str, tuple[str, float]] = {"16UC1": ("u2", 0.001), "mono16": ("u2", 0.001), "32FC1": ("f4", 1.0)}
"""Raw depth encoding (REP-118; some drivers say mono16 for 16UC1): number type and metres per unit."""

INVALID_16BIT = 65535
"""7-Scenes and several drivers mark a missing depth by the largest number instead of by 0."""

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"


def decode_image(image: RawImage | EncodedImage) -> RgbImage:
    """A colour or grey image as (H, W, 3) uint8 in RGB order.

    The array of an `rgb8` message is a view of the message's own bytes and may be read-only; all others are new.

    Raises:
        MessageError: empty, truncated, sizes that disagree, or an encoding that cannot be decoded (named).
    """
    if isinstance(image, EncodedImage):
        return _decode_compressed_colour(image)
    if image.encoding not in RAW_COLOUR:
        return _decode_by_cv_bridge(image)
    channels, conversion = RAW_COLOUR[image.encoding]
    pixels = _pixels(image, "u1", channels)
    if conversion is None:
        return pixels
    if image.encoding.startswith("bayer"):
        return _demosaic(pixels, conversion, f"image of encoding {image.encoding!r}")
    return np.asarray(cv2.cvtColor(pixels, conversion), dtype=np.uint8)


def decode_depth(image: RawImage | EncodedImage) -> DepthImage:
    """A depth image as (H, W) float32 metres along the optical axis; 0 where there is no return.

    16UC1 and mono16 are millimetres, 0 and 65535 invalid; 32FC1 is metres, NaN, infinity and what is not above 0
    invalid. Compressed: a 16-bit PNG in millimetres, or compressed_depth_image_transport's PNG of either.

    Raises:
        MessageError: empty, truncated, sizes that disagree, or an encoding that is not depth (named).
    """
    if isinstance(image, EncodedImage):
        return _decode_compressed_depth(image)
    if image.encoding not in RAW_DEPTH:
        known = ", ".join(RAW_DEPTH)
        raise MessageError(f"depth image: encoding {image.encoding!r} is not depth; known are {known}")
    kind, unit_m = RAW_DEPTH[image.encoding]
    values = _pixels(image, byte_order(image.is_bigendian) + kind, 1)
    return _metres_from_floats(values) if kind == "f4" else _metres_from_integers(values, unit_m)


# ---------------------------------------------------------------------------------------------------------- raw pixels


def _pixels(image: RawImage, dtype: str, channels: int) -> NDArray[Any]:
    """A view of the message's bytes as (H, W) or (H, W, channels), past the padding of its rows."""
    what = f"image of encoding {image.encoding!r}"
    if image.height <= 0 or image.width <= 0:
        raise MessageError(f"{what}: is empty ({image.width}x{image.height} pixels)")
    item = np.dtype(dtype).itemsize
    row_bytes = image.width * channels * item
    if image.step < row_bytes:
        raise MessageError(f"{what}: step {image.step} is less than the {row_bytes} bytes of {image.width} pixels")
    data = byte_view(image.data, what)
    require_size(data, image.step * image.height, what, f"step {image.step} x height {image.height}")
    shape = (image.height, image.width, channels) if channels > 1 else (image.height, image.width)
    strides = (image.step, channels * item, item) if channels > 1 else (image.step, item)
    return np.ndarray(shape, dtype=dtype, buffer=data, strides=strides)


def _demosaic(mosaic: NDArray[np.uint8], conversion: int, what: str) -> RgbImage:
    if mosaic.shape[0] < 2 or mosaic.shape[1] < 2:
        raise MessageError(f"{what}: a Bayer mosaic needs 2x2 pixels, has {mosaic.shape[1]}x{mosaic.shape[0]}")
    return np.asarray(cv2.cvtColor(mosaic, conversion), dtype=np.uint8)


def _decode_by_cv_bridge(image: RawImage) -> RgbImage:
    """Any other encoding, by the distribution's own converter (it reads the message by its field names)."""
    try:
        bridge = importlib.import_module("cv_bridge")
    except ImportError:
        known = ", ".join(RAW_COLOUR)
        raise MessageError(
            f"image: encoding {image.encoding!r} is unknown here (known: {known}); others need cv_bridge of a ROS "
            "distribution, or a driver that publishes one of these"
        ) from None
    try:
        pixels = np.asarray(bridge.CvBridge().imgmsg_to_cv2(image, desired_encoding="rgb8"))
    except (TypeError, ValueError, KeyError, IndexError, RuntimeError, cv2.error) as error:  # its own is a TypeError
        raise MessageError(f"image: cv_bridge cannot convert encoding {image.encoding!r} to rgb8 ({error})") from error
    if pixels.dtype != np.uint8 or pixels.shape != (image.height, image.width, 3):
        raise MessageError(
            f"image: cv_bridge made {pixels.dtype} {pixels.shape} of encoding {image.encoding!r} instead of rgb8"
        )
    return pixels


def _metres_from_integers(values: NDArray[np.uint16], unit_m: float) -> DepthImage:
    metres = values.astype(np.float32)
    metres[values == INVALID_16BIT] = 0.0
    metres *= np.float32(unit_m)
    return metres


def _metres_from_floats(values: NDArray[np.float32]) -> DepthImage:
    metres = values.astype(np.float32)  # always a copy: the message's bytes stay as they are
    with np.errstate(invalid="ignore"):
        metres[~((metres > 0.0) & (metres < np.inf))] = 0.0
    return metres


# ---------------------------------------------------------------------------------------------------------- compressed


def _decode_compressed_colour(image: EncodedImage) -> RgbImage:
    """JPEG or PNG to RGB, with compressed_image_transport's conventions of `format`.

    `ORIGINAL; CODEC compressed TARGET`: a colour original without "compressed bgr" was given to the codec in RGB
    order, so that a decoder's red is blue; a Bayer original that stayed one channel is a mosaic.
    """
    what = f"compressed image of format {image.format!r}"
    pixels = _decode_file(byte_view(image.data, what), what)
    if pixels.dtype != np.uint8:
        raise MessageError(f"{what}: has {pixels.dtype.itemsize * 8} bits per channel; only 8 are an image to look at")
    original, _, compression = (part.strip() for part in image.format.partition(";"))
    if pixels.ndim == 2:
        if original.startswith("bayer_"):
            if original not in RAW_COLOUR:
                raise MessageError(f"{what}: unknown Bayer encoding {original!r}")
            conversion = RAW_COLOUR[original][1]
            assert conversion is not None
            return _demosaic(pixels, conversion, what)
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB), dtype=np.uint8)
    is_rgb_order = original in ("rgb8", "bgr8", "rgba8", "bgra8") and bool(compression)
    if is_rgb_order and "compressed bgr" not in compression:
        return np.ascontiguousarray(pixels[:, :, :3])
    conversion = cv2.COLOR_BGRA2RGB if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB
    return np.asarray(cv2.cvtColor(pixels, conversion), dtype=np.uint8)


def _decode_compressed_depth(image: EncodedImage) -> DepthImage:
    what = f"compressed depth image of format {image.format!r}"
    data = byte_view(image.data, what)
    original, _, compression = (part.strip() for part in image.format.partition(";"))
    if "compressedDepth" not in compression and "compressedDepth" not in original:
        return _metres_from_png(data, what)
    if "rvl" in compression.lower():
        raise MessageError(f"{what}: RVL is not supported; set the transport's format to png")
    # compressed_depth_image_transport: int32 format, float32 depthParam[2], then the PNG
    if len(data) < 12:
        raise MessageError(f"{what}: truncated, has {len(data)} bytes, fewer than its header's 12")
    if original == "32FC1":
        quant_a, quant_b = struct.unpack_from("<ff", data.data, 4)
        inverse = _decode_png16(data[12:], what)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            metres = np.float32(quant_a) / (inverse.astype(np.float32) - np.float32(quant_b))
        metres[inverse == 0] = 0.0
        return _metres_from_floats(metres)
    return _metres_from_png(data[12:], what)


def _metres_from_png(data: NDArray[np.uint8], what: str) -> DepthImage:
    return _metres_from_integers(_decode_png16(data, what), 0.001)


def _decode_png16(data: NDArray[np.uint8], what: str) -> NDArray[np.uint16]:
    pixels = _decode_file(data, what)
    if pixels.dtype != np.uint16 or pixels.ndim != 2:
        raise MessageError(f"{what}: holds {pixels.dtype} {pixels.shape}, but depth is one channel of 16 bits")
    return pixels


def _decode_file(data: NDArray[np.uint8], what: str) -> NDArray[Any]:
    """Pixels of a JPEG or PNG as OpenCV has them (BGR, BGRA or one channel; 8 or 16 bits), unturned by EXIF."""
    content = data.tobytes()
    if not content:
        raise MessageError(f"{what}: is empty")
    if content.startswith(_JPEG):
        _require_whole_jpeg(content, what)
    elif content.startswith(_PNG):
        _require_whole_png(content, what)
    else:
        raise MessageError(f"{what}: is neither JPEG nor PNG (starts with {content[:4].hex(' ')})")
    try:
        pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise MessageError(f"{what}: OpenCV cannot decode it ({error.err or error})") from error
    if pixels is None or pixels.size == 0:
        raise MessageError(f"{what}: OpenCV cannot decode it; it is damaged")
    array = np.asarray(pixels)
    if array.ndim == 3 and array.shape[2] not in (3, 4):
        raise MessageError(f"{what}: has {array.shape[2]} channels")
    return array


def _require_whole_jpeg(content: bytes, what: str) -> None:
    """OpenCV fills the missing rows of a truncated JPEG with grey and says nothing; the end marker tells.

    Inside the coded data 0xff is always followed by 0, so that an end after the last scan's start is the image's own.
    """
    if content.rfind(b"\xff\xd9") <= content.rfind(b"\xff\xda"):
        raise MessageError(f"{what}: truncated JPEG of {len(content)} bytes (no end marker after the last scan)")


def _require_whole_png(content: bytes, what: str) -> None:
    """Walks the chunks and their check sums: a decoder may give back half an image without a word."""
    position = len(_PNG)
    while position + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, position)
        end = position + 12 + length
        if end > len(content):
            break
        name = content[position + 4 : position + 8]
        if zlib.crc32(memoryview(content)[position + 4 : end - 4]) != struct.unpack_from(">I", content, end - 4)[0]:
            raise MessageError(f"{what}: damaged PNG (check sum of chunk {name!r})")
        if name == b"IEND":
            return
        position = end
    raise MessageError(f"{what}: truncated PNG of {len(content)} bytes (no end chunk)")
