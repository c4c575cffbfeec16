"""Routes that no client package knows, asked by plain HTTP."""

import json
import urllib.error
import urllib.request

import pytest


def get(url: str) -> tuple[int, bytes]:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.status, answer.read()


def post(url: str, body: dict) -> dict:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_health_version_and_page(address):
    assert get(f"{address}/health")[0] == 200
    assert json.loads(get(f"{address}/version")[1])["version"]
    assert b"<html" in get(f"{address}/")[1]


def test_tokens_there_and_back(address, model):
    tokens = post(f"{address}/tokenize", {"model": model, "prompt": "Llamas hum.", "return_token_strs": True})
    assert tokens["count"] == len(tokens["tokens"]) == len(tokens["token_strs"]) > 0
    assert "Llamas hum." in post(f"{address}/detokenize", {"model": model, "tokens": tokens["tokens"]})["prompt"]
    chat = post(f"{address}/tokenize", {"model": model, "messages": [{"role": "user", "content": "Hi"}]})
    assert chat["count"] > 2


@pytest.mark.parametrize("route", ["score", "rerank", "v1/score", "v1/rerank"])
def test_what_is_not_built_is_refused_by_name(address, model, route):
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(f"{address}/{route}", {"model": model})
    assert refused.value.code == 404
    assert json.load(refused.value)["error"]["code"] == "unsupported_url"
