"""A real server of the API, `transformers serve` with SmolLM2, on loopback."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from hf_gr import offline
from hf_gr.artifacts import read_json
from hf_gr.interests import Interests
from hf_gr.interests.answer_cache import AnswerCache
from hf_gr.interests.mining import MineConfig, mine


@pytest.fixture
def server(tmp_path):
    """Address and model of a server that runs from here to the end of the test."""
    command = shutil.which("transformers", path=str(Path(sys.executable).parent))
    assert command is not None, "transformers installs its command beside Python"
    model = offline.resolve("wheel:smollm2-135m-instruct")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (tmp_path / "server.log").open("w") as log:
        arguments = ["serve", model, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
        process = subprocess.Popen([command, *arguments], stdout=log, stderr=log, env=environment)
        try:
            _wait(process, f"http://127.0.0.1:{port}/health", tmp_path / "server.log")
            yield f"http://127.0.0.1:{port}/v1", model
        finally:
            process.terminate()
            process.wait(30)


def _wait(process, address, log):
    for _ in range(240):
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"the server does not come up: {log.read_text()}")


@pytest.mark.slow
def test_a_real_server_answers_once(server, dataset_folder, tmp_path):
    url, model = server
    miner = {"kind": "openai", "model": model, "base_url": url, "api_key_env": None, "max_answer_tokens": 24}
    miner |= {"timeout": 100, "attempts": 1}
    kept = tmp_path / "answers.sqlite"
    given = MineConfig(str(dataset_folder), str(tmp_path / "mined"), miners={"smol": miner}, answers=str(kept))
    given.limit, given.subjects, given.force = 1, ["items"], True
    out = mine(given)
    counts = read_json(out / "mining.json")["miners"]["smol"]
    assert counts["answered"] == 1 and counts["unanswered"] == counts["not_asked"] == 0
    assert counts["tokens_in"] > 300 and 1 <= counts["tokens_out"] <= 2 * 24  # as the server counts them
    run = read_json(out / "manifest.json")["run"]["smol"]
    with AnswerCache(kept) as cache:
        assert 1 <= len(cache) == run["answers"] <= 2  # two, where the first could not be read
    written = (out / "interests.parquet").read_bytes(), (out / "mining.json").read_bytes()
    mine(given)
    run = read_json(out / "manifest.json")["run"]["smol"]
    assert run["answers"] == 0 and run["kept_answers"] >= 1
    assert written == ((out / "interests.parquet").read_bytes(), (out / "mining.json").read_bytes())
    assert len(Interests.load(out)) == counts["findings"]
