"""LlamaIndex's `OpenAILike` and `OpenAILikeEmbedding`."""

import asyncio
from typing import Literal

import pytest
from conftest import check_weather
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel


class Review(BaseModel):
    """A review."""

    sentiment: Literal["good", "bad"]
    stars: Literal[1, 2, 3]


def get_weather(city: Literal["Lima", "Cusco"], unit: Literal["celsius", "fahrenheit"]) -> str:
    """Weather of a city."""
    return f"18 {unit} in {city}"


@pytest.fixture
def llm(base_url, model):
    return OpenAILike(
        api_base=base_url, api_key="unused", model=model, is_chat_model=True, is_function_calling_model=True,
        should_use_structured_outputs=True, temperature=0, max_tokens=60, context_window=2048, max_retries=0,
    )


def test_chat(llm):
    question = [ChatMessage(role="user", content="Say hello.")]
    text = llm.chat(question).message.content
    assert text and "".join(piece.delta or "" for piece in llm.stream_chat(question)) == text
    assert asyncio.run(llm.achat(question)).message.content == text


def test_text(base_url, model):
    llm = OpenAILike(api_base=base_url, api_key="unused", model=model, is_chat_model=False, temperature=0, max_tokens=8)
    text = llm.complete("Llamas are").text
    assert text and "".join(piece.delta or "" for piece in llm.stream_complete("Llamas are")) == text


def test_a_tool_is_called(llm):
    tool = FunctionTool.from_defaults(get_weather)
    question = "What is the weather in Lima, in celsius?"
    ask = dict(user_msg=question, tool_required=True, parallel_tool_calls=False)
    answer = llm.chat_with_tools([tool], **ask)
    [call] = llm.get_tool_calls_from_response(answer)
    check_weather(call.tool_kwargs)
    assert call.tool_name == "get_weather"
    last = list(llm.stream_chat_with_tools([tool], **ask))[-1]
    assert [one.tool_kwargs for one in llm.get_tool_calls_from_response(last)] == [call.tool_kwargs]


def test_an_answer_has_a_type(llm):
    review = llm.as_structured_llm(Review).complete("Rate: the food was great.")
    assert isinstance(review.raw, Review)


def test_embeddings(base_url, model):
    embeddings = OpenAILikeEmbedding(api_base=base_url, api_key="unused", model_name=model)
    one, two = embeddings.get_text_embedding_batch(["A llama hums.", "A train leaves."])
    assert len(one) == len(two) == len(embeddings.get_query_embedding("A llama hums.")) and one != two
