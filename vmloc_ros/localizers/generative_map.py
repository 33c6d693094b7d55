"""Localization with a Generative Map: searched without a prior, compared with the filter's pose, looked at by a person.

M. Guo et al., arXiv:1902.11124. The answer is the search's pose; with it goes the observation itself, which the filter
compares with its own state (eq. 4-8). How well the view expected at the answer fits what is seen is the health.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.checkpoint import ModelCard
from vmloc_ros.errors import CheckpointError
from vmloc_ros.geometry import Array
from vmloc_ros.localizers.inputs import FrameInputs
from vmloc_ros.neighbour_file import evidence_for
from vmloc_ros.neighbours import Neighbours
from vmloc_ros.networks.generative_map_config import MapCard
from vmloc_ros.networks.inputs import centre_crop
from vmloc_ros.runtimes.generative_map import MapRuntime, mismatch
from vmloc_ros.runtimes.latent_observation import difference
from vmloc_ros.samples import SampleStore
from vmloc_ros.types import CameraPrior, Frame, Mode, NoPose, PoseEstimate

FITS_NOWHERE = 0.1
"""A frame whose health is below this gets no pose: the view expected at the best place shows something else."""

UNLIKE = 1.35
"""A mismatch above this is a correlation below 0.1."""

CHUNK = 32


class MapLocalizer:
    """A Generative Map; it has no memory. Implements `Localizer` and `ReadableMap`."""

    def __init__(
        self,
        card: ModelCard,
        runtime: MapRuntime,
        fallback: str = "",
        neighbours: Mapping[Mode, Neighbours] | None = None,
    ) -> None:
        """
        Args:
            card: of the model, with its part `map`.
            runtime: of its network.
            fallback: see `Localizer`.
            neighbours: the training latents, where the card's calibration asks for them.

        Raises:
            CheckpointError: the card says nothing of the map's fit.
        """
        if card.map is None:
            raise CheckpointError(
                f"card.yaml of {card.name}: has no part `map` (inflation and mismatch of a Generative Map); take the "
                "card that `vmloc train` wrote beside the weights"
            )
        self.card = card
        self.device = runtime.device
        self.fallback = fallback
        self._map = card.map
        self._runtime = runtime
        self._lock = threading.Lock()
        self._inputs = FrameInputs(card)
        self._calibration = card.calibration[Mode.RGB_ONLY].rule()
        self._neighbours = (neighbours or {}).get(Mode.RGB_ONLY)

    def localize(self, frame: Frame, prior: CameraPrior | None = None) -> PoseEstimate | NoPose:
        """See `Localizer`; the search needs no `prior`."""
        seen = self._inputs.of(frame)
        if isinstance(seen, NoPose) or seen.rgb_1HW3 is None:
            return seen if isinstance(seen, NoPose) else NoPose(frame.stamp_ns, "no picture")
        with self._lock:
            reading = self._runtime.read(seen.rgb_1HW3)
            raw = self._runtime.search(reading)
            T, scatter_66 = raw.T_map_camera[0], raw.scatter_N66[0]
            if not (np.isfinite(T).all() and np.isfinite(scatter_66).all()):
                return NoPose(frame.stamp_ns, "the network's output is not finite")
            apart = float(mismatch(reading.pictures_N3HW, self._runtime.views(T[None]))[0])
        fit = health(apart, self._map)
        if fit < FITS_NOWHERE:
            return NoPose(
                frame.stamp_ns,
                f"the picture fits nowhere in the map: it is {apart:.2f} from the view expected at the best place "
                f"(on validation frames {self._map.mismatch_median:.2f}, 95 % below {self._map.mismatch_p95:.2f})",
            )
        evidence = evidence_for(self.card.calibration[Mode.RGB_ONLY].evidence, self._neighbours, raw)
        return PoseEstimate(
            stamp_ns=frame.stamp_ns,
            T_map_camera=T,
            cov_66=self._calibration.covariance(scatter_66, evidence),
            expert_weights={name: float(share[0]) for name, share in raw.shares.items()},
            mode=seen.mode,
            health=min(fit, self._calibration.health(scatter_66, evidence)),
            observation=self._runtime.observation(reading, self._map.inflation),
        )

    def view(self, T_map_camera: Array) -> NDArray[np.uint8]:
        """The expected picture (H, W, 3) from a camera pose. Raises ModelInputError: not a rigid transform."""
        with self._lock:
            return as_uint8(self._runtime.views(T_map_camera[None]))[0]

    def views(self, T_map_camera_N44: Array) -> NDArray[np.uint8]:
        """Expected pictures (N, H, W, 3). Raises as `view`."""
        with self._lock:
            return as_uint8(self._runtime.views(T_map_camera_N44))

    def picture(self, frame: Frame) -> NDArray[np.uint8] | NoPose:
        """A frame's picture as a view would show it (H, W, 3); or why the network cannot take it."""
        seen = self._inputs.of(frame)
        if isinstance(seen, NoPose) or seen.rgb_1HW3 is None:
            return seen if isinstance(seen, NoPose) else NoPose(frame.stamp_ns, "no picture")
        with self._lock:
            return as_uint8(self._runtime.read(seen.rgb_1HW3).pictures_N3HW)[0]

    def mean_picture(self) -> NDArray[np.uint8]:
        """The mean training picture (H, W, 3): what a map that knew nothing of the pose would show at best."""
        return np.rint(255.0 * self._runtime.mean_picture_HW3).astype(np.uint8)

    def warm_up(self) -> None:
        """See `Localizer`."""
        with self._lock:
            for seen in self._inputs.blank():
                self._runtime.infer(seen.rgb_1HW3, seen.depth_1HW)

    def reset(self) -> None:
        """See `Localizer`; there is nothing to forget."""


