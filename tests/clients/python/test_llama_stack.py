"""A llama-stack server whose inference provider is the gateway, configured as docs/clients.md says."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from conftest import WEATHER, block, check_weather
from llama_stack_client import LlamaStackClient

QUESTION = {"role": "user", "content": "What is the weather in Lima, in celsius?"}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Weather of a city", "parameters": WEATHER}}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_it_answers(server: subprocess.Popen, url: str, log: pathlib.Path) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/v1/models", timeout=10).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"llama-stack does not answer:\n{log.read_text()[-4000:]}")


@pytest.fixture(scope="module")
def stack(base_url, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stack")
    config, log, port = folder / "stack.yaml", folder / "log", free_port()
    text = block("llama-stack", "yaml")
    config.write_text(text.replace("http://localhost:8000/v1", base_url).replace("/var/lib/llama-stack", str(folder)))
    program = pathlib.Path(sys.executable).with_name("llama")
    with log.open("w") as output:
        server = subprocess.Popen(
            [program, "stack", "run", config, "--port", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HOME": str(folder)},
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_it_answers(server, url, log)
            yield LlamaStackClient(base_url=url)
        finally:
            server.terminate()
            server.wait(timeout=60)


def test_a_tool_question_is_answered(stack, model):
    model = f"llamero/{model}"
    assert model in [one.id for one in stack.models.list()]
    ask = dict(model=model, tools=[TOOL], temperature=0)
    call_once = dict(messages=[QUESTION], tool_choice="required", parallel_tool_calls=False, max_tokens=60, **ask)
    message = stack.chat.completions.create(**call_once).choices[0].message
    [call] = message.tool_calls
    check_weather(json.loads(call.function.arguments))
    arguments = ""
    for chunk in stack.chat.completions.create(stream=True, **call_once):
        for part in chunk.choices[0].delta.tool_calls or []:
            arguments += part.function.arguments or ""
    assert arguments == call.function.arguments
    history = [
        QUESTION,
        {"role": "assistant", "tool_calls": [call.model_dump(exclude_none=True)]},
        {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"},
    ]
    told = stack.chat.completions.create(model=model, messages=history, temperature=0, max_tokens=24)
    assert told.choices[0].message.content
