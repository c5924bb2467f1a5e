/** A report's folder on disk: read back what a sweep wrote. */
import { join } from "node:path";
import { z } from "zod";
import { StratumError } from "../errors.ts";
import { isJsonObject, readJsonFile } from "../weights/json.ts";
import { REPORT_FILES, REPORT_VERSION, type Report, reportSchema } from "./report-data.ts";

const FIX = "give a folder that `stratum sweep -o` has finished, or run the sweep again with the same words";
const MAX_BYTES = 2 ** 28;

/**
 * Reads `report.json` of a report's folder.
 * @throws {StratumError} `report/missing`, `report/other-version`, `report/damaged`, `file/...`
 */
export async function readReport(folder: string): Promise<Report> {
  const path = join(folder, REPORT_FILES.report);
  const what = "the report";
  const value = await readJsonFile(path, {
    ...{ what, maxBytes: MAX_BYTES, missing: "report/missing", bad: "report/damaged", fix: FIX },
  });
  if (isJsonObject(value) && value["format"] === "stratum-report" && value["version"] !== REPORT_VERSION) {
    throw new StratumError(
      "report/other-version",
      `${path} has version ${JSON.stringify(value["version"])}; this program reads version ${REPORT_VERSION}`,
      "use the version of stratum that wrote it, or run the sweep again in another folder",
    );
  }
  const parsed = reportSchema.safeParse(value);
  if (parsed.success) return parsed.data;
  throw new StratumError("report/damaged", `${path} is no report: ${z.prettifyError(parsed.error)}`, FIX, parsed.error);
}
