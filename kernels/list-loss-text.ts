/** The WGSL bodies of listLoss: for each loss, what the lanes of one list's workgroup do with `row` and `other`. */
import type { LossName } from "./list-loss.ts";
import { type LaneSum, laneSum } from "./reduce.ts";

/** What a loss asks of the kernel around it. */
export interface LossText {
  readonly lanes: number;
  /** WGSL ahead of the entry point. */
  readonly declarations: string;
  /** Declares `loss`, the same in all lanes, and writes the gradient of every candidate. */
  readonly body: string;
  /** The WGSL type of what a candidate leaves for the others of its list. */
  readonly aux?: string;
}

/** Below every score; WGSL has no infinity. */
const LOWEST = "-3.0e38";

/**
 * `e` is exp(-|x|): exp of a positive number occurs nowhere. A gain of 0 is stated, since exp2(0) may miss 1 by some ULP
 * and the ideal DCG would not be 0.
 */
const FUNCTIONS = `fn score(row: u32) -> f32 { return cosines[row].x; }
fn log1p(e: f32) -> f32 { return select(log(1.0 + e), e * (1.0 - e * (0.5 - e / 3.0)), e < 0.01); }
fn softplus(x: f32, e: f32) -> f32 { return max(x, 0.0) + log1p(e); }
fn sigmoid(x: f32, e: f32) -> f32 { return select(e, 1.0, x >= 0.0) / (1.0 + e); }
fn gainOf(y: f32) -> f32 { return select(0.0, exp2(y) - 1.0, y > 0.0); }`;

/** The texts of the losses for a workgroup of one subgroup of that size, or of 64 lanes (0). */
export function lossText(loss: LossName, subgroup: number): LossText {
  const { lanes } = laneSum(subgroup, "f32", "");
  /** Candidates dealt out to the lanes. */
  const own = (body: string) => `for (var row = first; row < end; row += ${lanes}u) {${body}}`;
  /** All candidates, in every lane: the same order whatever the number of lanes. */
  const others = (body: string) => `for (var other = begin; other < end; other++) {${body}}`;
  const sum = (type: string, value: string, name: string) => laneSum(subgroup, type, value, name);
  const text = TEXTS[loss]({ own, others, sum, lanes, subgroup });
  return { ...text, lanes, declarations: `${FUNCTIONS}\n${text.declarations}` };
}

interface Pieces {
  readonly own: (body: string) => string;
  readonly others: (body: string) => string;
  readonly sum: (type: string, value: string, name: string) => LaneSum;
  readonly lanes: number;
  readonly subgroup: number;
}

type Body = Omit<LossText, "lanes">;

/** WGSL that declares `top`, the largest of the lanes' `highest`; shares `partial` with sums of vec2<f32>. */
function topText({ lanes, subgroup }: Pieces): string {
  if (subgroup > 0) return "let top = subgroupMax(highest);";
  return `partial[lane] = highest;
  for (var half = ${lanes / 2}u; half > 0u; half >>= 1u) {
    workgroupBarrier();
    if (lane < half) { partial[lane] = max(partial[lane], partial[lane + half]); }
  }
  workgroupBarrier();
  let top = partial[0];
  workgroupBarrier();`;
}

/** Cross-entropy with a target: KL(q || p) for kl, whose target may hold zeros; H(q, p) for listnet. */
function softmaxText(pieces: Pieces, target: { mass: string; term: string }): Body {
  const { own, sum } = pieces;
  const sums = sum("vec2<f32>", "sums", "total");
  const losses = sum("vec2<f32>", "vec2<f32>(part)", "whole");
  return {
    declarations: sums.declarations,
    body: `var highest = vec2<f32>(${LOWEST});
  ${own(" highest = max(highest, vec2<f32>(score(row), labels[row])); ")}
  ${topText(pieces)}
  var sums = vec2<f32>();
  ${own(` sums += vec2<f32>(exp((score(row) - top.x) * slope), ${target.mass}); `)}
  ${sums.text}
  // A list without a target has no loss.
  let live = total.y > 0.0;
  let logSum = log(total.x);
  let share = 1.0 / select(1.0, total.y, live);
  var part = 0.0;
  ${own(`
    let logP = (score(row) - top.x) * slope - logSum;
    let q = ${target.mass} * share;
    part += select(0.0, ${target.term}, live);
    grads[row] = scale * select(0.0, exp(logP) - q, live);
  `)}
  ${losses.text}
  let loss = whole.x;`,
  };
}

