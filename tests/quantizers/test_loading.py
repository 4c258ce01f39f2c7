import json
from pathlib import Path

import numpy as np
import pytest

from hf_gr.errors import HfGrError
from hf_gr.quantizers import METHODS, load_quantizer


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_quantizer_comes_back_as_its_method_and_gives_the_same_codes(name: str, tmp_path: Path):
    vectors = np.random.default_rng(0).normal(size=(80, 8)).astype(np.float32)
    parts = {"modalities": ["text", "image"], "widths": [5, 3], "shared_experts": 0, "own_experts": 1}
    config = METHODS[name].config_class(dim=8, codebook_sizes=[4, 4], **(parts if METHODS[name].uses_parts else {}))
    if "epochs" in config.to_dict():
        config.epochs = 2
    quantizer = METHODS[name](config).fit(vectors, progress=False)
    quantizer.save_pretrained(tmp_path)
    loaded = load_quantizer(tmp_path)
    assert type(loaded) is METHODS[name]
    assert np.array_equal(loaded.encode(vectors), quantizer.encode(vectors))


def test_what_is_no_quantizer_is_refused(tmp_path: Path):
    with pytest.raises(HfGrError, match=r"config\.json is missing"):
        load_quantizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(HfGrError, match="'llama', not a quantizer; quantizers are: hf_gr_"):
        load_quantizer(tmp_path)
