"""What a result was made with: versions of packages, the commit, and the machine."""

import contextlib
import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path


_PACKAGES = ("hf-gr", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "sentence-transformers")


def versions() -> dict[str, str]:
    """Versions of the packages a result depends on, of Python, and the git commit of hf_gr's own checkout (if any)."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    commit = _commit(Path(__file__).resolve().parent)
    return found | ({} if commit is None else {"commit": commit})


def _commit(package: Path) -> str | None:
    """Commit of the checkout that a package lies in, or that it was installed from. A repository around the
    environment that the package is installed in is somebody else's."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        command = ["git", "-C", str(package), "rev-parse", "--show-toplevel", "--short", "HEAD"]
        top, commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[:2]
        if Path(top).resolve() == package.parent:
            return commit
    with contextlib.suppress(PackageNotFoundError):
        installed = distribution("hf-gr")
        source = installed.read_text("direct_url.json")
        if source is not None and Path(str(installed.locate_file(package.name))).resolve() == package:
            whole = json.loads(source).get("vcs_info", {}).get("commit_id")
            return None if whole is None else str(whole)[:7]
    return None


def hardware(*, gpus: bool = True) -> str:
    """Processor, number of cores and, with `gpus`, the accelerators that torch sees."""
    info = Path("/proc/cpuinfo")  # Linux only; elsewhere `platform` names the processor
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    found = f"{named[0] if named else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    if gpus:
        import torch

        if torch.cuda.is_available():
            found += f", {torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return found
