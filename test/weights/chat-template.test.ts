import { existsSync, readFileSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { assistantEnd, compileChatTemplate, loadChatTemplate, type Message } from "../../weights/chat-template.ts";
import { loadTokenizer, type Tokenizer } from "../../weights/tokenizer.ts";
import { failing } from "../support/failing.ts";

const user = (content: string) => ({ role: "user", content });
const assistant = (content: string) => ({ role: "assistant", content });
const render = (source: string, messages: readonly Message[] = [user("hi")], date?: string) =>
  compileChatTemplate(source, { bos_token: "<s>", eos_token: "</s>" }).render(messages, {
    addGenerationPrompt: true,
    date,
  });

const CHATML = `{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
`;

describe("where the template comes from", () => {
  let dir: string;
  beforeEach(async () => {
    dir = await mkdtemp(join(tmpdir(), "stratum-template-"));
  });
  afterEach(() => rm(dir, { recursive: true, force: true }));
  const write = (name: string, value: unknown) =>
    writeFile(join(dir, name), typeof value === "string" ? value : JSON.stringify(value));
  const text = async () =>
    (await loadChatTemplate(dir))?.render([user("x")], { addGenerationPrompt: true }).text ?? null;

  it("the .jinja file, then tokenizer_config.json, then chat_template.json, else none", async () => {
    expect(await text()).toBeNull();
    await write("chat_template.json", { chat_template: "third {{ bos_token }}" });
    expect(await text()).toBe("third ");
    await write("tokenizer_config.json", { chat_template: null, bos_token: { content: "<s>" } });
    expect(await text()).toBe("third <s>");
    await write("tokenizer_config.json", { chat_template: "second {{ bos_token }}", bos_token: "<s>" });
    expect(await text()).toBe("second <s>");
    await write("chat_template.jinja", "first {{ bos_token }}");
    expect(await text()).toBe("first <s>");
  });

  it("takes the template called default from a list, and asks where there is none", async () => {
    const named = (name: string) => ({ name, template: name });
    await write("tokenizer_config.json", { chat_template: [named("tool_use"), named("default")] });
    expect(await text()).toBe("default");
    await write("tokenizer_config.json", { chat_template: [named("tool_use"), named("rag")] });
    await expect(loadChatTemplate(dir)).rejects.toThrowError(failing("template/no-default", /tool_use, rag/));
    await write("tokenizer_config.json", { chat_template: 7 });
    await expect(loadChatTemplate(dir)).rejects.toThrowError(failing("template/bad-json"));
  });

  it("refuses bytes that are not UTF-8 and a source past the bound", async () => {
    await writeFile(join(dir, "chat_template.jinja"), Uint8Array.of(0xff));
    await expect(loadChatTemplate(dir)).rejects.toThrowError(failing("template/bad-text"));
    await write("chat_template.jinja", "x".repeat(5 * 2 ** 20));
    await expect(loadChatTemplate(dir)).rejects.toThrowError(failing("template/too-large"));
    expect(() => compileChatTemplate("x".repeat(2 ** 20 + 1))).toThrowError(failing("template/too-large"));
  });
});

describe("render", () => {
  it("trims blocks as transformers does, whatever ends the lines", () => {
    const expected = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
    expect(render(CHATML).text).toBe(expected);
    expect(render(CHATML.replaceAll("\n", "\r\n").replaceAll("\\r", "")).text).toBe(expected);
    expect(render("{% if true %}\n  a\n  {% endif %}\nb\n").text).toBe("  a\nb");
    expect(render("a\r\nb\r").text).toBe("a\nb");
  });

  it("gives special tokens, absent tools and documents, and the messages' own fields", () => {
    expect(render("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}").text).toBe("<s>hi</s>");
    expect(render("{{ tools is none }}{{ documents is none }}{{ pad_token is defined }}").text).toBe("truetruefalse");
    expect(render("{{ messages[0].name }}", [{ ...user("hi"), name: "Ada" }]).text).toBe("Ada");
    expect(render("{{ add_generation_prompt }}").text).toBe("true");
  });

  it("writes JSON as json.dumps(ensure_ascii=False) does", () => {
    expect(render("{{ messages | tojson }}", [user('é <b> "q"')]).text).toBe(
      '[{"role": "user", "content": "é <b> \\"q\\""}]',
    );
  });

  it("selects by an attribute that is not there", () => {
    const messages = [user("plain"), { ...user("call"), tool_calls: [] }];
    const chosen = (filter: string) =>
      render(`{% if true %}{% for m in messages | ${filter} %}{{ m.content }} {% endfor %}{% endif %}`, messages).text;
    expect(chosen("selectattr('tool_calls', 'undefined')")).toBe("plain ");
    expect(chosen("rejectattr('tool_calls', 'undefined')")).toBe("call ");
    expect(chosen("selectattr('tool_calls', 'defined')")).toBe("call ");
    expect(chosen("rejectattr('role', 'equalto', 'tool') | selectattr('tool_calls', 'undefined')")).toBe("plain ");
  });

  it("knows loop controls and namespaces", () => {
    const source =
      "{% set ns = namespace(n=0) %}{% for i in range(9, 0, -2) %}{% if i == 3 %}{% break %}{% endif %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}";
    expect(render(source).text).toBe("21");
    expect(render("{{ range(3) }}{{ range(2, 2) }}{{ range(1, 4) }}").text).toBe("[0, 1, 2][][1, 2, 3]");
  });

  it("passes the template's own words on when it refuses", () => {
    const source =
      "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}ok";
    expect(render(source).text).toBe("ok");
    expect(() => render(source, [{ role: "system", content: "be good" }])).toThrowError(
      failing("template/failed", /System role not supported/),
    );
    expect(() => render("{{ undefined_thing.a + 'x' }}")).toThrowError(failing("template/failed"));
    expect(() => render("{% if %}")).toThrowError(failing("template/bad-syntax"));
  });
});

describe("the clock", () => {
  it("is fixed, can be set, and is noticed", () => {
    const source = "Today: {{ strftime_now('%d %b %Y') }}";
    expect(render(source)).toEqual({ text: "Today: 01 Jan 2026", usedClock: true });
    expect(render(source, [user("hi")], "2024-07-26").text).toBe("Today: 26 Jul 2024");
    expect(render("{% if strftime_now is defined %}no{% endif %}")).toEqual({ text: "no", usedClock: false });
  });

  it("formats as C does, in English", () => {
    const format = (codes: string, date: string) => render(`{{ strftime_now('${codes}') }}`, [user("hi")], date).text;
    expect(format("%A %a %B %b %d %-d %e %m %-m %Y %y %j", "2024-02-09")).toBe(
      "Friday Fri February Feb 09 9  9 02 2 2024 24 040",
    );
    expect(format("%F %H:%M:%S %I %p %T %u %w %%", "2023-12-31")).toBe("2023-12-31 00:00:00 12 AM 00:00:00 7 0 %");
    expect(format("%Q %k", "2023-12-31")).toBe("%Q %k");
    expect(format("%c|%x|%X", "2024-02-09")).toBe("Fri Feb  9 00:00:00 2024|02/09/24|00:00:00");
  });

  it.each(["2024-02-30", "yesterday", "2024-2-3", "2024-01-01T00:00:00Z", ""])("refuses the day %j", (date) => {
    expect(() => render("x", [user("hi")], date)).toThrowError(failing("template/bad-date"));
  });
});

describe("a template that would run away", () => {
  /** With a clock that no bound has to race, however busy the machine is. */
  const patiently = (source: string) =>
    compileChatTemplate(source, {}, 100_000).render([user("hi")], { addGenerationPrompt: true });

  it.each([
    ["a long range", "{% for i in range(1000000000) %}{% endfor %}", /range of 1000000000/],
    ["steps", "{% for i in range(3000) %}{% for j in range(99) %}{{ i + j * i }}{% endfor %}{% endfor %}", /steps/],
    [
      "text",
      "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
      /text/,
    ],
    [
      "a list",
      "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
      /list/,
    ],
  ])("is stopped by its bound: %s", (_what, source, message) => {
    expect(() => patiently(source)).toThrowError(failing("template/too-expensive", message));
  });

  it.each([
    [
      "a list that is small and would be a text without end",
      "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
      /list that is a text of more than 4194304 characters/,
    ],
    [
      "the same through a dictionary's keys",
      "{% set ns = namespace(k='ab', d=0, l=[]) %}{% for i in range(16) %}{% set ns.k = ns.k ~ ns.k %}{% endfor %}" +
        "{% set ns.d = {ns.k: 1} %}{% for i in range(99) %}{% set ns.l = ns.l + [ns.d] %}{% endfor %}",
      /list that is a text of more than 4194304 characters/,
    ],
    [
      "the same through a namespace, changed after it was put into a list",
      "{% set ns = namespace(x='ab', l=[]) %}{% for i in range(99) %}{% set ns.l = ns.l + [1] %}{% endfor %}" +
        "{% set inner = namespace(x='ab') %}{% set many = [inner, inner, inner, inner, inner] %}" +
        "{% for i in range(20) %}{% set inner.x = inner.x ~ inner.x %}{% endfor %}{{ many | tojson }}",
      /characters/,
    ],
    [
      "many texts, each within the bound",
      "{% set ns = namespace(s='ab', l=[]) %}{% for i in range(20) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}" +
        "{% for i in range(1000) %}{% set t = ns.s | upper %}{% endfor %}",
      /characters of text/,
    ],
    [
      "many lists, each within the bound",
      "{% for i in range(1000) %}{% set l = range(50000) %}{% endfor %}",
      /items into lists/,
    ],
  ])("is stopped by its bound before memory runs out: %s", (_what, source, message) => {
    const before = process.resourceUsage().maxRSS;
    expect(() => patiently(source)).toThrowError(failing("template/too-expensive", message));
    expect(process.resourceUsage().maxRSS - before).toBeLessThan(700 * 1024);
  });

  it("is stopped by the clock where no step ends, and the next one runs", () => {
    const idle = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}";
    const template = compileChatTemplate(`{% set r = range(99999) %}${idle.replaceAll("range(99999)", "r")}`, {}, 200);
    expect(() => template.render([user("hi")], { addGenerationPrompt: true })).toThrowError(
      failing("template/too-expensive", /200 ms/),
    );
    expect(() => compileChatTemplate(`${" ".repeat(2 ** 19)}x`, {}, 200)).toThrowError(/200 ms/);
    expect(render("ok").text).toBe("ok");
  });

  it("fails as an error when it nests too deep or recurses for ever", () => {
    expect(() => compileChatTemplate(`{{ ${"(".repeat(200_000)} }}`)).toThrowError(failing("template/bad-syntax"));
    expect(() => render("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")).toThrowError(failing("template/failed"));
    const self = "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns | tojson }}";
    expect(() => render(self)).toThrowError(failing("template/failed", /stack/));
    expect(() => render("{{ range(0, 5, 0) }}")).toThrowError(failing("template/failed", /step/));
    expect(() => render("{{ range(0.5) }}")).toThrowError(failing("template/failed", /integers/));
  });
});

