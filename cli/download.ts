/** What a download shows on stderr: what is fetched, then a bar where it is a terminal, else a line now and then. */
import { SingleBar } from "cli-progress";
import type { HubProgress } from "../weights/hub.ts";
import { formatBytes, formatSeconds } from "./format.ts";
import { isQuiet, LINE_MS, note } from "./terminal.ts";

export interface DownloadDisplay {
  onProgress(progress: HubProgress): void;
  onNote(text: string): void;
  /** Takes the bar away; again is no error. */
  stop(): void;
}

/** Between two redraws of the bar's text. */
const DRAW_MS = 100;

/** Shows the downloads of one model. */
export function showDownload(): DownloadDisplay {
  let files: readonly string[] | undefined;
  let bar: SingleBar | undefined;
  let begin = 0;
  let resumedAt = 0;
  let shown = 0;

  function stop(): void {
    bar?.stop();
    bar = undefined;
  }

  function start({ model, folder, files: all, doneAll, totalAll }: HubProgress): void {
    stop();
    const first = files === undefined;
    [files, begin, resumedAt, shown] = [all, performance.now(), doneAll, performance.now()];
    // Another process, which was waited for, has fetched it all.
    if (first && doneAll === totalAll) return;
    const what = all.length === 1 ? all[0] : `${all.length} files`;
    const there = doneAll > 0 && doneAll < totalAll ? `, ${formatBytes(doneAll)} of them are there already` : "";
    note(`download ${model}: ${what}, ${formatBytes(totalAll)}${there}, to ${folder}`);
    if (isQuiet() || !process.stderr.isTTY) return;
    bar = new SingleBar({
      stream: process.stderr,
      format: "{bar} {done} of {all} · {rate}/s · {left} left · {file}",
      barCompleteChar: "█",
      barIncompleteChar: "░",
      barsize: 28,
      hideCursor: true,
      clearOnComplete: true,
    });
    bar.start(totalAll, doneAll, {
      done: formatBytes(doneAll),
      all: formatBytes(totalAll),
      rate: "-",
      left: "-",
      file: "",
    });
  }

  return {
    onProgress(progress) {
      if (progress.files !== files) start(progress);
      const { file, doneAll, totalAll } = progress;
      const now = performance.now();
      const rate = Math.round((doneAll - resumedAt) / Math.max(0.001, (now - begin) / 1000));
      if (bar !== undefined && now - shown >= DRAW_MS) {
        shown = now;
        const left = rate > 0 ? formatSeconds((totalAll - doneAll) / rate) : "-";
        bar.update(doneAll, {
          done: formatBytes(doneAll),
          all: formatBytes(totalAll),
          rate: formatBytes(rate),
          left,
          file,
        });
      } else if (bar === undefined && now - shown >= LINE_MS) {
        shown = now;
        note(`download ${file}: ${formatBytes(doneAll)} of ${formatBytes(totalAll)}, ${formatBytes(rate)}/s`);
      }
      if (doneAll === totalAll) stop();
    },
    onNote(text) {
      // The next report draws the bar again, below the note.
      stop();
      files = undefined;
      note(`note    ${text}`);
    },
    stop,
  };
}
