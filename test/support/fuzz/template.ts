/** Chat templates: programs made of everything that the language has, and published ones, damaged. */
import { readdirSync, readFileSync } from "node:fs";
import fc from "fast-check";
import { compileChatTemplate } from "../../../weights/chat-template.ts";
import { type FuzzTarget, fuzzTarget, outcomeOf } from "./harness.ts";
import { damaged } from "./mutations.ts";

const MESSAGES = [
  { role: "system", content: "Be kind." },
  { role: "user", content: "Why is it so? \u00e9\n\n  two" },
  {
    role: "assistant",
    content: "",
    tool_calls: [{ type: "function", function: { name: "f", arguments: { a: [1, { b: null }] } } }],
  },
  { role: "user", content: "x".repeat(300) },
];

const name = fc.constantFrom(
  "messages",
  "m",
  "x",
  "y",
  "ns",
  "loop",
  "bos_token",
  "f",
  "range",
  "none",
  "undefined",
  "documents",
);
const attribute = fc.constantFrom(
  "role",
  "content",
  "x",
  "index0",
  "length",
  "items",
  "keys",
  "split",
  "replace",
  "upper",
  "strip",
  "get",
  "values",
  "__proto__",
  "constructor",
);
const filter = fc.constantFrom(
  "trim",
  "upper",
  "lower",
  "title",
  "tojson",
  "tojson(indent=4)",
  "tojson(indent=100000000)",
  "length",
  "list",
  "first",
  "last",
  "reverse",
  "sort",
  "unique",
  "join",
  "join(', ')",
  "join(y)",
  "string",
  "int",
  "float",
  "abs",
  "items",
  "dictsort",
  "safe",
  "indent",
  "indent(9)",
  "indent(y)",
  "replace('', y)",
  "replace('a', y)",
  "replace(x, y)",
  "default(y)",
  "selectattr('role', 'equalto', 'user')",
  "rejectattr('x')",
  "map(attribute='content')",
);
const number = fc.constantFrom(
  "0",
  "1",
  "2",
  "-1",
  "7",
  "1000",
  "99999",
  "1000000000",
  "9007199254740993",
  "0.5",
  "1e400",
);

