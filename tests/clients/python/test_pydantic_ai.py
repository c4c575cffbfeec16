"""Pydantic AI by chat completions, by responses and by Anthropic's messages."""

import asyncio
from typing import Literal

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, ModelSettings, NativeOutput, ToolOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider


class Review(BaseModel):
    """A review."""

    sentiment: Literal["good", "bad"]
    stars: Literal[1, 2, 3]


SETTINGS = ModelSettings(temperature=0, max_tokens=60)
# Another call could be cut off.
ONE_CALL = ModelSettings(temperature=0, max_tokens=60, parallel_tool_calls=False)


@pytest.fixture(params=["chat", "responses", "messages"])
def language_model(request, address, base_url, model):
    if request.param == "messages":
        return AnthropicModel(model, provider=AnthropicProvider(base_url=address, api_key="unused"))
    kind = OpenAIChatModel if request.param == "chat" else OpenAIResponsesModel
    return kind(model, provider=OpenAIProvider(base_url=base_url, api_key="unused"))


def test_an_answer_whole_and_streamed(language_model):
    async def run():
        agent = Agent(language_model, model_settings=SETTINGS)
        whole = (await agent.run("Say hello.")).output
        async with agent.run_stream("Say hello.") as answer:
            pieces = [piece async for piece in answer.stream_text(delta=True, debounce_by=None)]
        return whole, pieces

    whole, pieces = asyncio.run(run())
    assert whole and "".join(pieces) == whole and len(pieces) > 1


def test_an_answer_has_a_type(language_model, request):
    async def run(output_type, settings):
        return (await Agent(language_model, output_type=output_type, model_settings=settings).run("Rate: great food.")).output

    # With a type, a call of a tool is required.
    assert isinstance(asyncio.run(run(ToolOutput(Review), ONE_CALL)), Review)
    if "messages" not in request.node.callspec.id:
        assert isinstance(asyncio.run(run(NativeOutput(Review), SETTINGS)), Review)


def test_a_type_is_streamed(language_model):
    async def run():
        agent = Agent(language_model, output_type=Review, model_settings=ONE_CALL)
        async with agent.run_stream("Rate: great food.") as answer:
            return await answer.get_output()

    assert isinstance(asyncio.run(run()), Review)
