"""OpenAI's Agents SDK over both of its APIs: an agent that must call a tool, then answers."""

import asyncio
from typing import Literal

import pytest
from agents import (
    Agent,
    AsyncOpenAI,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from pydantic import BaseModel

set_tracing_disabled(True)


class Review(BaseModel):
    sentiment: Literal["good", "bad"]


@pytest.fixture(params=[OpenAIChatCompletionsModel, OpenAIResponsesModel])
def kind(request, base_url, model):
    return lambda: request.param(model=model, openai_client=AsyncOpenAI(base_url=base_url, api_key="unused"))


def weather_agent(kind, called):
    @function_tool
    def get_weather(city: Literal["Lima", "Cusco"]) -> str:
        """Weather of a city."""
        called.append(city)
        return "18 degrees"

    settings = ModelSettings(tool_choice="required", temperature=0, max_tokens=60)
    return Agent(name="weather", instructions="Answer with the tool.", model=kind(), tools=[get_weather], model_settings=settings)


def test_a_tool_is_called(kind):
    called = []
    result = asyncio.run(Runner.run(weather_agent(kind, called), "Weather in Lima?", max_turns=4))
    assert called and all(city in ("Lima", "Cusco") for city in called)
    assert result.final_output is not None


def test_a_run_is_streamed(kind):
    async def run():
        called = []
        result = Runner.run_streamed(weather_agent(kind, called), "Weather in Lima?", max_turns=4)
        kinds = [event.type async for event in result.stream_events()]
        return called, kinds, result.final_output

    called, kinds, output = asyncio.run(run())
    assert called and "raw_response_event" in kinds and "run_item_stream_event" in kinds
    assert output is not None


def test_an_answer_has_a_type(kind):
    agent = Agent(name="critic", model=kind(), output_type=Review, model_settings=ModelSettings(max_tokens=60))
    result = asyncio.run(Runner.run(agent, "Rate: the food was great."))
    assert isinstance(result.final_output, Review)
