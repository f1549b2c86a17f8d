// What ajv says to each line of a file: node verdicts.mjs SCHEMA LINES NODE_MODULES; prints 1 for valid, 0 for not.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [schema, lines, modules] = process.argv.slice(2);
const load = createRequire(`${modules}/x.js`);
const Ajv = load("ajv/dist/2020.js").default;
const ajv = new Ajv({ strict: false, allErrors: false });
load("ajv-formats").default(ajv);
const valid = ajv.compile(JSON.parse(readFileSync(schema, "utf8")));
const found = readFileSync(lines, "utf8").split("\n").filter(Boolean);
console.log(found.map((line) => Number(valid(JSON.parse(line)))).join(""));
