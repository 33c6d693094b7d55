"""The managed lifecycle node `localizer`: messages in, `Pipeline`, messages out.

Threads: the executor's one (callbacks store and convert; odometry goes through the filter to /tf at once), and a worker
that runs the network. The network leaves one core to the callbacks.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.timer import Timer
from std_srvs.srv import Trigger

from vmloc_ros.clock import ClockVerdict, DataClock
from vmloc_ros.config import LocalizerConfig, ModelConfig
from vmloc_ros.errors import ConfigError, MessageError, VmlocError
from vmloc_ros.outputs import Outputs
from vmloc_ros.pipeline import Pipeline
from vmloc_ros.ros import qos
from vmloc_ros.ros.diagnostics import Diagnostics, Snapshot
from vmloc_ros.ros.inputs import Inputs
from vmloc_ros.ros.parameters import NodeParameters
from vmloc_ros.ros.predicted_view import PredictedView
from vmloc_ros.ros.publishers import Publishers
from vmloc_ros.ros.worker import Worker
from vmloc_ros.types import Event, EventKind, OdometrySample

if TYPE_CHECKING:
    from vmloc_ros.localizer import Localizer

TICK_S = 0.1
DIAGNOSTICS_S = 1.0
LOG_EVERY_S = 5.0
FLUSH_S = 0.5

Load = Callable[[Path, ModelConfig], "Localizer"]


class LocalizerNode(LifecycleNode):
    """configure: reads parameters, loads the model, warms it up.
    activate: subscribes, with a filter that knows nothing.
    deactivate: finishes the frames that wait and unsubscribes. cleanup: drops the model; parameters may change again.
    """

    def __init__(self, load: Load, **options: Any) -> None:
        """
        Args:
            load: gives the localizer for a model's folder.
            options: of rclpy's node (`context`, `cli_args`, ...).

        Raises:
            ConfigError: a parameter that ROS 2 cannot hold (an empty list).
        """
        try:
            super().__init__("localizer", automatically_declare_parameters_from_overrides=True, **options)
        except ValueError as error:
            raise ConfigError(
                f"parameters of the node: {error}; an empty value such as [] cannot be given: leave the line out"
            ) from error
        self._load = load
        self._config: LocalizerConfig | None = None
        self._localizer: Localizer | None = None
        self._pipeline: Pipeline | None = None
        self._outputs: Publishers | None = None
        self._inputs: Inputs | None = None
        self._worker: Worker | None = None
        self._view: PredictedView | None = None
        self._periodic: list[Timer] = []
        self._odometry_clock = DataClock()
        self._error = ""
        self._logged_s: dict[str, float] = {}
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)  # /clock may stand still
        self.parameters = NodeParameters(self, lambda: self._config is not None)
        self._diagnostics = Diagnostics(self.get_name())
        self._diagnostics_publisher = self.create_publisher(DiagnosticArray, "/diagnostics", qos.reliable())
        self.create_timer(DIAGNOSTICS_S, self._publish_diagnostics, clock=self._steady)
        self.create_service(Trigger, "~/reset", self._on_reset)

    # ---------------------------------------------------------------------------------------------------- transitions

    def start(self) -> bool:
        """Configures and activates; whether both succeeded."""
        succeeded = TransitionCallbackReturn.SUCCESS
        return self.trigger_configure() == succeeded and self.trigger_activate() == succeeded

    def stop(self) -> None:
        """Shuts down from whatever state, finishing the frames that wait."""
        if self.state not in ("finalized", ""):
            self.trigger_shutdown()

    @property
    def state(self) -> str:
        """The life cycle's state: unconfigured, inactive, active, finalized."""
        return str(self._state_machine.current_state[1])

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Reads the parameters, loads the model and runs it once."""
        return self._guarded(self._configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Starts the worker and subscribes."""
        return self._guarded(self._activate, lambda: super(LocalizerNode, self).on_activate(state))

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribes and finishes."""
        return self._guarded(self._deactivate, after=lambda: super(LocalizerNode, self).on_deactivate(state))

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Drops model and publishers."""
        return self._guarded(self._clean_up)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Ends in order, from any state."""
        return self._guarded(self._shut_down)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Back to unconfigured, where the parameters can be mended."""
        self._shut_down()
        return TransitionCallbackReturn.SUCCESS

    def _guarded(
        self,
        action: Callable[[], None],
        before: Callable[[], TransitionCallbackReturn] | None = None,
        after: Callable[[], TransitionCallbackReturn] | None = None,
    ) -> TransitionCallbackReturn:
        """Runs a transition: a known error fails it in one line, an unknown one with its traceback (rclpy hides it)."""
        try:
            if before is not None:
                before()
            action()
            if after is not None:
                after()
        except VmlocError as error:
            self._error = str(error)
            self.get_logger().error(self._error)
            return TransitionCallbackReturn.FAILURE
        except Exception:  # noqa: BLE001 - rclpy would swallow it without a word
            self._error = traceback.format_exc(limit=-3)
            self.get_logger().fatal(traceback.format_exc())
            return TransitionCallbackReturn.ERROR
        self._error = ""
        return TransitionCallbackReturn.SUCCESS

    def _configure(self) -> None:
        config = self.parameters.config()
        if not config.model.path:
            raise ConfigError("model.path is not set: give the folder of a trained model")
        check_transforms(config)
        start_s = time.monotonic()
        localizer = self._load(Path(config.model.path).expanduser(), config.model)
        config = config.as_trained(localizer.card.input, localizer.card.projection)
        self.parameters.show(config)
        localizer.warm_up()
        trial = Pipeline(config, localizer)  # what is wrong with the parameters shows here, not at activation
        if "sensors" in trial.problems:
            self.get_logger().warning(trial.problems["sensors"])
        self._outputs = Publishers(self, config)
        self._config, self._localizer = config, localizer
        if localizer.fallback:
            self.get_logger().warning(localizer.fallback)
        self.get_logger().info(
            f"model {config.model.path} on {localizer.device}, ready after {time.monotonic() - start_s:.1f} s"
        )

    def _activate(self) -> None:
        assert self._config is not None
        assert self._localizer is not None
        assert self._outputs is not None
        config = self._config
        self._localizer.reset()
        self._outputs.clear()
        self._odometry_clock.clear()
        self._pipeline = Pipeline(config, self._localizer)
        self._view = PredictedView(self._localizer, config.output.predicted_view_rate_hz)
        self._worker = Worker(self._pipeline, self._on_frame, self.get_logger().error)
        self._worker.start()
        self._inputs = Inputs(self, config, self._on_event, self._on_refused)
        self._periodic = [
            self.create_timer(TICK_S, self._on_tick, clock=self._steady),
            self.create_timer(1.0 / config.output.path_rate_hz, self._outputs.publish_path, clock=self._steady),
        ]
        names = ", ".join(f"{kind.value}: {topic}" for kind, topic in self._inputs.topics.items())
        self.get_logger().info(f"active; {names}")

    def _deactivate(self) -> None:
        if self._inputs is None or self._worker is None or self._pipeline is None or self._outputs is None:
            return
        for timer in self._periodic:
            self.destroy_timer(timer)
        self._periodic.clear()
        self._inputs.destroy()
        self._inputs = None
        self._worker.stop()
        outputs = self._pipeline.finish()
        self._report(outputs)
        self._outputs.publish(outputs)
        self._outputs.publish_path()
        self._outputs.flush(FLUSH_S)
        counters = {name: count for name, count in self._pipeline.counters().items() if count}
        self.get_logger().info("inactive; " + ", ".join(f"{name}: {count}" for name, count in counters.items()))
        self._worker = None

    def _clean_up(self) -> None:
        if self._outputs is not None:
            self._outputs.destroy()
        self._outputs = self._pipeline = self._localizer = self._config = None

    def _shut_down(self) -> None:
        self._deactivate()
        self._clean_up()

    # ----------------------------------------------------------------------------------------------------- data comes

    def _on_event(self, event: Event) -> None:
        """An input, in the executor's thread: into the pipeline, and out with what it gives at once."""
        pipeline, publishers, worker = self._pipeline, self._outputs, self._worker
        if pipeline is None or publishers is None or worker is None:
            return
        if event.kind is EventKind.IMAGE and not publishers.camera_frame:
            publishers.camera_frame = event.payload.frame_id
        outputs = pipeline.add(event)
        self._report(outputs)
        publishers.publish(outputs, self._broadcast(event))
        worker.wake()

    def _on_frame(self, outputs: Outputs) -> None:
        """What a frame has given, in the worker's thread: the network's odometry may have shown a clock set back."""
        pipeline, publishers, view = self._pipeline, self._outputs, self._view
        if pipeline is None or publishers is None:
            return
        self._report(outputs)
        publishers.publish(outputs)
        if view is not None:
            view.show(outputs.statuses, pipeline.T_base_camera(), publishers.view, publishers.camera_frame)

    def _broadcast(self, event: Event) -> OdometrySample | None:
        """The odometry to broadcast as it is: with a stamp that the other stamps bear out."""
        if event.kind is not EventKind.ODOMETRY or self._config is None or not self._config.output.publish_odom_tf:
            return None
        trusted = self._odometry_clock.observe(event.stamp_ns) in (ClockVerdict.OK, ClockVerdict.RESET)
        return event.payload if trusted else None

    def _on_refused(self, kind: EventKind, error: MessageError) -> None:
        if self._pipeline is not None:
            self._pipeline.count_rejection(f"{kind.value}_{error.reason}", str(error))
        self._warn(f"{kind.value}_{error.reason}", f"{kind.value}: {error}")

    def _on_tick(self) -> None:
        if self._pipeline is None or self._outputs is None or self._worker is None:
            return
        outputs = self._pipeline.tick()
        self._report(outputs)
        self._outputs.publish(outputs)
        self._worker.wake()

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._pipeline is None or self._outputs is None or self._inputs is None:
            response.success, response.message = False, f"the node is {self.state}: there is nothing to reset"
            return response
        self._odometry_clock.clear()
        outputs = self._pipeline.reset("asked for by the reset service")
        self._report(outputs)
        self._outputs.publish(outputs)
        response.success, response.message = True, "forgot pose and history; waiting for measurements"
        return response

    def _report(self, outputs: Outputs) -> None:
        for reason in outputs.resets:
            self.get_logger().warning(f"reset: {reason}")
        for note in outputs.notes:
            if note.warning:  # two lines of code: rclpy refuses a severity that changes at one place
                self.get_logger().warning(note.text)
            else:
                self.get_logger().info(note.text)

    def _warn(self, key: str, text: str) -> None:
        """Logs, but the same thing at most every few seconds."""
        now_s = time.monotonic()
        if now_s - self._logged_s.get(key, -LOG_EVERY_S) >= LOG_EVERY_S:
            self._logged_s[key] = now_s
            self.get_logger().warning(text)

    # ----------------------------------------------------------------------------------------------------- diagnostics

    def _publish_diagnostics(self) -> None:
        stamp_ns = self.get_clock().now().nanoseconds
        self._diagnostics_publisher.publish(self._diagnostics.report(self._snapshot(), self._config, stamp_ns))

    def _snapshot(self) -> Snapshot:
        inputs, pipeline, publishers, worker = self._inputs, self._pipeline, self._outputs, self._worker
        if inputs is None or pipeline is None or publishers is None or worker is None or self._localizer is None:
            return Snapshot(self.state, self._error)
        now_s = time.monotonic()
        images, infos = inputs.flows.get(EventKind.IMAGE), inputs.flows.get(EventKind.CAMERA_INFO)
        problems = pipeline.current_problems()
        return Snapshot(
            lifecycle=self.state,
            flows={kind: flow.report(now_s, infos if flow is images else None) for kind, flow in inputs.flows.items()},
            topics=inputs.topics,
            publishers={kind: self.count_publishers(topic) for kind, topic in inputs.topics.items()},
            counters=pipeline.counters(),
            problems=problems,
            difference=pipeline.difference(),
            odometry_model=pipeline.odometry_model(),
            last_status=publishers.last_status,
            network={"device": self._localizer.device, "model": self._config.model.path if self._config else ""},
            fallback=self._localizer.fallback or None,
            latencies_ms=list(worker.latencies_ms),
            failures=worker.failures,
            withheld=publishers.withheld + publishers.transforms.withheld,
            transforms=publishers.transforms.values(),
            vo=publishers.vo_flow.report(now_s),
        )


def check_transforms(config: LocalizerConfig) -> None:
    """Whether the transforms that are asked for make a tree.

    Raises:
        ConfigError: the transforms that are asked for would give the base two parents, or lead nowhere.
    """
    frames, output = config.frames, config.output
    if output.publish_tf == "map_base" and output.publish_odom_tf:
        raise ConfigError(
            f"output.publish_odom_tf contradicts publish_tf = map_base: {frames.base} would have two parents"
        )
    if config.model.odometry == "network" and output.publish_tf == "map_odom" and not output.publish_odom_tf:
        raise ConfigError(
            f"model.odometry is network, so nobody else broadcasts {frames.odom} -> {frames.base}: set "
            "output.publish_odom_tf to true (or output.publish_tf to map_base)"
        )
