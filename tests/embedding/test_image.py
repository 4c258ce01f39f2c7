import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, ConvNextConfig, ConvNextModel, ViTImageProcessorPil, ViTModel

from hf_gr.embedding.image import VisionEncoder, encode_images, item_images
from hf_gr.errors import HfGrError


class FakeEncoder:
    """The mean colour of every picture; remembers what it was asked, fails when told to."""

    def __init__(self, fail_after: int = 1000, name: str = "fake"):
        self.name, self.pooling = name, "none"
        self.left, self.seen = fail_after, list[str]()

    def __call__(self, images: Sequence[tuple[str, Path]]) -> np.ndarray:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        self.seen += [item_id for item_id, _ in images]
        return np.stack([np.asarray(Image.open(path)).mean((0, 1)) for _, path in images]).astype(np.float32)


def run(encoder: FakeEncoder, paths: dict, cache: Path | None) -> np.ndarray:
    return encode_images(paths, encoder, progress=False, cache=cache, chunk_size=2)


def pixels(path: Path, side: int = 8) -> torch.Tensor:
    """[1, 3, side, side] as the processor of these tests makes it: bilinear, then (x/255 - ½) / ½."""
    small = Image.open(path).resize((side, side), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(small) / 127.5 - 1).permute(2, 0, 1)[None].float()


def test_vectors_are_the_pooled_output_and_zeros_without_an_image(tiny_vision: Path, pictures):
    vectors = encode_images(pictures, str(tiny_vision), batch_size=4, device="cpu", progress=False)
    assert vectors.dtype == np.float32
    assert vectors.shape == (7, 16)
    assert (vectors[2] == 0).all()
    model = ViTModel.from_pretrained(tiny_vision)
    for vector, path in zip(vectors, pictures.values(), strict=True):
        if path is not None:
            with torch.no_grad():
                assert np.allclose(vector, model(pixels(path)).pooler_output[0], atol=1e-5)
    assert VisionEncoder(str(tiny_vision), device="cpu").pooling == "pooler"


def test_a_pooler_that_was_never_trained_is_left_aside(tiny_vision: Path, pictures, tmp_path: Path):
    folder = tmp_path / "headless"
    model = ViTModel.from_pretrained(tiny_vision, add_pooling_layer=False)
    model.save_pretrained(folder)
    ViTImageProcessorPil.from_pretrained(tiny_vision).save_pretrained(folder)
    encoder = VisionEncoder(str(folder), device="cpu")
    assert encoder.pooling == "mean"
    with torch.no_grad():
        expected = model(pixels(pictures["i0"])).last_hidden_state.mean(1)[0]
    assert np.allclose(encoder([("i0", pictures["i0"])])[0], expected, atol=1e-5)


def test_the_image_tower_of_a_model_of_two_towers(pictures, tmp_path: Path):
    folder = tmp_path / "clip"
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = layers | {"vocab_size": 20, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 1}
    vision = layers | {"image_size": 8, "patch_size": 4}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)).eval()
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
    with torch.no_grad():
        expected = model.visual_projection(model.vision_model(pixels(pictures["i0"])).pooler_output)[0]
    assert np.allclose(VisionEncoder(str(folder), device="cpu")([("i0", pictures["i0"])])[0], expected, atol=1e-5)


def test_a_convolutional_network(pictures, tmp_path: Path):
    folder = tmp_path / "convolutions"
    model = ConvNextModel(ConvNextConfig(hidden_sizes=[4, 4, 8, 8], depths=[1, 1, 1, 1])).eval()
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    encoder = VisionEncoder(str(folder), device="cpu")
    with torch.no_grad():
        outputs = model(pixels(pictures["i0"], 32))
    assert np.allclose(encoder([("i0", pictures["i0"])])[0], outputs.pooler_output[0], atol=1e-5)
    encoder.pooling = "mean"
    expected = outputs.last_hidden_state.mean((2, 3))[0]
    assert np.allclose(encoder([("i0", pictures["i0"])])[0], expected, atol=1e-5)


