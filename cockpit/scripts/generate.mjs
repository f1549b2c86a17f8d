// Types and the payload's validator from schemas/wire.schema.json: compiled ahead of time, so that no eval is needed.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import Ajv from "ajv/dist/2020.js";
import standalone from "ajv/dist/standalone/index.js";
import addFormats from "ajv-formats";
import { compile } from "json-schema-to-typescript";

const schema = JSON.parse(readFileSync(new URL("../../schemas/wire.schema.json", import.meta.url), "utf8"));
const out = new URL("../src/generated/", import.meta.url);
mkdirSync(out, { recursive: true });

// Titles of single fields, and descriptions beside references, would become needless types of their own.
const untitled = (node) => {
  if (Array.isArray(node)) return node.map(untitled);
  if (node === null || typeof node !== "object") return node;
  if (typeof node.$ref === "string") return { $ref: node.$ref };
  return Object.fromEntries(
    Object.entries(node)
      .filter(([key, value]) => !(key === "title" && typeof value === "string"))
      .map(([key, value]) => [key, untitled(value)]),
  );
};
const types = await compile({ ...untitled(schema), title: "Wire", type: "object", additionalProperties: false }, "Wire", {
  additionalProperties: false,
  bannerComment: "// Generated from schemas/wire.schema.json; do not edit: npm run generate",
  unreachableDefinitions: true,
});
writeFileSync(new URL("wire.ts", out), types);

const ajv = new Ajv({ code: { source: true, esm: true }, strict: false, allErrors: false });
addFormats(ajv);
const bare = JSON.parse(JSON.stringify(untitled(schema), (key, value) => (key === "description" && typeof value === "string" ? undefined : value)));
ajv.addSchema({ ...bare, $id: "wire" });
ajv.addSchema({ $id: "cockpit", $ref: "wire#/$defs/Cockpit" });
let code = standalone(ajv, { isCockpit: "cockpit" });
code = code.replace(/require\("ajv-formats\/dist\/formats"\)\.fullFormats(\.[\w-]+|\["[\w-]+"\])/g, "fullFormats$1");
code = code.replace(/require\("ajv\/dist\/runtime\/ucs2length"\)\.default/g, "ucs2length");
const head = `import { fullFormats } from "ajv-formats/dist/formats";\nimport ucs from "ajv/dist/runtime/ucs2length";\nconst ucs2length = ucs.default ?? ucs;\n`;
writeFileSync(new URL("validate.js", out), "// Generated; do not edit: npm run generate\n" + head + code);
writeFileSync(new URL("validate.d.ts", out), `import type { Cockpit } from "./wire";\nexport function isCockpit(data: unknown): data is Cockpit;\n`);
