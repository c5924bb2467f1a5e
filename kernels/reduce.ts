/** Sums over the lanes of a workgroup that serves one row: in a subgroup, or by a tree in workgroup memory. */

const TREE_LANES = 64;

export interface LaneSum {
  /** Lanes of the workgroup: with `subgroup` > 0 it is one subgroup, and the sum needs no barrier. */
  readonly lanes: number;
  /** WGSL ahead of the entry point; one for all sums of a type in a kernel. */
  readonly declarations: string;
  /** WGSL that declares `name`, the sum of `value` over all lanes, from `lane`, the lane's index. */
  readonly text: string;
}

/** The sum of a variable of a WGSL type; `name` tells several sums of one kernel apart. */
export function laneSum(subgroup: number, type: string, value: string, name = "total"): LaneSum {
  if (subgroup > 0) return { lanes: subgroup, declarations: "", text: `let ${name} = subgroupAdd(${value});` };
  return {
    lanes: TREE_LANES,
    declarations: `var<workgroup> partial: array<${type}, ${TREE_LANES}>;`,
    text: `partial[lane] = ${value};
  for (var half = ${TREE_LANES / 2}u; half > 0u; half >>= 1u) {
    workgroupBarrier();
    if (lane < half) { partial[lane] += partial[lane + half]; }
  }
  workgroupBarrier();
  let ${name} = partial[0];
  workgroupBarrier();`,
  };
}