def health(apart: float, card: MapCard) -> float:
    """1 up to the validation frames' median mismatch, 0.5 at their 95th percentile, and halved again as far beyond; 0
    for a picture that has nothing in common with the view."""
    if apart > UNLIKE:
        return 0.0
    spread = max(card.mismatch_p95 - card.mismatch_median, 1e-6)
    return float(0.5 ** max(0.0, (apart - card.mismatch_median) / spread))


def as_uint8(pictures_N3HW: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Pictures (N, 3, H, W) with values in 0..1 as (N, H, W, 3) uint8."""
    return np.ascontiguousarray(np.moveaxis(np.rint(255.0 * pictures_N3HW), 1, -1).astype(np.uint8))


def measure_map(runtime: MapRuntime, store: SampleStore, samples: NDArray[np.int64]) -> MapCard:
    """What the card says of a map, measured on labelled frames.

    The mismatch is that of the search's answers. The inflation is of the observation alone: from the true pose
    Gauss-Newton goes to where the frame fits best nearby, and that pose's error `e` has `e' L e` of the mean 6, if its
    information `L` is true. (The latent's dimensions err together, which a diagonal variance does not know.)
    """
    samples = samples[store.has_rgb[samples]]
    config = runtime.config
    rows, columns = centre_crop(store.camera.height, store.camera.width, config.height, config.width)
    apart, nees = list[Array](), list[Array]()
    for start in range(0, len(samples), CHUNK):
        chunk = samples[start : start + CHUNK]
        reading = runtime.read(store.rgb[chunk][:, rows, columns])
        answers = runtime.search(reading).T_map_camera
        apart.append(mismatch(reading.pictures_N3HW, runtime.views(answers)))
        truth_N44 = store.T_map_camera[chunk]
        T_N44, information_N66 = runtime.refined(reading, truth_N44)
        error_N6 = difference(T_N44, truth_N44)
        nees.append(np.einsum("ni,nij,nj->n", error_N6, information_N66, error_N6))
    inflation = float(np.concatenate(nees).mean() / 6.0)
    median, p95 = np.quantile(np.concatenate(apart), [0.5, 0.95])
    return MapCard(inflation=inflation, mismatch_median=float(median), mismatch_p95=float(p95), frames=len(samples))
