"""OpenAI's Python package: every route of its API that the gateway has, streamed and not."""

import json
from typing import Literal

import openai
import pytest
from conftest import WEATHER, check_weather
from pydantic import BaseModel

HELLO = [{"role": "user", "content": "Say hello."}]
ASK_WEATHER = [{"role": "user", "content": "What is the weather in Lima, in celsius?"}]
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Weather of a city", "parameters": WEATHER}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}
RESPONSE_TOOL = {"type": "function", "name": "get_weather", "description": "Weather of a city", "parameters": WEATHER, "strict": True}


class Review(BaseModel):
    sentiment: Literal["good", "bad"]
    stars: Literal[1, 2, 3, 4, 5]


@pytest.fixture(scope="module")
def client(base_url):
    return openai.OpenAI(base_url=base_url, api_key="unused", max_retries=0)


def test_models(client, model):
    listed = client.models.list()
    assert [one.id for one in listed].count(model) == 1
    one = client.models.retrieve(model)
    assert (one.id, one.object) == (model, "model")
    assert one.max_model_len > 0


def test_chat_whole_and_streamed_are_the_same(client, model):
    ask = dict(model=model, messages=HELLO, temperature=0, max_tokens=16)
    whole = client.chat.completions.create(**ask)
    text = whole.choices[0].message.content
    chunks = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **ask))
    assert text and text == "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    assert reasons == [whole.choices[0].finish_reason]
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    # The group has just computed the prompt.
    assert 0 < chunks[-1].usage.prompt_tokens_details.cached_tokens < whole.usage.prompt_tokens
    assert len(chunks) > 3
    assert len({chunk.id for chunk in chunks}) == 1
    assert whole.system_fingerprint == chunks[-1].system_fingerprint != None


def test_several_answers_and_log_probabilities(client, model):
    answer = client.chat.completions.create(
        model=model, messages=HELLO, n=2, seed=7, temperature=1, max_tokens=6, logprobs=True, top_logprobs=3
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        entries = choice.logprobs.content
        assert "".join(entry.token for entry in entries).strip() == choice.message.content.strip()
        assert all(len(entry.top_logprobs) == 3 and entry.logprob <= 0 for entry in entries)
    stream = client.chat.completions.create(
        model=model, messages=HELLO, n=2, seed=7, temperature=1, max_tokens=6, logprobs=True, stream=True
    )
    texts = ["", ""]
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in answer.choices]


def test_stop_and_sampling_fields(client, model):
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Count from 1 to 9."}], temperature=0, max_tokens=40, stop=["5"],
        presence_penalty=0.1, frequency_penalty=0.1, top_p=0.9, logit_bias={"0": -1}, user="somebody", metadata={"a": "b"},
        store=False, extra_body={"min_p": 0.01, "top_k": 20, "repetition_penalty": 1.05, "min_tokens": 1},
    )
    assert "5" not in answer.choices[0].message.content


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_tool_is_called_and_its_result_read(client, model, choice):
    ask = dict(
        model=model, messages=ASK_WEATHER, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False, temperature=0, max_tokens=60
    )
    whole = client.chat.completions.create(**ask)
    [call] = whole.choices[0].message.tool_calls
    assert call.type == "function" and call.function.name == "get_weather"
    check_weather(json.loads(call.function.arguments))

    name = arguments = ""
    for chunk in client.chat.completions.create(stream=True, **ask):
        for part in chunk.choices[0].delta.tool_calls or []:
            name += part.function.name or ""
            arguments += part.function.arguments or ""
    assert (name, arguments) == ("get_weather", call.function.arguments)

    history = [
        *ASK_WEATHER,
        whole.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": '{"degrees": 18}'},
    ]
    told = client.chat.completions.create(model=model, messages=history, tools=[TOOL], temperature=0, max_tokens=24)
    assert told.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_several_calls_may_be_made(client, model):
    """How many is up to the model, and where the tokens end too: all calls but one that was cut off are whole."""
    question = [{"role": "user", "content": "What is the weather in Lima, and what is it in Cusco, in celsius?"}]
    ask = dict(model=model, messages=question, tools=[TOOL], tool_choice="required", temperature=0, max_tokens=120)
    whole = client.chat.completions.create(**ask).choices[0]
    assert whole.finish_reason in ("tool_calls", "length")
    calls = [(call.function.name, call.function.arguments) for call in whole.message.tool_calls]
    ended = calls if whole.finish_reason == "tool_calls" else calls[:-1] or calls
    for name, arguments in ended:
        assert name == "get_weather"
        check_weather(json.loads(arguments))
    assert len({call.id for call in whole.message.tool_calls}) == len(calls)

    streamed = {}
    for chunk in client.chat.completions.create(stream=True, **ask):
        for part in chunk.choices[0].delta.tool_calls or []:
            name, arguments = streamed.get(part.index, ("", ""))
            streamed[part.index] = (name + (part.function.name or ""), arguments + (part.function.arguments or ""))
    assert [streamed[index] for index in sorted(streamed)][: len(ended)] == ended