def test_a_killed_run_goes_on_where_it_stopped(pictures, tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        run(FakeEncoder(fail_after=2), pictures, tmp_path / "cache")
    encoder = FakeEncoder()
    vectors = run(encoder, pictures, tmp_path / "cache")
    assert encoder.seen == ["i5", "i6"]  # the first four of six pictures are there
    assert np.array_equal(vectors, run(FakeEncoder(), pictures, None))
    assert not run_again(pictures, tmp_path)


def run_again(pictures: dict, tmp_path: Path, name: str = "fake") -> list[str]:
    encoder = FakeEncoder(name=name)
    run(encoder, pictures, tmp_path / "cache")
    return encoder.seen


def test_a_picture_that_changed_and_another_encoder_are_encoded_anew(pictures, tmp_path: Path):
    run(FakeEncoder(), pictures, tmp_path / "cache")
    assert run_again(pictures, tmp_path, "other") == ["i0", "i1", "i3", "i4", "i5", "i6"]
    for change in (
        lambda path: os.utime(path, ns=(1, 1)),
        lambda path: path.write_bytes(path.read_bytes() + b"0") and os.utime(path, ns=(1, 1)),
    ):
        change(pictures["i0"])
        assert run_again(pictures, tmp_path)[0] == "i0"
        assert not run_again(pictures, tmp_path)


def test_pictures_are_turned_upright_and_made_rgb(tmp_path: Path, tiny_vision: Path):
    random = np.random.default_rng(0)
    upright = Image.fromarray(random.integers(0, 256, (10, 6, 3), np.uint8))
    upright.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[274] = 6  # shown after a turn of 90 degrees
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    upright.convert("L").save(tmp_path / "grey.png")
    encoder = VisionEncoder(str(tiny_vision), device="cpu")
    names = ("upright", "turned", "grey")
    plain, turned, grey = encoder([(name, tmp_path / f"{name}.png") for name in names])
    assert np.allclose(plain, turned, atol=1e-6)
    assert not np.allclose(plain, grey, atol=1e-3)


def test_paths_are_relative_to_the_root_or_absolute(pictures, tmp_path: Path):
    names = ["picture0.png", str(tmp_path / "picture1.png"), None, ""]
    items = pa.table({"item_id": ["a", "b", "c", "d"], "image": names})
    expected = {"a": tmp_path / "picture0.png", "b": tmp_path / "picture1.png", "c": None, "d": None}
    assert item_images(items, tmp_path) == expected


def test_a_missing_file_and_a_missing_column_are_one_line(tmp_path: Path):
    items = pa.table({"item_id": ["a", "b"], "image": [None, "gone.png"]})
    with pytest.raises(HfGrError, match=r"gone\.png of item 'b' is missing; put") as error:
        item_images(items, tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(HfGrError, match=r"no column 'image' \(they have: item_id\)"):
        item_images(items.drop(["image"]), tmp_path)


@pytest.mark.parametrize("damage", ["text", "half", "empty"])
def test_a_broken_file_is_one_line(pictures, tiny_vision: Path, damage: str):
    path = pictures["i1"]
    whole = path.read_bytes()
    path.write_bytes({"text": b"not a picture", "half": whole[: len(whole) // 2], "empty": b""}[damage])
    with pytest.raises(HfGrError, match=r"picture1\.png of item 'i1' cannot be read .*; replace") as error:
        encode_images(pictures, str(tiny_vision), device="cpu", progress=False)
    assert "\n" not in str(error.value)


def test_no_images_at_all_and_an_encoder_that_is_none_are_refused(pictures, tiny_encoder: Path, tmp_path: Path):
    with pytest.raises(HfGrError, match="none of the items has an image"):
        encode_images({"a": None}, FakeEncoder(), progress=False)
    for folder in (tmp_path / "nowhere", tiny_encoder):
        with pytest.raises(HfGrError, match=f"cannot load the image encoder '{folder}'") as error:
            encode_images(pictures, str(folder), device="cpu", progress=False)
        assert "\n" not in str(error.value)


def test_an_encoder_with_weights_left_out_is_refused(tiny_vision: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_vision, tmp_path / "half")
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "query" not in k}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(HfGrError, match=r"lacks 2 weights of its network \(first: .*\.bias\)"):
        VisionEncoder(str(folder), device="cpu")


@pytest.mark.slow
def test_lite0_from_its_wheel_puts_like_near_like(tmp_path: Path):
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (64, 64, 3), np.uint8)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    Image.new("RGB", (90, 90), "darkred").save(tmp_path / "darkred.png")
    Image.fromarray(noise).save(tmp_path / "noise.png")
    paths = {name: tmp_path / f"{name}.png" for name in ("red", "darkred", "noise")}
    vectors = encode_images(paths, device="cpu", progress=False)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert vectors.shape == (3, 1280)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
