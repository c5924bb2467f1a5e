/** Who has the least so far: of any number, found in a time that hardly grows with it. */

export interface Loads {
  /** Gives some more to whoever has the least; where several have, to the one with the lowest number. @returns its number */
  give(amount: number): number;
}

/** @param count numbers from 0; none has anything */
export function createLoads(count: number): Loads {
  const loads = new Float64Array(count);
  // A heap: nobody comes before the one at half their place. While none has anything, that is their order.
  const heap = Uint32Array.from({ length: count }, (_, i) => i);
  const before = (a: number, b: number) => loads[a] < loads[b] || (loads[a] === loads[b] && a < b);
  return {
    give(amount) {
      const least = heap[0];
      loads[least] += amount;
      let place = 0;
      for (let child = 1; child < count; child = 2 * place + 1) {
        if (child + 1 < count && before(heap[child + 1], heap[child])) child++;
        if (before(least, heap[child])) break;
        heap[place] = heap[child];
        place = child;
      }
      heap[place] = least;
      return least;
    },
  };
}
