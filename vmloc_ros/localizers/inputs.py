"""From a frame to the arrays that a model's network takes; or why it cannot take it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.checkpoint import ModelCard
from vmloc_ros.errors import ModelInputError
from vmloc_ros.networks.inputs import centre_crop, fit_depth, fit_intrinsics, fit_rgb
from vmloc_ros.types import Frame, Modality, Mode, NoPose, PinholeIntrinsics

MAX_FOCAL_RATIO = 1.15
"""A camera whose view is narrower or wider than the training camera's by more than this shows another world."""


class Pictures(NamedTuple):
    """One frame at the network's size; an absent modality is None.

    Attributes:
        rgb_1HW3: uint8.
        depth_1HW: float32 metres.
        mode: what is there.
    """

    rgb_1HW3: NDArray[np.uint8] | None
    depth_1HW: NDArray[np.floating] | None
    mode: Mode


class FrameInputs:
    """Cuts and resizes frames as in a model's training."""

    def __init__(self, card: ModelCard) -> None:
        self.card = card
        network = card.network
        self._rows = round(network.height * (1.0 + card.crop_margin))
        self._columns = round(network.width * (1.0 + card.crop_margin))
        self._crop = centre_crop(self._rows, self._columns, network.height, network.width)

    def of(self, frame: Frame) -> Pictures | NoPose:
        """What the network sees of a frame."""
        network = self.card.network
        rgb = frame.rgb if network.has(Modality.RGB) else None
        depth = frame.depth_m if network.has(Modality.DEPTH) else None
        if rgb is None and depth is None:
            reasons = ", ".join(f"{name}: {reason}" for name, reason in frame.absent.items())
            return NoPose(
                frame.stamp_ns, "no modality that the model has an expert for" + (f" ({reasons})" if reasons else "")
            )
        mismatch = self._camera_mismatch(frame.intrinsics)
        if mismatch:
            return NoPose(frame.stamp_ns, mismatch)
        mode = {(True, True): Mode.RGB_DEPTH, (True, False): Mode.RGB_ONLY}.get(
            (rgb is not None, depth is not None), Mode.DEPTH_ONLY
        )
        try:
            rgb_batch = None if rgb is None else fit_rgb(rgb, self._rows, self._columns)[self._crop][None]
            depth_batch = None if depth is None else fit_depth(depth, self._rows, self._columns)[self._crop][None]
        except ModelInputError as error:
            return NoPose(frame.stamp_ns, str(error))
        return Pictures(rgb_batch, depth_batch, mode)

    def _camera_mismatch(self, camera: PinholeIntrinsics) -> str:
        """Why this camera's pictures are not what the network was trained on; empty if they are."""
        if camera.width <= 1:
            return ""  # no calibration has come: nothing to compare
        seen, trained = fit_intrinsics(camera, self._rows, self._columns), self.card.camera
        for name, one, other in (("wide", seen.fx, trained.fx), ("high", seen.fy, trained.fy)):
            if not 1.0 / MAX_FOCAL_RATIO < one / other < MAX_FOCAL_RATIO:
                return (
                    f"the camera's view does not fit the model's: it is {other / one:.2f} times as {name} as the "
                    "training camera's after cutting to the model's aspect ratio; use a model trained with this camera"
                )
        return ""

    def blank(self) -> list[Pictures]:
        """Made-up input, once in every mode that the network has."""
        network = self.card.network
        rgb = np.zeros((1, network.height, network.width, 3), np.uint8) if network.has(Modality.RGB) else None
        depth = np.ones((1, network.height, network.width), np.float32) if network.has(Modality.DEPTH) else None
        modes = [Pictures(rgb, None, Mode.RGB_ONLY)] if rgb is not None else []
        modes += [Pictures(None, depth, Mode.DEPTH_ONLY)] if depth is not None else []
        return [*modes, Pictures(rgb, depth, Mode.RGB_DEPTH)] if len(modes) == 2 else modes
