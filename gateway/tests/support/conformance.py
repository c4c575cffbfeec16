"""Holds what the gateway takes and gives beside the types of the Python package `openai`.

Reads {"fields", "requests", "objects"} from standard input and writes a JSON list of what does not agree:
- `fields`: by route, the names in the gateway's table; every parameter of OpenAI's types must be there.
- `requests`: [kind, body]; each must be a request by those types.
- `objects`: [kind, object]; each must be valid, strictly, and have no field that the types do not have, but for `OURS`.
"""

import json
import re
import sys

import openai.types as types
import openai.types.chat as chat
import openai.types.responses as responses
from openai.types.chat import completion_create_params as chat_params
from openai.types import completion_create_params as text_params, embedding_create_params as embedding_params
from openai.types.responses import response_create_params as response_params
from openai.types.shared import ErrorObject
from pydantic import BaseModel, RootModel, TypeAdapter, ValidationError

# Fields beside OpenAI's: those of vLLM's server, which clients read.
OURS = {"max_model_len", "stop_reason", "prompt_logprobs"}

PARAMETERS = {
    "chat": (chat_params.CompletionCreateParamsNonStreaming, chat_params.CompletionCreateParamsStreaming),
    "text": (text_params.CompletionCreateParamsNonStreaming, text_params.CompletionCreateParamsStreaming),
    "responses": (response_params.ResponseCreateParamsNonStreaming, response_params.ResponseCreateParamsStreaming),
    "embeddings": (embedding_params.EmbeddingCreateParams,),
}


class ModelList(BaseModel):
    """What the SDK's page of models is made from."""

    object: str
    data: list[types.Model]


OBJECTS = {
    "chat.completion": chat.ChatCompletion,
    "chat.completion.chunk": chat.ChatCompletionChunk,
    "text_completion": types.Completion,
    "response": responses.Response,
    "response.event": responses.ResponseStreamEvent,
    "embeddings": types.CreateEmbeddingResponse,
    "model": types.Model,
    "models": ModelList,
    "error": ErrorObject,
}


def names(kinds):
    """The parameters of a request."""
    return {name for kind in kinds for name in kind.__annotations__}


def parameter_types(kinds):
    """One after the other: a request is whole, or it is streamed."""
    return [TypeAdapter(kind) for kind in kinds]


def extras(value, path):
    """Fields that the types do not have."""
    if isinstance(value, RootModel):
        yield from extras(value.root, path)
    elif isinstance(value, BaseModel):
        for name in value.model_extra or {}:
            if name not in OURS:
                yield f"{path}.{name}"
        for name in value.model_fields_set:
            if name in type(value).model_fields:
                yield from extras(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, (list, tuple)):
        for index, entry in enumerate(value):
            yield from extras(entry, f"{path}[{index}]")
    elif isinstance(value, dict):
        for name, entry in value.items():
            yield from extras(entry, f"{path}.{name}")


def complaint(adapters, body):
    """Why a value has none of these types."""
    errors = []
    for adapter in adapters:
        try:
            adapter.validate_json(json.dumps(body), strict=True)
            return None
        except ValidationError as error:
            errors.append(str(error))
    return "\n".join(errors)


# What the API of OpenAI sends, or sends elsewhere in the same place, and this version of the package has no field for.
NOT_TYPED = {
    "response.store",
    "response.event.response.store",
    "response.event.name",
    "response.event.logprobs[].bytes",
    "response.event.logprobs[].top_logprobs[].bytes",
}


def main():
    given = json.load(sys.stdin)
    problems = []
    for route, kinds in PARAMETERS.items():
        for name in sorted(names(kinds) - set(given["fields"][route])):
            problems.append(f"{route}: the parameter {name} is not in the table")
    parameters = {route: parameter_types(kinds) for route, kinds in PARAMETERS.items()}
    for route, body in given["requests"]:
        unknown = set(body) - names(PARAMETERS[route])
        if unknown:
            problems.append(f"request of {route}: unknown {sorted(unknown)}")
        why = complaint(parameters[route], body)
        if why:
            problems.append(f"request of {route}: {body}: {why}")
    objects = {kind: TypeAdapter(type_) for kind, type_ in OBJECTS.items()}
    for kind, body in given["objects"]:
        try:
            value = objects[kind].validate_json(json.dumps(body), strict=True)
        except ValidationError as error:
            problems.append(f"{kind}: {body}: {error}")
            continue
        unknown = [path for path in extras(value, kind) if re.sub(r"\d+", "", path) not in NOT_TYPED]
        problems.extend(f"{kind}: {path} is no field" for path in unknown)
    json.dump(problems, sys.stdout)


main()
