"""The calls of grpcurl in docs/clients.md."""

import os
import pathlib
import subprocess

import pytest
from conftest import block

PROGRAMS = pathlib.Path(__file__).parents[3] / ".local/bin"
LINES = block("gRPC", "sh").splitlines()


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.split()[-1])
def test_a_call_runs_as_it_is_written(line, address, model):
    assert "localhost:8000" in line
    line = line.replace("localhost:8000", address.removeprefix("http://")).replace("llama-8b", model)
    path = f"{PROGRAMS}:{os.environ['PATH']}"
    printed = subprocess.run(["bash", "-c", line], env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=120)
    assert printed.returncode == 0, printed.stderr
    wanted = {"list": "vllm.Inference", "vllm.Inference/GenerateStream": '"outputs"', "vllm.Control/GetServerInfo": '"maxModelLen"'}
    assert wanted[line.split()[-1]] in printed.stdout
