"""A stream through nginx as docs/clients.md sets it up: its pieces are passed on as they come."""

import http.client
import json
import os
import socket
import subprocess
import time
import urllib.parse

import pytest
from conftest import block

# A slow client may get several pieces at once by chance.
TRIES = 5


@pytest.fixture(scope="module")
def proxy(address, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nginx")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = block("Streams through a proxy", "nginx")
    assert "listen 8080;" in server and "proxy_pass http://127.0.0.1:8000;" in server
    server = server.replace("listen 8080;", f"listen 127.0.0.1:{port};").replace("http://127.0.0.1:8000", address)
    paths = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    config = folder / "nginx.conf"
    # Its workers must reach the folder.
    user = "user root; " if os.geteuid() == 0 else ""
    config.write_text(f"{user}daemon off; pid {folder}/pid; error_log stderr; events {{}} http {{ access_log off; {paths} {server} }}")
    nginx = subprocess.Popen(["nginx", "-c", config, "-e", "stderr"])
    try:
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
                break
            except OSError:
                assert nginx.poll() is None, "nginx has ended"
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        nginx.terminate()
        nginx.wait(timeout=30)


def pieces(url: str, model: str) -> int:
    """In how many pieces a stream of 12 tokens comes."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=120)
    ask = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "stream": True, "max_tokens": 12}
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps({**ask, "ignore_eos": True}), headers)
    answer = connection.getresponse()
    assert answer.status == 200
    whole = list(iter(lambda: answer.read1(65_536), b""))
    assert b"".join(whole).endswith(b"data: [DONE]\n\n")
    return len(whole)


def test_pieces_come_one_by_one(proxy, model):
    most = max(pieces(proxy, model) for _ in range(TRIES))
    assert most >= 6, f"at most {most} pieces"


def test_large_requests_pass(proxy, model):
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "llama " * 400_000}]})
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(proxy).netloc, timeout=120)
    connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    answer = connection.getresponse()
    # The gateway's own answer, not nginx' page about 1 MB.
    assert json.load(answer)["error"]["code"] == "context_length_exceeded"