/** With U and S the unsafe and the safe candidates' lse: -log P(safe) = softplus(U - S), whatever underflows. */
function anyPositiveText(pieces: Pieces): Body {
  const { own, sum } = pieces;
  const sums = sum("vec2<f32>", "sums", "total");
  return {
    declarations: sums.declarations,
    body: `// x: of the safe candidates, y: of the others.
  var highest = vec2<f32>(${LOWEST});
  ${own(`
    if (labels[row] > 0.5) { highest.x = max(highest.x, score(row)); }
    else { highest.y = max(highest.y, score(row)); }
  `)}
  ${topText(pieces)}
  var sums = vec2<f32>();
  ${own(`
    if (labels[row] > 0.5) { sums.x += exp((score(row) - top.x) * slope); }
    else { sums.y += exp((score(row) - top.y) * slope); }
  `)}
  ${sums.text}
  // Only safe candidates: probability 1. None: a probability that no score changes, counted as no loss.
  var loss = 0.0;
  var unsafeP = 0.0;
  if (total.x > 0.0 && total.y > 0.0) {
    let x = (top.y - top.x) * slope + log(total.y / total.x);
    let e = exp(-abs(x));
    loss = softplus(x, e);
    unsafeP = sigmoid(x, e);
  }
  ${own(`
    let safe = labels[row] > 0.5;
    let p = exp((score(row) - select(top.y, top.x, safe)) * slope) / select(total.y, total.x, safe);
    grads[row] = scale * unsafeP * select(p, -p, safe);
  `)}`,
  };
}

function bceText({ own, sum }: Pieces): Body {
  const sums = sum("f32", "part", "whole");
  return {
    declarations: sums.declarations,
    body: `let share = 1.0 / max(f32(end - begin), 1.0);
  var part = 0.0;
  ${own(`
    let z = score(row) * slope;
    let e = exp(-abs(z));
    let y = labels[row];
    // softplus(z) - y z, without the difference of two large numbers.
    part += max(z, 0.0) * (1.0 - y) - min(z, 0.0) * y + log1p(e);
    grads[row] = scale * share * (sigmoid(z, e) - y);
  `)}
  ${sums.text}
  let loss = whole * share;`,
  };
}

/** Every pair is seen from both sides: the sums are doubled, and so is the count. */
function ranknetText({ own, others, sum }: Pieces): Body {
  const sums = sum("vec2<f32>", "part", "whole");
  return {
    declarations: sums.declarations,
    body: `// x: losses, y: pairs.
  var part = vec2<f32>();
  ${own(`
    let s = score(row);
    let y = labels[row];
    var slopes = 0.0;
    // Summed by row first: one accumulator for a lane's thousands of pairs would round too often.
    var mine = vec2<f32>();
    ${others(`
      let side = sign(y - labels[other]);
      if (side != 0.0) {
        let x = side * (score(other) - s) * slope;
        let e = exp(-abs(x));
        mine += vec2<f32>(softplus(x, e), 1.0);
        slopes -= side * sigmoid(x, e);
      }
    `)}
    part += mine;
    if (counts) { grads[row] = slopes; }
  `)}
  ${sums.text}
  let share = 1.0 / max(whole.y, 1.0);
  ${own(" if (counts) { grads[row] *= 2.0 * share * scale; } ")}
  let loss = whole.x * share;`,
  };
}

/** aux: the maximum and the sum of exponentials above it, over the candidates from this one on in the label's order. */
function listmleText({ own, others, sum }: Pieces): Body {
  const sums = sum("f32", "part", "whole");
  return {
    declarations: sums.declarations,
    aux: "vec2<f32>",
    body: `var part = 0.0;
  ${own(`
    let s = score(row);
    let y = labels[row];
    var rest = vec2<f32>(s, 1.0);
    ${others(`
      let otherY = labels[other];
      if (otherY < y || (otherY == y && other > row)) {
        let otherS = score(other);
        let e = exp(-abs(otherS - rest.x) * slope);
        rest = select(vec2<f32>(rest.x, rest.y + e), vec2<f32>(otherS, fma(rest.y, e, 1.0)), otherS > rest.x);
      }
    `)}
    aux[row] = rest;
    part += log(rest.y) + (rest.x - s) * slope;
  `)}
  ${sums.text}
  storageBarrier();
  ${own(`
    let s = score(row);
    let y = labels[row];
    var slopes = -1.0;
    ${others(`
      let otherY = labels[other];
      if (otherY > y || (otherY == y && other <= row)) {
        let rest = aux[other];
        slopes += exp((s - rest.x) * slope) / rest.y;
      }
    `)}
    grads[row] = scale * slopes;
  `)}
  let loss = whole;`,
  };
}

