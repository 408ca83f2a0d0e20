"""The pinned requirements are complete: each dependency in setup.cfg has one matching pin for every Python."""

import configparser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


def read_requirements(text: str) -> list[Requirement]:
    lines = (line.split(" --hash")[0].strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def read_lock(python: str, file: str = "lock.txt") -> dict[str, str]:
    """The versions that a file of requirements/ pins for one Python, on Linux."""
    environment = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux"}
    pins: dict[str, str] = {}
    for pin in read_requirements((ROOT / "requirements" / file).read_text()):
        if pin.marker is None or pin.marker.evaluate(environment):
            (specifier,) = pin.specifier
            assert specifier.operator == "==", f"{pin} is not pinned"
            assert canonicalize_name(pin.name) not in pins, f"{pin.name} is pinned twice for Python {python}"
            pins[canonicalize_name(pin.name)] = specifier.version
    return pins


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_lock_satisfies_setup_cfg(python):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    used = ("bench", "detectron2", "dev", "export")
    asked = read_requirements(setup["options"]["install_requires"] + "".join(extras[name] for name in used))
    pins = read_lock(python)
    for requirement in asked:
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_the_website_s_pins_satisfy_setup_cfg_and_agree_with_the_lock(python):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    pins, lock = read_lock(python, "docs.txt"), read_lock(python)
    for requirement in read_requirements(setup["options.extras_require"]["docs"]):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement
    assert {name: lock[name] for name in pins if name in lock} == {name: pins[name] for name in pins if name in lock}


def test_detectron2_is_pinned_by_hash():
    lines = [
        line for line in (ROOT / "requirements/detectron2.txt").read_text().splitlines() if not line.startswith("#")
    ]
    assert len(lines) == 1 and "==" in lines[0] and "--hash=sha256:" in lines[0]