const { expression } = fc.letrec<{ expression: string; atom: string }>((tie) => ({
  atom: fc.oneof(
    name,
    number,
    fc.constantFrom(
      "'a'",
      "'ab'",
      "''",
      "'\\n'",
      "[1, 2]",
      "[]",
      "{}",
      "{'a': 1, 'b': [2]}",
      "(1, 2)",
      "true",
      "'%Y %B %c'",
    ),
    tie("expression").map((inner) => `(${inner})`),
  ),
  expression: fc.oneof(
    { maxDepth: 3, withCrossShrink: true },
    tie("atom"),
    fc
      .tuple(
        tie("expression"),
        fc.constantFrom("+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "in", "not in", "and", "or"),
        tie("expression"),
      )
      .map(([a, op, b]) => `${a} ${op} ${b}`),
    fc.tuple(tie("expression"), filter).map(([a, by]) => `${a} | ${by}`),
    fc.tuple(tie("atom"), attribute).map(([a, b]) => `${a}.${b}`),
    fc.tuple(tie("atom"), tie("expression")).map(([a, b]) => `${a}[${b}]`),
    fc.tuple(tie("atom"), number, number).map(([a, from, to]) => `${a}[${from}:${to}:${from}]`),
    fc.tuple(tie("atom"), fc.array(tie("expression"), { maxLength: 3 })).map(([f, args]) => `${f}(${args.join(", ")})`),
    fc.tuple(tie("atom"), attribute, tie("expression")).map(([a, f, b]) => `${a}.${f}(${b})`),
    fc.tuple(tie("expression"), tie("expression"), tie("expression")).map(([a, b, c]) => `${a} if ${b} else ${c}`),
    fc.array(tie("expression"), { maxLength: 3 }).map((items) => `[${items.join(", ")}]`),
    fc
      .tuple(
        tie("expression"),
        fc.constantFrom("defined", "none", "string", "mapping", "odd", "equalto(1)", "not iterable"),
      )
      .map(([a, test]) => `${a} is ${test}`),
    number.map((n) => `range(${n})`),
    tie("expression").map((e) => `strftime_now(${e})`),
    tie("expression").map((e) => `raise_exception(${e})`),
  ),
}));

const { program } = fc.letrec<{ program: string; statement: string }>((tie) => ({
  program: fc.array(tie("statement"), { maxLength: 4 }).map((statements) => statements.join("")),
  statement: fc.oneof(
    { maxDepth: 4, withCrossShrink: true },
    fc.constantFrom(
      "text",
      "\n  ",
      "{{",
      "{%- ",
      "{# c #}",
      "{% raw %}{{ x }}{% endraw %}",
      "{% break %}",
      "{% continue %}",
    ),
    expression.map((e) => `{{ ${e} }}`),
    fc.tuple(fc.constantFrom("x", "y", "ns.x", "ns.y", "a, b"), expression).map(([to, e]) => `{% set ${to} = ${e} %}`),
    fc.constantFrom(
      "{% set ns = namespace(x='ab', y=[1]) %}",
      "{% set ns.x = ns.x ~ ns.x %}",
      "{% set ns.y = ns.y + ns.y %}",
      "{% set ns.y = [ns.y, ns.y] %}",
      "{% set ns.y = {'a': ns.y, 'b': ns.y} %}",
      "{% set ns.x = ns %}",
      "{% set x = x ~ x %}",
      "{% set y = ns.x | upper %}",
    ),
    fc.tuple(tie("program"), expression).map(([body, e]) => `{% if ${e} %}${body}{% else %}e{% endif %}`),
    fc
      .tuple(fc.constantFrom("m", "x", "k, v"), expression, tie("program"))
      .map(([v, e, body]) => `{% for ${v} in ${e} %}${body}{% endfor %}`),
    fc.tuple(number, tie("program")).map(([n, body]) => `{% for i in range(${n}) %}${body}{% endfor %}`),
    fc.tuple(tie("program"), expression).map(([body, e]) => `{% macro f(a, b=1) %}${body}{% endmacro %}{{ f(${e}) }}`),
    tie("program").map((body) => `{% call f(1) %}${body}{% endcall %}`),
    fc.tuple(filter, tie("program")).map(([by, body]) => `{% filter ${by} %}${body}{% endfilter %}`),
    tie("program").map((body) => `{% set x %}${body}{% endset %}`),
  ),
}));

const GOLDEN = new URL("../../golden/tokenizers/", import.meta.url);
const PUBLISHED = readdirSync(GOLDEN)
  .filter((file) => file.endsWith(".json"))
  .flatMap(
    (file) => (JSON.parse(readFileSync(new URL(file, GOLDEN), "utf8")) as { template?: string | null }).template ?? [],
  );
const DEMO = JSON.parse(
  readFileSync(new URL("../../../weights/demo/tokenizer_config.json", import.meta.url), "utf8"),
) as { chat_template: string };
const SEEDS = [DEMO.chat_template, ...PUBLISHED].filter((source) => typeof source === "string");

/** The clock of one: far less than a user's, so that many can run. */
const MILLISECONDS = 300;

function render(source: string): void {
  const template = compileChatTemplate(source, { bos_token: "<s>", eos_token: "</s>" }, MILLISECONDS);
  const { text } = template.render(MESSAGES, { addGenerationPrompt: true });
  if (text.length > 2 ** 22) throw new Error(`a text of ${text.length} characters`);
}

export const TEMPLATE_TARGETS: readonly FuzzTarget[] = [
  fuzzTarget(
    "chat templates: programs of everything the language has",
    1000,
    ["ok", "template/bad-syntax", "template/failed", "template/too-expensive"],
    program,
    (source) => outcomeOf(() => render(source)),
  ),
  fuzzTarget(
    "chat templates: published ones, damaged",
    1500,
    ["ok", "template/bad-syntax", "template/failed"],
    damaged(SEEDS.map((source) => new TextEncoder().encode(source))).map((bytes) =>
      Buffer.from(bytes).toString("utf8"),
    ),
    (source) => outcomeOf(() => render(source)),
  ),
];
