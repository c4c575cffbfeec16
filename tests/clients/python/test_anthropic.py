"""Anthropic's Python package: messages, tools, streams, counting."""

import json

import anthropic
import pytest
from conftest import WEATHER, check_weather

HELLO = [{"role": "user", "content": "Say hello."}]
ASK_WEATHER = [{"role": "user", "content": "What is the weather in Lima, in celsius?"}]
# The package has no argument for it any more, but the API has.
GREEDY = {"temperature": 0}
TOOL = {"name": "get_weather", "description": "Weather of a city", "input_schema": WEATHER}


@pytest.fixture(scope="module")
def client(address):
    return anthropic.Anthropic(base_url=address, api_key="unused", max_retries=0)


def test_a_message_whole_and_streamed(client, model):
    ask = dict(model=model, max_tokens=16, system="Be brief.", messages=HELLO, extra_body=GREEDY)
    whole = client.messages.create(**ask)
    assert whole.type == "message" and whole.content[0].text and whole.usage.output_tokens > 0
    with client.messages.stream(**ask) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.stop_reason == whole.stop_reason and final.usage.output_tokens == whole.usage.output_tokens
    kinds = [event.type for event in client.messages.create(stream=True, **ask)]
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")


@pytest.mark.parametrize("choice", [{"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "get_weather"}])
def test_a_tool_is_used_and_its_result_read(client, model, choice):
    ask = dict(model=model, max_tokens=80, messages=ASK_WEATHER, tools=[TOOL], tool_choice=choice, extra_body=GREEDY)
    whole = client.messages.create(**ask)
    assert whole.stop_reason == "tool_use"
    [use] = [block for block in whole.content if block.type == "tool_use"]
    check_weather(use.input)
    with client.messages.stream(**ask) as stream:
        final = stream.get_final_message()
    [streamed] = [block for block in final.content if block.type == "tool_use"]
    assert streamed.input == use.input
    history = [
        *ASK_WEATHER,
        {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in whole.content]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "18 degrees"}]},
    ]
    told = client.messages.create(model=model, max_tokens=16, messages=history, tools=[TOOL])
    assert told.content


SHAPE = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"], "additionalProperties": False}


def test_an_answer_has_its_schema_also_beside_tools(client, model):
    shape = {"format": {"type": "json_schema", "schema": SHAPE}}
    ask = dict(model=model, max_tokens=80, messages=ASK_WEATHER, output_config=shape, extra_body=GREEDY)
    whole = client.messages.create(**ask)
    assert whole.stop_reason == "end_turn" and set(json.loads(whole.content[0].text)) == {"city"}
    either = client.messages.create(tools=[TOOL], **ask)
    if either.stop_reason == "tool_use":
        assert either.content[-1].name == "get_weather"
    else:
        assert set(json.loads(either.content[0].text)) == {"city"}


def test_a_last_turn_of_the_assistant_is_gone_on_with(client, model):
    begun = [*HELLO, {"role": "assistant", "content": "Hello! I am called"}]
    told = client.messages.create(model=model, max_tokens=8, messages=begun, extra_body=GREEDY)
    assert told.content[0].text and not told.content[0].text.lstrip().startswith("Hello! I am called")
    # The turn stands in the prompt once, and no other one is opened behind it.
    closed = client.messages.count_tokens(model=model, messages=[*begun, *HELLO])
    assert told.usage.input_tokens + told.usage.cache_read_input_tokens < closed.input_tokens
    with pytest.raises(anthropic.BadRequestError, match="white space"):
        client.messages.create(model=model, max_tokens=8, messages=[*HELLO, {"role": "assistant", "content": "Hello! "}])


def test_counting(client, model):
    counted = client.messages.count_tokens(model=model, messages=HELLO, system="Be brief.")
    asked = client.messages.create(model=model, messages=HELLO, system="Be brief.", max_tokens=1)
    # Of tokens that come from the cache there is a count of its own.
    assert counted.input_tokens == asked.usage.input_tokens + asked.usage.cache_read_input_tokens > 0


def test_errors_are_those_of_the_api(client, model):
    with pytest.raises(anthropic.NotFoundError) as unknown:
        client.messages.create(model="nobody", max_tokens=1, messages=HELLO)
    assert unknown.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.messages.create(model=model, max_tokens=1, messages=HELLO, extra_body={"mcp_servers": [{"url": "x"}]})
    assert "mcp_servers" in str(refused.value)


def test_models(client, model):
    assert model in [one.id for one in client.models.list()]
