// OpenAI's Node package: every route of its API that the gateway has, streamed and not.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { baseURL, checkWeather, model, question, schema } from "./weather.mjs";

const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0 });
const hello = [{ role: "user", content: "Say hello." }];
const tools = [
  { type: "function", function: { name: "get_weather", description: "Weather of a city", parameters: schema } },
];
const Review = z.object({ sentiment: z.enum(["good", "bad"]), stars: z.enum(["one", "two"]) });

async function all(stream) {
  const pieces = [];
  for await (const piece of stream) pieces.push(piece);
  return pieces;
}

test("models", async () => {
  const ids = (await client.models.list()).data.map((one) => one.id);
  assert.equal(ids.filter((id) => id === model).length, 1);
  assert.equal((await client.models.retrieve(model)).id, model);
});

test("chat, whole and streamed", async () => {
  const ask = { model, messages: hello, temperature: 0, max_tokens: 16 };
  const whole = await client.chat.completions.create(ask);
  const text = whole.choices[0].message.content;
  const pieces = await all(
    await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } }),
  );
  assert.ok(text);
  assert.equal(pieces.map((piece) => piece.choices[0]?.delta.content ?? "").join(""), text);
  assert.deepEqual(pieces.at(-1).usage, whole.usage);
});

test("a tool is called and its result read", async () => {
  const messages = [{ role: "user", content: question }];
  for (const tool_choice of ["required", { type: "function", function: { name: "get_weather" } }]) {
    const ask = { model, messages, tools, tool_choice, parallel_tool_calls: false, temperature: 0, max_tokens: 60 };
    const { message } = (await client.chat.completions.create(ask)).choices[0];
    const [call] = message.tool_calls;
    checkWeather(JSON.parse(call.function.arguments));
    const streamed = await client.chat.completions.stream(ask).finalMessage();
    assert.equal(streamed.tool_calls[0].function.arguments, call.function.arguments);
    const history = [...messages, message, { role: "tool", tool_call_id: call.id, content: "18 degrees" }];
    const told = await client.chat.completions.create({ model, messages: history, tools, max_tokens: 16 });
    assert.equal(told.choices.length, 1);
  }
});

test("the runner of tools", async () => {
  const called = [];
  const runner = client.chat.completions.runTools(
    {
      model,
      messages: [{ role: "user", content: question }],
      tool_choice: { type: "function", function: { name: "get_weather" } },
      tools: [
        {
          type: "function",
          function: {
            name: "get_weather",
            description: "Weather of a city",
            parameters: schema,
            parse: JSON.parse,
            function: (args) => (called.push(args), "18 degrees"),
          },
        },
      ],
      temperature: 0,
      max_tokens: 60,
    },
    { maxChatCompletions: 2 },
  );
  await runner.done();
  assert.equal(called.length, 1);
  checkWeather(called[0]);
});

test("an answer has a type", async () => {
  const messages = [{ role: "user", content: "Rate: the food was great." }];
  const ask = { model, messages, max_tokens: 60, response_format: zodResponseFormat(Review, "review") };
  Review.parse((await client.chat.completions.parse(ask)).choices[0].message.parsed);
  Review.parse((await client.chat.completions.stream(ask).finalChatCompletion()).choices[0].message.parsed);
  const answer = await client.responses.parse({
    model,
    input: "Rate: the food was bad.",
    max_output_tokens: 60,
    text: { format: zodTextFormat(Review, "review") },
  });
  Review.parse(answer.output_parsed);
});

test("texts", async () => {
  const ask = { model, prompt: "Llamas are", temperature: 0, max_tokens: 8 };
  const { text } = (await client.completions.create(ask)).choices[0];
  const pieces = await all(await client.completions.create({ ...ask, stream: true }));
  assert.ok(text);
  assert.equal(pieces.map((piece) => piece.choices[0]?.text ?? "").join(""), text);
});

test("responses, whole and streamed", async () => {
  const ask = { model, instructions: "Be brief.", input: "Say hello.", temperature: 0, max_output_tokens: 16 };
  const whole = await client.responses.create(ask);
  assert.ok(whole.output_text);
  const stream = client.responses.stream(ask);
  const kinds = (await all(stream)).map((event) => event.type);
  assert.equal(kinds[0], "response.created");
  assert.equal((await stream.finalResponse()).output_text, whole.output_text);
});

test("responses call tools and go on from replayed items", async () => {
  const flat = [{ type: "function", strict: true, ...tools[0].function }];
  const one = { tool_choice: "required", parallel_tool_calls: false, temperature: 0, max_output_tokens: 60 };
  const ask = { model, input: question, tools: flat, ...one };
  const whole = await client.responses.create(ask);
  const call = whole.output.find((item) => item.type === "function_call");
  checkWeather(JSON.parse(call.arguments));
  const streamed = await client.responses.stream(ask).finalResponse();
  assert.equal(streamed.output.find((item) => item.type === "function_call").arguments, call.arguments);
  const input = [
    { role: "user", content: question },
    ...whole.output,
    { type: "function_call_output", call_id: call.call_id, output: "18 degrees" },
  ];
  assert.ok((await client.responses.create({ model, input, tools: flat, max_output_tokens: 16 })).output.length);
});

test("embeddings", async () => {
  const packed = await client.embeddings.create({ model, input: ["A llama hums.", "A train leaves."] });
  const plain = await client.embeddings.create({ model, input: "A llama hums.", encoding_format: "float" });
  assert.equal(packed.data.length, 2);
  assert.equal(packed.data[0].embedding.length, plain.data[0].embedding.length);
  assert.ok(Math.abs(packed.data[0].embedding[0] - plain.data[0].embedding[0]) < 1e-6);
});

test("errors are those of the API", async () => {
  await assert.rejects(client.chat.completions.create({ model: "nobody", messages: hello }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    return error.code === "model_not_found";
  });
  await assert.rejects(client.completions.create({ model, prompt: "x", suffix: "y" }), { param: "suffix", status: 400 });
});
