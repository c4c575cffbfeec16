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


class Report(BaseModel):
    degrees: Literal["18", "20"]


@pytest.fixture(params=[OpenAIChatCompletionsModel, OpenAIResponsesModel])
def kind(request, base_url, model):
    return lambda: request.param(model=model, openai_client=AsyncOpenAI(base_url=base_url, api_key="unused"))


def weather_agent(kind, called):
    @function_tool
    def get_weather(city: Literal["Lima", "Cusco"]) -> str:
        """Weather of a city."""
        called.append(city)
        return "18 degrees"

    settings = ModelSettings(tool_choice="required", parallel_tool_calls=False, temperature=0, max_tokens=60)
    return Agent(
        name="weather",
        instructions="Answer with the tool.",
        model=kind(),
        tools=[get_weather],
        model_settings=settings,
        # Free to choose, the small model would call it again and again.
        tool_use_behavior="stop_on_first_tool",
    )


def test_a_tool_is_called_and_its_result_read(kind):
    async def run():
        called = []
        result = await Runner.run(weather_agent(kind, called), "Weather in Lima?")
        # The package takes an answer that was cut for its length for an error; one with a type ends.
        narrator = Agent(name="narrator", model=kind(), output_type=Report, model_settings=ModelSettings(max_tokens=60))
        return called, result.final_output, await Runner.run(narrator, result.to_input_list())

    called, output, told = asyncio.run(run())
    assert called and all(city in ("Lima", "Cusco") for city in called)
    assert output == "18 degrees" and isinstance(told.final_output, Report)


def test_a_run_is_streamed(kind):
    async def run():
        called = []
        result = Runner.run_streamed(weather_agent(kind, called), "Weather in Lima?")
        kinds = [event.type async for event in result.stream_events()]
        return called, kinds, result.final_output

    called, kinds, output = asyncio.run(run())
    assert called and "raw_response_event" in kinds and "run_item_stream_event" in kinds
    assert output == "18 degrees"


def test_an_answer_has_a_type(kind):
    agent = Agent(name="critic", model=kind(), output_type=Review, model_settings=ModelSettings(max_tokens=60))
    result = asyncio.run(Runner.run(agent, "Rate: the food was great."))
    assert isinstance(result.final_output, Review)
