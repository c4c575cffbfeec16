// A tool whose arguments can be checked; the small model of the tests is held to its schema by guided decoding.
import assert from "node:assert/strict";

export const address = process.env.LLAMERO_URL.replace(/\/$/, "");
export const baseURL = `${address}/v1`;
export const model = process.env.LLAMERO_MODEL;

export const cities = ["Lima", "Cusco"];
export const units = ["celsius", "fahrenheit"];
export const question = "What is the weather in Lima, in celsius?";

export const schema = {
  type: "object",
  properties: { city: { type: "string", enum: cities }, unit: { $ref: "#/$defs/unit" } },
  required: ["city", "unit"],
  additionalProperties: false,
  $defs: { unit: { type: "string", enum: units } },
};

export function checkWeather(args) {
  assert.deepEqual(Object.keys(args).sort(), ["city", "unit"]);
  assert.ok(cities.includes(args.city) && units.includes(args.unit), JSON.stringify(args));
}
