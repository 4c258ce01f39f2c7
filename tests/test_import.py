"""What `import hf_gr` promises, in processes that know nothing else of it."""

import json
import subprocess
import sys

import pytest
from tiny import tiny_catalog, tiny_lm, tiny_tokenizer

from hf_gr.vocabulary import add_vocabulary


# libraries look for modules without importing them, before and after our own import
_PROBED = """
import importlib.util, json, sys
import hf_gr
answers = dict(light=not ("torch" in sys.modules or "transformers" in sys.modules))
for name in ("transformers.pipelines", "transformers.models.auto.configuration_auto"):
    for _ in range(2):
        importlib.util.find_spec(name)
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
answers["lazy"] = "hf_gr.models" not in sys.modules
answers["config"] = type(AutoConfig.from_pretrained("{folder}")).__name__
answers["model"] = type(AutoModelForCausalLM.from_pretrained("{folder}")).__name__
answers["tokenizer"] = len(AutoTokenizer.from_pretrained("{folder}"))
from transformers.pipelines import PIPELINE_REGISTRY
answers["task"] = "generative-recommendation" in PIPELINE_REGISTRY.get_supported_tasks()
print(json.dumps(answers))
"""
_AFTERWARDS = """
import json
from transformers import AutoModelForCausalLM, pipeline
import hf_gr
from transformers.pipelines import PIPELINE_REGISTRY
answers = dict(model=type(AutoModelForCausalLM.from_pretrained("{folder}")).__name__)
answers["task"] = "generative-recommendation" in PIPELINE_REGISTRY.get_supported_tasks()
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of form recursive on disk."""
    from searching import recursive

    path, model, tokenizer, catalog = tmp_path_factory.mktemp("intrr"), tiny_lm(), tiny_tokenizer(), tiny_catalog()
    model, _ = recursive(model, add_vocabulary(tokenizer, model, catalog, max_history=5), catalog)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def answers_of(code, folder):
    command = [sys.executable, "-c", code.replace("{folder}", str(folder))]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_probing_uses_nothing_up_and_models_of_ours_load_by_name(folder):
    answers = answers_of(_PROBED, folder)
    assert answers.pop("tokenizer") > 259
    kinds = {"config": "IntRRConfig", "model": "IntRRForCausalLM"}
    assert answers == {"light": True, "lazy": True, "task": True} | kinds


def test_the_order_of_imports_does_not_matter(folder):
    assert answers_of(_AFTERWARDS, folder) == {"model": "IntRRForCausalLM", "task": True}
