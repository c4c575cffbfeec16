"""The requests of Open WebUI 0.12.4, from the variables of its block in docs/clients.md.

The package is not run: it asks for a hundred others, PyTorch among them. These are the calls that its source makes of a server for models
(`open_webui/routers/openai.py`, `routers/tasks.py`), with their headers and parameters, and its answers are read as it reads them (`utils/middleware.py`):
line by line, each of which is `data:` and JSON.
"""

import json
import re
import urllib.request

import pytest
from conftest import block

# With ENABLE_FORWARD_USER_INFO_HEADERS; names are quoted as in URLs.
FORWARDED = {
    "X-OpenWebUI-User-Name": "Jos%C3%A9%20Arguedas",
    "X-OpenWebUI-User-Id": "0f3b5f0e-6a3e-4a63-8a2b-0c7c9d0a1b2c",
    "X-OpenWebUI-User-Email": "jose@example.com",
    "X-OpenWebUI-User-Role": "user",
    "X-OpenWebUI-Chat-Id": "5a1f4c39-0d0e-4a0b-9d7e-3c1e2f4a5b6c",
}
MESSAGES = [
    {"role": "system", "content": "You are brief."},
    {"role": "user", "content": "Why do llamas hum?"},
]
# What the sliders of a model and of a chat send, beside what the package always sends.
PARAMETERS = {
    "temperature": 0.8,
    "top_p": 0.9,
    "min_p": 0.05,
    "max_tokens": 12,
    "frequency_penalty": 0.1,
    "presence_penalty": 0.1,
    "seed": 7,
    "stop": ["<|never|>"],
    "logit_bias": {"5": -10},
}


def variables() -> dict[str, str]:
    """The environment of the container."""
    pairs = re.findall(r"\{name: (\w+), value: \"?([^\"}]*)\"?\}", block("Open WebUI", "yaml"))
    return dict(pairs)


@pytest.fixture(scope="module")
def ask(address):
    """Asks as the package does: the route behind OPENAI_API_BASE_URL, the key as a bearer."""
    given = variables()
    assert given["ENABLE_OLLAMA_API"] == "false"
    base = re.sub(r"^http://llamero-gateway\.llamero-system(?=/)", address, given["OPENAI_API_BASE_URL"].removesuffix("/"))
    assert base.startswith(address), base

    def send(route: str, body: dict | None = None):
        headers = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {given['OPENAI_API_KEY']}",
            "Accept": "*/*",
            "User-Agent": "Python/3.11 aiohttp/3.14.5",
            **FORWARDED,
        }
        data = None if body is None else json.dumps(body).encode()
        return urllib.request.urlopen(urllib.request.Request(f"{base}{route}", data, headers), timeout=120)

    return send


def test_its_list_of_models(ask, model):
    with ask("/models") as answer:
        listed = json.load(answer)
    # It hides names with these words in them from chats.
    hidden = ("babbage", "dall-e", "davinci", "embedding", "tts", "whisper")
    shown = [one["id"] for one in listed["data"] if not any(word in one["id"] for word in hidden)]
    assert model in shown


def test_a_streamed_chat(ask, model):
    body = {"stream": True, "model": model, "messages": MESSAGES, "stream_options": {"include_usage": True}, **PARAMETERS}
    text, usage, ended = "", None, False
    with ask("/chat/completions", body) as answer:
        assert "text/event-stream" in answer.headers["Content-Type"]
        for line in answer:
            if line.isspace():
                continue
            assert line.startswith(b"data:"), line
            data = line[5:].strip()
            if data == b"[DONE]":
                ended = True
                continue
            event = json.loads(data)
            assert "error" not in event, event
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                text += choice["delta"].get("content") or ""
    assert ended and text.strip()
    assert usage["completion_tokens"] <= PARAMETERS["max_tokens"] and usage["prompt_tokens"] > 5


def test_a_title(ask, model):
    prompt = f"### Task:\nGenerate a concise title.\n### Chat History:\nUSER: {MESSAGES[1]['content']}"
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "stream": False, "max_tokens": 20, "temperature": 0}
    with ask("/chat/completions", body) as answer:
        assert json.load(answer)["choices"][0]["message"]["content"].strip()
