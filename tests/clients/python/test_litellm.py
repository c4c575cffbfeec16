"""LiteLLM as a library: chat, text, responses, embeddings and Anthropic's messages, each to the gateway."""

import asyncio
import json

import litellm
import pytest
from conftest import WEATHER, check_weather

HELLO = [{"role": "user", "content": "Say hello."}]
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Weather of a city", "parameters": WEATHER}}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "review",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"stars": {"type": "integer", "enum": [1, 2, 3]}},
            "required": ["stars"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(params=["openai", "hosted_vllm"])
def to(request, base_url, model):
    return dict(model=f"{request.param}/{model}", api_base=base_url, api_key="unused", num_retries=0)


def test_chat(to):
    ask = dict(messages=HELLO, temperature=0, max_tokens=16, **to)
    whole = litellm.completion(**ask)
    text = whole.choices[0].message.content
    pieces = list(litellm.completion(stream=True, stream_options={"include_usage": True}, **ask))
    assert text and "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == text
    assert asyncio.run(litellm.acompletion(**ask)).choices[0].message.content == text


def test_a_tool_is_called(to):
    question = [{"role": "user", "content": "What is the weather in Lima, in celsius?"}]
    one = dict(tool_choice="required", parallel_tool_calls=False)
    ask = dict(messages=question, tools=[TOOL], temperature=0, max_tokens=60, **one, **to)
    message = litellm.completion(**ask).choices[0].message
    check_weather(json.loads(message.tool_calls[0].function.arguments))
    rebuilt = litellm.stream_chunk_builder(list(litellm.completion(stream=True, **ask)), messages=question)
    check_weather(json.loads(rebuilt.choices[0].message.tool_calls[0].function.arguments))
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "18 degrees"}
    told = litellm.completion(messages=[*question, message, result], tools=[TOOL], max_tokens=16, temperature=0, **to)
    assert told.choices


def test_an_answer_has_a_form(to):
    answer = litellm.completion(messages=HELLO, response_format=SCHEMA, max_tokens=40, **to)
    assert json.loads(answer.choices[0].message.content)["stars"] in (1, 2, 3)


def test_text_responses_and_embeddings(base_url, model):
    to = dict(api_base=base_url, api_key="unused")
    text = litellm.text_completion(model=f"text-completion-openai/{model}", prompt="Llamas are", max_tokens=8, temperature=0, **to)
    assert text.choices[0].text
    ask = dict(model=f"openai/{model}", input="Say hello.", max_output_tokens=16, temperature=0, **to)
    assert litellm.responses(**ask).output
    kinds = [event.type for event in litellm.responses(stream=True, **ask)]
    assert kinds[-1] in ("response.completed", "response.incomplete"), kinds
    vectors = litellm.embedding(model=f"openai/{model}", input=["A llama hums."], encoding_format="float", **to)
    assert len(vectors.data[0]["embedding"]) > 100


def test_messages(address, model):
    to = dict(model=f"anthropic/{model}", api_base=address, api_key="unused")
    ask = dict(messages=HELLO, max_tokens=16, temperature=0, **to)
    whole = litellm.completion(**ask).choices[0].message.content
    streamed = "".join(piece.choices[0].delta.content or "" for piece in litellm.completion(stream=True, **ask))
    assert whole and streamed == whole


def test_errors(base_url):
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(model="openai/nobody", messages=HELLO, api_base=base_url, api_key="unused", num_retries=0)
