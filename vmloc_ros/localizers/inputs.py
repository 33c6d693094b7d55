"""From a frame to the arrays that a model's network takes; or why it cannot take it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.checkpoint import ModelCard
from vmloc_ros.errors import ModelInputError
from vmloc_ros.networks.inputs import centre_crop, fit_depth, fit_intrinsics, fit_rgb
from vmloc_ros.resampling import largest_shift_px, resample_depth, resample_rgb, seen_by
from vmloc_ros.types import Frame, Modality, Mode, NoPose, PinholeIntrinsics

MAX_FOCAL_RATIO = 1.15
"""A camera whose view is narrower or wider than the training camera's by more than this shows another world."""
SAME_VIEW_PX = 0.05
"""Cameras whose pixels lie nearer to each other than this, at the network's size, are the same."""
LEAST_VIEW = 0.3
"""A camera must cover so much of the training camera's view."""


class Pictures(NamedTuple):
    """One frame at the network's size; an absent modality is None.

    Attributes:
        rgb_1HW3: uint8.
        depth_1HW: float32 metres.
        mode: what is there.
        seen_1HW: which pixels the frame's camera covers; None: all.
    """

    rgb_1HW3: NDArray[np.uint8] | None
    depth_1HW: NDArray[np.floating] | None
    mode: Mode
    seen_1HW: NDArray[np.bool_] | None = None


class FrameInputs:
    """Cuts and resizes frames as in a model's training."""

    def __init__(self, card: ModelCard, by_rays: bool = False) -> None:
        """
        Args:
            card: of the model.
            by_rays: show another camera's frames as the training camera would have seen them. Otherwise they are cut
                and resized like the training camera's, and refused where that shows another view.
        """
        self.card = card
        network = card.network
        self._rows = round(network.height * (1.0 + card.crop_margin))
        self._columns = round(network.width * (1.0 + card.crop_margin))
        self._crop = centre_crop(self._rows, self._columns, network.height, network.width)
        self._by_rays = by_rays

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
        mode = {(True, True): Mode.RGB_DEPTH, (True, False): Mode.RGB_ONLY}.get(
            (rgb is not None, depth is not None), Mode.DEPTH_ONLY
        )
        try:
            if self._by_rays and not self._has_training_view(frame.intrinsics):
                return self._resampled(rgb, depth, mode, frame.intrinsics)
            mismatch = "" if self._by_rays else self._camera_mismatch(frame.intrinsics)
            if mismatch:
                return NoPose(frame.stamp_ns, mismatch)
            rgb_batch = None if rgb is None else fit_rgb(rgb, self._rows, self._columns)[self._crop][None]
            depth_batch = None if depth is None else fit_depth(depth, self._rows, self._columns)[self._crop][None]
        except ModelInputError as error:
            return NoPose(frame.stamp_ns, str(error))
        return Pictures(rgb_batch, depth_batch, mode)

    def _has_training_view(self, camera: PinholeIntrinsics) -> bool:
        """Whether pictures that are cut and resized as in training show the training camera's view.

        Raises:
            ModelInputError: there is no calibration, or none that could be.
        """
        if camera.width <= 1:
            raise ModelInputError(
                "no camera_info has come: this model finds poses by geometry and needs the camera's calibration"
            )
        return largest_shift_px(fit_intrinsics(camera, self._rows, self._columns), self.card.camera) < SAME_VIEW_PX

    def _resampled(
        self,
        rgb: NDArray[np.uint8] | None,
        depth: NDArray[np.float32] | None,
        mode: Mode,
        camera: PinholeIntrinsics,
    ) -> Pictures:
        """What the training camera would have seen in the place of another one.

        Raises:
            ModelInputError: pictures that are none, or a camera that sees too little of the training camera's view.
        """
        target, crop = self.card.camera, self._crop
        seen = seen_by(camera, target)[crop]
        if seen.mean() < LEAST_VIEW:
            raise ModelInputError(
                f"the camera's view does not fit the model's: it covers {100.0 * seen.mean():.0f} % of the training "
                f"camera's, {100.0 * LEAST_VIEW:.0f} % are needed; is this camera_info of this camera?"
            )
        return Pictures(
            None if rgb is None else resample_rgb(rgb, camera, target)[crop][None],
            None if depth is None else resample_depth(depth, camera, target)[crop][None],
            mode,
            None if seen.all() else seen[None],
        )

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
