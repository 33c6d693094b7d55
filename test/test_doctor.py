"""Every finding that is not ok names a cure, and each check tells a healthy machine from a sick one."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmloc_ros.commands import doctor
from vmloc_ros.commands.doctor import Finding, Level

PROFILE = """<?xml version="1.0"?><dds xmlns="http://www.eprosima.com/XMLSchemas/fastRTPS_Profiles"><profiles>
<transport_descriptors><transport_descriptor><type>SHM</type><segment_size>{size}</segment_size>
</transport_descriptor></transport_descriptors></profiles></dds>"""


def levels(findings: list[Finding]) -> list[Level]:
    for finding in findings:
        assert finding.cure or finding.level is Level.OK, f"no cure: {finding}"
    return [finding.level for finding in findings]


def test_report_has_a_line_per_finding_and_says_whether_it_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    assert doctor.run_doctor(out=lines.append) in (0, 1)
    assert lines[0].startswith("ok      Python 3.")
    assert any("PyTorch" in line for line in lines)
    assert "errors" in lines[-1]
    monkeypatch.setattr(doctor, "check_python", lambda version: iter([Finding(Level.ERROR, "broken", "mend it")]))
    lines.clear()
    assert doctor.run_doctor(out=lines.append) == 1
    assert lines[:2] == ["error   broken", "        -> mend it"]


def test_python() -> None:
    assert levels(list(doctor.check_python((3, 12, 1)))) == [Level.OK]
    assert levels(list(doctor.check_python((3, 10, 9)))) == [Level.ERROR]


def test_requirements() -> None:
    assert levels(list(doctor.check_requirements(["numpy>=1.26", 'nothing-such; extra == "x"']))) == [Level.OK]
    findings = list(doctor.check_requirements(["numpy<1", "no-such-package-anywhere>=2"]))
    assert levels(findings) == [Level.WARNING, Level.ERROR]
    assert "pip install 'no-such-package-anywhere>=2'" in findings[1].cure
    assert levels(list(doctor.check_requirements([]))) == [Level.WARNING]


def test_imports_are_tried_in_a_process_of_their_own() -> None:
    failed = doctor.failed_imports(("json", "no_such_module", "os.path"))
    assert list(failed) == ["no_such_module"]
    assert "no_such_module" in failed["no_such_module"]


def test_ros() -> None:
    sourced = {"ROS_DISTRO": "kilted"}
    assert levels(list(doctor.check_ros(sourced, lambda modules: {}))) == [Level.OK, Level.OK]
    assert levels(list(doctor.check_ros({}, lambda modules: {}))) == [Level.WARNING, Level.OK]
    assert levels(list(doctor.check_ros(sourced, lambda modules: dict.fromkeys(modules, "missing")))) == [Level.ERROR]
    unbuilt = list(doctor.check_ros(sourced, lambda modules: {"vmloc_msgs.msg": "No module named 'vmloc_msgs'"}))
    assert levels(unbuilt) == [Level.OK, Level.ERROR]
    assert "colcon build" in unbuilt[1].cure


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, [Level.OK]),
        ({"ROS_DOMAIN_ID": "42", "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}, [Level.OK]),
        ({"ROS_DOMAIN_ID": "300"}, [Level.ERROR]),
        ({"ROS_DOMAIN_ID": "one"}, [Level.ERROR]),
        ({"ROS_AUTOMATIC_DISCOVERY_RANGE": "EVERYWHERE"}, [Level.OK, Level.ERROR]),
        ({"ROS_AUTOMATIC_DISCOVERY_RANGE": "OFF"}, [Level.OK, Level.WARNING]),
        ({"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}, [Level.OK, Level.NOTE]),
    ],
)
def test_graph(environment: dict[str, str], expected: list[Level]) -> None:
    assert levels(list(doctor.check_graph(environment))) == expected


def test_dds_profile(tmp_path: Path) -> None:
    def check(path: Path) -> list[Level]:
        return levels(list(doctor.check_dds_profile({"FASTDDS_DEFAULT_PROFILES_FILE": str(path)})))

    assert levels(list(doctor.check_dds_profile({}))) == [Level.WARNING]
    assert check(tmp_path / "missing.xml") == [Level.ERROR]
    for name, text, expected in (
        ("good.xml", PROFILE.format(size=32 << 20), Level.OK),
        ("small.xml", PROFILE.format(size=512 << 10), Level.WARNING),
        ("broken.xml", "<dds", Level.ERROR),
    ):
        (tmp_path / name).write_text(text)
        assert check(tmp_path / name) == [expected]


def test_the_shipped_dds_profile_is_good(project_root: Path) -> None:
    assert max(doctor.shared_memory_segments(project_root / "config" / "fastdds.xml")) >= doctor.MIN_SEGMENT_BYTES


def test_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert levels(list(doctor.check_shared_memory(tmp_path / "none"))) == [Level.ERROR]
    usage = type("usage", (), {"free": 0})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage)
    for free, expected in ((64 << 20, Level.WARNING), (1 << 30, Level.OK)):
        usage.free = free
        assert levels(list(doctor.check_shared_memory(tmp_path))) == [expected]


def test_udp_buffers(tmp_path: Path) -> None:
    file = tmp_path / "rmem_max"
    assert list(doctor.check_udp_buffers(file)) == []
    file.write_text("212992\n")
    assert levels(list(doctor.check_udp_buffers(file))) == [Level.NOTE]
    file.write_text("8388608\n")
    assert list(doctor.check_udp_buffers(file)) == []


def test_cores(tmp_path: Path) -> None:
    assert levels(list(doctor.check_cores(4.0, 0.5))) == [Level.OK]
    assert levels(list(doctor.check_cores(2.0, 1.9))) == [Level.WARNING]
    assert levels(list(doctor.check_cores(1.0, 0.0))) == [Level.WARNING]
    quota = tmp_path / "cpu.max"
    without = doctor.available_cores(quota)
    quota.write_text("max 100000\n")
    assert doctor.available_cores(quota) == without >= 1
    quota.write_text("50000 100000\n")
    assert doctor.available_cores(quota) == 0.5


def test_model_that_is_missing_is_an_error_with_its_path(tmp_path: Path) -> None:
    findings = list(doctor.check_model(tmp_path / "nothing"))
    assert levels(findings) == [Level.ERROR]
    assert str(tmp_path / "nothing") in findings[0].what
