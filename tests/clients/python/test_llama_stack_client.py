"""llama-stack-client, whose inference routes are OpenAI's."""

import json

import pytest
from conftest import WEATHER, check_weather
from llama_stack_client import LlamaStackClient

HELLO = [{"role": "user", "content": "Say hello."}]
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Weather of a city", "parameters": WEATHER}}


@pytest.fixture(scope="module")
def client(address):
    return LlamaStackClient(base_url=address, api_key="unused", max_retries=0)


def test_models(client, model):
    assert model in [one.id for one in client.models.list()]


def test_chat(client, model):
    ask = dict(model=model, messages=HELLO, temperature=0, max_tokens=16)
    text = client.chat.completions.create(**ask).choices[0].message.content
    pieces = client.chat.completions.create(stream=True, **ask)
    assert text and "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == text


def test_a_tool_is_called(client, model):
    question = [{"role": "user", "content": "What is the weather in Lima, in celsius?"}]
    answer = client.chat.completions.create(
        model=model, messages=question, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, temperature=0, max_tokens=60
    )
    check_weather(json.loads(answer.choices[0].message.tool_calls[0].function.arguments))


def test_text(client, model):
    ask = dict(model=model, prompt="Llamas are", temperature=0, max_tokens=8)
    text = client.completions.create(**ask).choices[0].text
    assert text and "".join(piece.choices[0].text for piece in client.completions.create(stream=True, **ask)) == text


def test_responses(client, model):
    ask = dict(model=model, input="Say hello.", temperature=0, max_output_tokens=16)
    answer = client.responses.create(**ask)
    assert answer.output
    kinds = [event.type for event in client.responses.create(stream=True, **ask)]
    assert kinds[0] == "response.created" and kinds[-1] in ("response.completed", "response.incomplete")


def test_embeddings(client, model):
    answer = client.embeddings.create(model=model, input="A llama hums.", encoding_format="float")
    assert len(answer.data[0].embedding) > 100
