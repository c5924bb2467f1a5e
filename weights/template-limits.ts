/**
 * What a chat template's program may do: steps, texts, lists. A template comes from a stranger, and the clock alone would
 * make the bound depend on the machine's speed, and would let memory run out first.
 */
import { type Environment, Interpreter } from "@huggingface/jinja";
import { StratumError } from "../errors.ts";

/** Longest text, and longest text that a list or a dictionary could be written as: a million tokens. */
const MAX_OUTPUT = 2 ** 22;
/** Characters that one rendering may make in all, as all of them can be kept. */
const MAX_CHARACTERS = 2 ** 28;
/** Longest list and longest `range`; Jinja's own sandbox draws the line of `range` at the same place. */
const MAX_ITEMS = 100_000;
/** Items that one rendering may put into lists in all: one takes about 50 bytes. */
const MAX_ALL_ITEMS = 2_000_000;
/** The demo template takes 19 steps a message: a thousand messages may cost fifty times as much each. */
const MAX_STEPS = 1_000_000;
/** Namespaces within namespaces that are measured. */
const MAX_NESTING = 500;
const SHORT = 1024;

/** What is used of the library's interpreter: its published types do not resolve under Node's module rules. */
type Evaluate = (statement: unknown, scope: unknown) => RuntimeValue;
interface RuntimeValue {
  readonly type: string;
  readonly value: unknown;
}

/** An interpreter whose programs end. Its runs throw {@link StratumError} `template/too-expensive`. */
export function boundedInterpreter(scope: Environment): Interpreter {
  const interpreter = new Interpreter(scope);
  const evaluate: Evaluate = interpreter.evaluate.bind(interpreter);
  const check = sizeBound();
  let steps = 0;
  const counted: Evaluate = (statement, environment) => {
    if (++steps > MAX_STEPS) throw tooExpensive(`took more than ${MAX_STEPS} steps`);
    const result = evaluate(statement, environment);
    check(result);
    return result;
  };
  interpreter.evaluate = counted;
  return interpreter;
}

/**
 * What bounds the values of one rendering: each by itself, what it would be as text (a list of a list of ... is small and
 * writes itself as a text of any length), and all of them together.
 */
function sizeBound(): (value: RuntimeValue) => void {
  let [characters, items, depth] = [0, 0, 0];
  const counted = new WeakSet<RuntimeValue>();
  // Values are immutable but for namespaces; what holds one of those is measured again each time.
  const sizes = new WeakMap<RuntimeValue, number>();

  /** Characters of a value's text, about. */
  function sizeOf(value: RuntimeValue): number {
    const inside = value.value;
    if (typeof inside === "string") return inside.length;
    if (!Array.isArray(inside) && !(inside instanceof Map)) return 8;
    return sizes.get(value) ?? sizeOfItems(value, inside);
  }

  function sizeOfItems(value: RuntimeValue, inside: readonly RuntimeValue[] | ReadonlyMap<string, RuntimeValue>) {
    const count = "length" in inside ? inside.length : inside.size;
    if (count > MAX_ITEMS) throw tooExpensive(`built a list of more than ${MAX_ITEMS} items`);
    if (!counted.has(value)) {
      counted.add(value);
      items += count;
      if (items > MAX_ALL_ITEMS) throw tooExpensive(`put more than ${MAX_ALL_ITEMS} items into lists`);
    }
    // A namespace can hold itself: its text has no end, as the library's own recursion will find.
    if (depth === MAX_NESTING) return 0;
    depth++;
    let size = 0;
    let fixed = value.type !== "NamespaceValue";
    for (const [key, item] of inside.entries()) {
      size += sizeOf(item) + 2 + (typeof key === "string" ? key.length : 0);
      if (size > MAX_OUTPUT) throw tooExpensive(`built a list that is a text of more than ${MAX_OUTPUT} characters`);
      fixed &&= typeof item.value !== "object" || item.value === null || sizes.has(item);
    }
    depth--;
    if (fixed) sizes.set(value, size);
    return size;
  }

  return (value) => {
    const size = sizeOf(value);
    if (typeof value.value !== "string") return;
    if (size > MAX_OUTPUT) throw tooExpensive(`built a text of more than ${MAX_OUTPUT} characters`);
    // Short ones cost no more than the step that made them.
    if (size < SHORT || counted.has(value)) return;
    counted.add(value);
    characters += size;
    if (characters > MAX_CHARACTERS) throw tooExpensive(`built more than ${MAX_CHARACTERS} characters of text`);
  };
}

/** Jinja's `range`, of so many items at most. @throws {StratumError} `template/too-expensive` */
export function boundedRange(first: unknown, second?: unknown, step: unknown = 1): number[] {
  const [start, stop] = second === undefined ? [0, first] : [first, second];
  if (!Number.isInteger(start) || !Number.isInteger(stop) || !Number.isInteger(step) || step === 0) {
    throw new Error("range() takes integers and a step that is not zero");
  }
  const by = Number(step);
  const from = Number(start);
  const count = Math.max(0, Math.ceil((Number(stop) - from) / by));
  if (count > MAX_ITEMS) throw tooExpensive(`asked for a range of ${count} items, at most ${MAX_ITEMS} are given`);
  return Array.from({ length: count }, (_, i) => from + i * by);
}

/** `template/too-expensive` */
export function tooExpensive(what: string): StratumError {
  return new StratumError(
    "template/too-expensive",
    `the chat template ${what}`,
    "shorten the conversation; if it is short, do not trust this template",
  );
}
