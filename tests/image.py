"""What the image holds, in a folder: the code that it takes from the project, and an environment that is whole."""

import json
import os
import shutil
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def instructions() -> list[tuple[str, str]]:
    """The keyword and the rest of each instruction of the Dockerfile."""
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line and not line.startswith("#")]


def lay_out(folder: Path) -> Path:
    """Lay out in the folder what the image takes from the project, less what it removes, and nothing else."""
    sources = [rest.split()[0] for keyword, rest in instructions() if keyword == "COPY" and "--from" not in rest]
    assert sources == ["requirements.txt", "app", "scripts"]
    image = folder / "image"
    for source in ("app", "scripts"):
        # With the bytecode, as the image has its own, but not what another process is just writing of it.
        shutil.copytree(ROOT / source, image / source, ignore=shutil.ignore_patterns("*.pyc.*"))
    (removal,) = (rest for keyword, rest in instructions() if keyword == "RUN" and rest.startswith("rm "))
    for pattern in removal.partition(" && ")[0].split()[1:]:
        removed = list(image.glob(pattern))
        assert removed, f"The image is to do without {pattern}, and there is none."
        for file in removed:
            file.unlink()
    _make_environment(folder / "venv")
    return image


def environment_of(image: Path) -> dict[str, str]:
    """The variables that the image sets, its folders in those of the test."""
    (rest,) = (rest for keyword, rest in instructions() if keyword == "ENV")
    variables = dict(item.split("=", 1) for item in rest.split())
    path = variables["PATH"].replace("/opt/venv", str(image.parent / "venv")).replace("$PATH", os.environ["PATH"])
    return variables | {"PATH": path, "DATA_DIR": str(image.parent / "data")}


def start_command() -> list[str]:
    """How the image starts, but reachable from this machine only."""
    (command,) = (json.loads(rest) for keyword, rest in instructions() if keyword == "CMD")
    assert command[0] == "python"
    return [part.replace("0.0.0.0", "127.0.0.1") for part in command]  # noqa: S104


def health_command() -> list[str]:
    (rest,) = (rest for keyword, rest in instructions() if keyword == "HEALTHCHECK")
    return list(json.loads(rest.partition(" CMD ")[2]))


def _make_environment(place: Path) -> None:
    """An environment as that of the image, in which what is installed for the tests stands for the pins."""
    venv.create(place, symlinks=True)
    packages = next(place.glob("lib/python*/site-packages"))
    (packages / "pins.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    (install,) = (rest for keyword, rest in instructions() if keyword == "RUN" and "/opt/venv/.complete" in rest)
    assert install.endswith("&& touch /opt/venv/.complete")
    (place / ".complete").touch()