describe("assistantEnd", () => {
  const tokenizer = {
    specialTokens: [
      { id: 2, content: "</s>" },
      { id: 3, content: "<|im" },
      { id: 4, content: "<|im_end|>" },
    ],
  } as unknown as Tokenizer;
  const end = (source: string) => assistantEnd(compileChatTemplate(source, { eos_token: "</s>" }), tokenizer);

  it("is the first special token after the content, the longest where several start", () => {
    expect(end(CHATML)).toEqual({ id: 4, content: "<|im_end|>" });
    expect(end("{% for m in messages %}{{ m.content | trim }} {{ eos_token }}<|im_end|>{% endfor %}").id).toBe(2);
  });

  it("is an error where none follows or the content is not written", () => {
    expect(() => end("</s>{% for m in messages %}{{ m.content }}\n{% endfor %}done")).toThrowError(
      failing("template/no-end-token", /done/),
    );
    expect(() => end("{{ messages[0].content }}</s>")).toThrowError(failing("template/no-end-token"));
  });
});

const DEMO = new URL("../../../shared/models/demo", import.meta.url).pathname;
describe.skipIf(!existsSync(DEMO))("../shared/models/demo (skipped where that folder is absent)", () => {
  it("renders as transformers does, and ends an assistant's turn with <|end|>", async () => {
    const template = (await loadChatTemplate(DEMO))!;
    const golden = JSON.parse(readFileSync(join(DEMO, "golden.json"), "utf8"));
    const chats = golden.sequences.filter((sequence: { messages?: unknown }) => sequence.messages !== undefined);
    expect(chats.length).toBeGreaterThan(0);
    for (const { messages, response, templated } of chats) {
      const { text, usedClock } = template.render(messages, { addGenerationPrompt: true });
      expect(text + (response ?? "")).toBe(templated);
      expect(usedClock).toBe(false);
    }
    expect(template.render([user("a"), assistant("b")], { addGenerationPrompt: false }).text).toMatch(/b<\|end\|>$/);
    expect(assistantEnd(template, await loadTokenizer(DEMO))).toEqual({ id: 5, content: "<|end|>" });
  });
});
