"""LangChain's `ChatOpenAI`, `OpenAI` and `OpenAIEmbeddings`, by chat completions and by responses."""

from typing import Literal

import pytest
from conftest import check_weather
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel


class Review(BaseModel):
    """A review."""

    sentiment: Literal["good", "bad"]
    stars: Literal[1, 2, 3]


@tool
def get_weather(city: Literal["Lima", "Cusco"], unit: Literal["celsius", "fahrenheit"]) -> str:
    """Weather of a city."""
    return f"18 {unit} in {city}"


@pytest.fixture(params=[False, True], ids=["chat", "responses"])
def chat(request, base_url, model):
    return ChatOpenAI(
        base_url=base_url, api_key="unused", model=model, temperature=0, max_tokens=60, use_responses_api=request.param
    )


def test_an_answer_whole_and_streamed(chat):
    whole = chat.invoke("Say hello.")
    text = whole.text if isinstance(whole.text, str) else whole.text()
    assert text and whole.usage_metadata["output_tokens"] > 0
    pieces = [piece.text if isinstance(piece.text, str) else piece.text() for piece in chat.stream("Say hello.")]
    assert "".join(pieces) == text and len(pieces) > 2


def test_a_tool_is_called_and_its_result_read(chat):
    question = HumanMessage("What is the weather in Lima, in celsius?")
    for choice in ("required", "get_weather"):
        bound = chat.bind_tools([get_weather], tool_choice=choice, parallel_tool_calls=False)
        called = bound.invoke([question])
        [call] = called.tool_calls
        check_weather(call["args"])
    streamed = None
    for piece in bound.stream([question]):
        streamed = piece if streamed is None else streamed + piece
    assert streamed.tool_calls[0]["args"] == call["args"]
    result = ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
    assert chat.bind_tools([get_weather]).invoke([question, called, result]) is not None


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_an_answer_has_a_type(chat, method):
    review = chat.with_structured_output(Review, method=method).invoke("Rate: the food was great.")
    assert isinstance(review, Review)


def test_text_and_embeddings(base_url, model):
    text = OpenAI(base_url=base_url, api_key="unused", model=model, temperature=0, max_tokens=8)
    assert text.invoke("Llamas are") == "".join(text.stream("Llamas are")) != ""
    # The package would cut texts into tokens of OpenAI's own models.
    embeddings = OpenAIEmbeddings(base_url=base_url, api_key="unused", model=model, check_embedding_ctx_length=False)
    one, two = embeddings.embed_documents(["A llama hums.", "A train leaves."])
    assert len(one) == len(two) == len(embeddings.embed_query("A llama hums.")) and one != two
