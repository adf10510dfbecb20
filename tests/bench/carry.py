"""Wheels for a machine without a network: `python -m tests.bench.carry DIR [--python 3.12] [--install SITE]`."""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "pydantic", "pydantic_core", "annotated-types", "typing-inspection", "typing_extensions", "zstandard", "PyYAML",
    "psutil", "gymnasium", "Farama-Notifications", "cloudpickle", "Box2D", "pygame-ce", "pytest",
    "tensordict", "pyvers", "orjson", "importlib_metadata", "omegaconf", "antlr4-python3-runtime",
)  # fmt: skip
"""What the GPU benchmark needs beside torch, numpy and OpenCV; the last six are for r2dreamer. Not Ray: 70 MB."""
_FROM_SOURCE = ("antlr4-python3-runtime",)
_GLIBC = (5, 12, 17, 24, 26, 27, 28, 31, 34, 35)


def main() -> int:
    """Download wheels, or install those that are missing here."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.carry", description=(__doc__ or "").split(":")[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="of the wheels")
    parser.add_argument(
        "--python", default="3.12", help="version of Python there (default: 3.12); it is an x86-64 Linux"
    )
    parser.add_argument(
        "--install", type=Path, metavar="SITE", help="install those that this Python lacks, for PYTHONPATH"
    )
    options = parser.parse_args()
    return _install(options.folder, options.install) if options.install else _download(options.folder, options.python)


def _download(folder: Path, python: str) -> int:
    """Fetch each package's wheel by the versions of `constraints.txt`; return how many there are none of."""
    folder.mkdir(parents=True, exist_ok=True)
    platforms = [f"--platform=manylinux_2_{number}_x86_64" for number in _GLIBC]
    platforms += ["--platform=manylinux2014_x86_64", "--platform=manylinux1_x86_64"]
    target = ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp", *platforms]
    missing = 0
    for package in PACKAGES:
        made_here = package in _FROM_SOURCE
        where = ["wheel", f"--wheel-dir={folder}"] if made_here else ["download", f"--dest={folder}", *target]
        code = _pip(*where, "--quiet", "--no-deps", f"--constraint={ROOT / 'constraints.txt'}", package)
        if code:
            print(f"no wheel of {package}", file=sys.stderr)
            missing += 1
    return missing


def _install(folder: Path, site: Path) -> int:
    """Install the wheels of what cannot be found."""
    wheels = [wheel for wheel in sorted(folder.glob("*.whl")) if not _is_installed(wheel.name.split("-")[0])]
    print(f"installing {', '.join(wheel.name.split('-')[0] for wheel in wheels) or 'nothing'}")
    if not wheels:
        return 0
    return _pip("install", "--quiet", "--no-index", "--no-deps", f"--target={site}", *map(str, wheels))


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _pip(*arguments: str) -> int:
    return subprocess.run([sys.executable, "-m", "pip", *arguments], check=False).returncode  # noqa: S603


if __name__ == "__main__":
    sys.exit(main())
