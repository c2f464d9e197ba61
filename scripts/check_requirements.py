"""Do the pins fit `pyproject.toml`, and each other? `python3 scripts/check_requirements.py [FOLDER]`. Asks no network.

`requirements.txt` must pin what the service needs, `requirements-dev.txt` that and what the checks need, each by one
exact version for every Python and system that the project supports.
"""

import argparse
import itertools
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import environment

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PYTHONS: Final = ("3.11", "3.12", "3.13")
MACHINES: Final = (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"), ("win32", "AMD64"))


def main() -> None:
    if find_spec("packaging") is None:  # not otherwise: a pin that is wrong should be named, not installed
        environment.enter("requirements.txt")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=environment.ROOT)
    if faults := _faults(parser.parse_args().folder):
        sys.exit("\n".join(faults))


def _faults(folder: Path) -> list[str]:
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["embedded"], *extras["telemetry"]]
    pins, dev_pins = _pins(folder / "requirements.txt"), _pins(folder / "requirements-dev.txt")
    return [
        *(f"requirements.txt: {fault}" for fault in _mismatches(needed, pins)),
        *(f"requirements-dev.txt: {fault}" for fault in _mismatches([*needed, *extras["dev"]], dev_pins)),
        *(f"The two files differ: {fault}" for fault in _differences(pins, dev_pins)),
    ]


def _pins(file: Path) -> "list[Requirement]":
    """What the file pins: its lines without comments, options and hashes."""
    from packaging.requirements import InvalidRequirement, Requirement  # noqa: PLC0415

    lines = [line.partition(" #")[0].rstrip("\\ ") for line in file.read_text().splitlines()]
    try:
        return [Requirement(line) for line in lines if line and line[0] not in "#- \t"]
    except InvalidRequirement as error:
        sys.exit(f"{file.name}: {error}")


def _mismatches(needed: Iterable[str], pins: "list[Requirement]") -> Iterator[str]:
    """What is not exact, is not pinned, or is pinned to what `pyproject.toml` does not want."""
    from packaging.requirements import Requirement  # noqa: PLC0415

    yield from (f"`{pin}` is not an exact version" for pin in pins if _version(pin) is None)
    for requirement in map(Requirement, needed):
        named = [pin for pin in pins if _key(pin) == _key(requirement) and _version(pin)]
        yield from (
            f"`{pin}` does not satisfy `{requirement}`"
            for pin in named
            if not requirement.specifier.contains(_version(pin) or "", prereleases=True)
        )
        for place in _places():
            if _applies(requirement, place) and (count := sum(_applies(pin, place) for pin in named)) != 1:
                where = f"Python {place['python_version']}, {place['sys_platform']}, {place['platform_machine']}"
                yield f"`{requirement}` has {count} exact pins on {where}"
                break  # the first place tells enough


def _differences(pins: "list[Requirement]", dev_pins: "list[Requirement]") -> Iterator[str]:
    """The checks must run against the versions that are served."""
    for key in sorted({_key(pin) for pin in pins}):
        one, other = ({str(pin) for pin in each if _key(pin) == key} for each in (pins, dev_pins))
        if one != other:
            yield f"{' and '.join(sorted(one))} against {' and '.join(sorted(other)) or 'nothing'}"


def _version(pin: "Requirement") -> str | None:
    """The one version that it allows, if it does."""
    specifiers = list(pin.specifier)
    is_exact = len(specifiers) == 1 and specifiers[0].operator == "==" and not specifiers[0].version.endswith("*")
    return specifiers[0].version if is_exact else None


def _key(requirement: "Requirement") -> str:
    from packaging.utils import canonicalize_name  # noqa: PLC0415

    return canonicalize_name(requirement.name)


def _places() -> Iterator[dict[str, str]]:
    """Where the project runs, in the words of markers."""
    for python, (system, machine) in itertools.product(PYTHONS, MACHINES):
        yield {
            "python_version": python,
            "python_full_version": f"{python}.0",
            "sys_platform": system,
            "platform_machine": machine,
        }


def _applies(requirement: "Requirement", place: dict[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(dict(place))


if __name__ == "__main__":
    main()