/** aux: gain and discount at the present rank. */
function lambdalossText({ own, others, sum }: Pieces): Body {
  const sums = sum("f32", "part", "ideal");
  const losses = sum("f32", "part", "whole");
  return {
    declarations: sums.declarations,
    aux: "vec2<f32>",
    body: `var part = 0.0;
  ${own(`
    let s = score(row);
    let y = labels[row];
    var rank = 1.0;
    var idealRank = 1.0;
    ${others(`
      let otherS = score(other);
      let otherY = labels[other];
      rank += select(0.0, 1.0, otherS > s || (otherS == s && other < row));
      idealRank += select(0.0, 1.0, otherY > y || (otherY == y && other < row));
    `)}
    let gain = gainOf(y);
    aux[row] = vec2<f32>(gain, 1.0 / log2(1.0 + rank));
    part += gain / log2(1.0 + idealRank);
  `)}
  ${sums.text}
  storageBarrier();
  let share = select(0.0, 1.0 / ideal, ideal > 0.0);
  part = 0.0;
  ${own(`
    let s = score(row);
    let at = aux[row];
    var slopes = 0.0;
    var mine = 0.0;
    ${others(`
      let step = at - aux[other];
      if (step.x != 0.0) {
        let side = sign(step.x);
        let weight = abs(step.x * step.y) * share;
        let x = side * (score(other) - s) * slope;
        let e = exp(-abs(x));
        mine += weight * softplus(x, e);
        slopes -= side * weight * sigmoid(x, e);
      }
    `)}
    // Every pair is seen from both sides.
    part += 0.5 * mine;
    grads[row] = scale * slopes;
  `)}
  ${losses.text}
  let loss = whole;`,
  };
}

/** aux: what the loss, times the ideal DCG, grows by with this candidate's approximate rank. */
function approxndcgText({ own, others, sum }: Pieces): Body {
  const sums = sum("vec2<f32>", "part", "whole");
  return {
    declarations: sums.declarations,
    aux: "f32",
    body: `// x: ideal minus approximate DCG, y: ideal DCG.
  var part = vec2<f32>();
  ${own(`
    let s = score(row);
    let y = labels[row];
    var rank = 1.0;
    var idealRank = 1.0;
    ${others(`
      let otherY = labels[other];
      let x = (score(other) - s) * slope;
      rank += select(0.0, sigmoid(x, exp(-abs(x))), other != row);
      idealRank += select(0.0, 1.0, otherY > y || (otherY == y && other < row));
    `)}
    let gain = gainOf(y);
    let logRank = log2(1.0 + rank);
    let discount = 1.0 / log2(1.0 + idealRank);
    part += gain * vec2<f32>(discount - 1.0 / logRank, discount);
    aux[row] = gain * ${Math.LOG2E} / ((1.0 + rank) * logRank * logRank);
  `)}
  ${sums.text}
  storageBarrier();
  let share = select(0.0, 1.0 / whole.y, whole.y > 0.0);
  ${own(`
    let s = score(row);
    let rise = aux[row];
    var slopes = 0.0;
    ${others(`
      let e = exp(-abs(score(other) - s) * slope);
      slopes += (aux[other] - rise) * e / ((1.0 + e) * (1.0 + e));
    `)}
    grads[row] = scale * share * slopes;
  `)}
  let loss = whole.x * share;`,
  };
}

const TEXTS: Readonly<Record<LossName, (pieces: Pieces) => Body>> = {
  kl: (pieces) => softmaxText(pieces, { mass: "labels[row]", term: "q * (log(max(q, 1.0e-30)) - logP)" }),
  listnet: (pieces) => softmaxText(pieces, { mass: "exp(labels[row] - top.y)", term: "-q * logP" }),
  listmle: listmleText,
  ranknet: ranknetText,
  lambdaloss: lambdalossText,
  approxndcg: approxndcgText,
  any_positive: anyPositiveText,
  bce: bceText,
};