def test_the_helper_for_tools_in_streams(client, model):
    ask = dict(
        model=model, messages=ASK_WEATHER, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, temperature=0, max_tokens=60
    )
    with client.chat.completions.stream(**ask) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds, kinds
    check_weather(json.loads(final.choices[0].message.tool_calls[0].function.arguments))


def test_structured_output(client, model):
    ask = dict(model=model, messages=[{"role": "user", "content": "Rate: the food was great."}], max_tokens=60)
    parsed = client.chat.completions.parse(response_format=Review, **ask).choices[0].message.parsed
    assert isinstance(parsed, Review)
    with client.chat.completions.stream(response_format=Review, **ask) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Review)
    chosen = client.chat.completions.create(extra_body={"structured_outputs": {"choice": ["yes", "no"]}}, **ask)
    assert chosen.choices[0].message.content in ("yes", "no")


def test_text_completions(client, model):
    ask = dict(model=model, prompt="Llamas are", temperature=0, max_tokens=8)
    whole = client.completions.create(**ask)
    assert whole.choices[0].text and whole.usage.completion_tokens == 8
    pieces = list(client.completions.create(stream=True, **ask))
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == whole.choices[0].text
    several = client.completions.create(model=model, prompt=["One", "Two"], max_tokens=2, echo=True, logprobs=2)
    assert [choice.index for choice in several.choices] == [0, 1]
    assert several.choices[1].text.startswith("Two")
    assert len(several.choices[0].logprobs.tokens) == len(several.choices[0].logprobs.token_logprobs)


def test_responses(client, model):
    ask = dict(model=model, instructions="Be brief.", input="Say hello.", temperature=0, max_output_tokens=16)
    whole = client.responses.create(**ask)
    assert whole.output_text and whole.usage.output_tokens > 0
    events = list(client.responses.create(stream=True, **ask))
    assert events[0].type == "response.created" and events[-1].type in ("response.completed", "response.incomplete")
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].response.output_text == whole.output_text


def test_responses_call_tools_and_go_on_from_replayed_items(client, model):
    question = {"role": "user", "content": "What is the weather in Lima, in celsius?"}
    # One call, which is not cut off.
    one = dict(tool_choice="required", parallel_tool_calls=False, temperature=0, max_output_tokens=60)
    ask = dict(model=model, input=[question], tools=[RESPONSE_TOOL], **one)
    whole = client.responses.create(**ask)
    [call] = [item for item in whole.output if item.type == "function_call"]
    check_weather(json.loads(call.arguments))
    with client.responses.stream(**ask) as stream:
        done = [event for event in stream if event.type == "response.function_call_arguments.done"]
        final = stream.get_final_response()
    assert [event.arguments for event in done] == [call.arguments]
    assert final.output[0].arguments == call.arguments
    replayed = [question, *whole.output, {"type": "function_call_output", "call_id": call.call_id, "output": "18 degrees"}]
    told = client.responses.create(model=model, input=replayed, tools=[RESPONSE_TOOL], temperature=0, max_output_tokens=16)
    assert told.output


def test_responses_have_a_form(client, model):
    answer = client.responses.parse(model=model, input="Rate: the food was bad.", text_format=Review, max_output_tokens=60)
    assert isinstance(answer.output_parsed, Review)


def test_embeddings(client, model):
    # The package asks for base64 by itself and decodes it.
    answer = client.embeddings.create(model=model, input=["A llama hums.", "A train leaves."])
    assert [one.index for one in answer.data] == [0, 1]
    length = sum(value * value for value in answer.data[0].embedding) ** 0.5
    assert abs(length - 1) < 1e-3, length
    floats = client.embeddings.create(model=model, input="A llama hums.", encoding_format="float")
    assert floats.data[0].embedding == pytest.approx(answer.data[0].embedding, abs=1e-6)


def test_errors_are_those_of_the_api(client, model):
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="nobody", messages=HELLO)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=model, prompt="x", suffix="y")
    assert (refused.value.param, refused.value.code) == ("suffix", "unsupported_parameter")
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "llama " * 20_000}])
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as stored:
        client.responses.create(model=model, input="x", previous_response_id="resp_1")
    assert stored.value.param == "previous_response_id"
    with pytest.raises(openai.NotFoundError) as absent:
        client.images.generate(model=model, prompt="a llama")
    assert absent.value.code == "unsupported_url"


def test_ids_of_requests(client, model):
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=HELLO, max_tokens=1, extra_headers={"x-request-id": "client-1"}
    )
    assert raw.headers["x-request-id"] == "client-1"
    assert raw.parse().choices


def test_a_stream_may_be_left(client, model):
    stream = client.chat.completions.create(model=model, messages=HELLO, stream=True, extra_body={"ignore_eos": True})
    assert next(iter(stream)).choices
    stream.close()
    assert client.chat.completions.create(model=model, messages=HELLO, max_tokens=1).choices


def test_async(base_url, model):
    import asyncio

    async def run():
        async with openai.AsyncOpenAI(base_url=base_url, api_key="unused", max_retries=0) as client:
            stream = await client.chat.completions.create(model=model, messages=HELLO, stream=True, max_tokens=8)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    assert asyncio.run(run())
