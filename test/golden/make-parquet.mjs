// Writes the Parquet files of test/golden/import with DuckDB, a writer that shares no code with our reader:
//   npm install --prefix /tmp/duckdb @duckdb/node-api@1.5.6-r.1 && NODE_PATH=/tmp/duckdb/node_modules node test/golden/make-parquet.mjs
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";

const { DuckDBInstance } = createRequire(`${process.env.NODE_PATH}/`)("@duckdb/node-api");
const connection = await (await DuckDBInstance.create(":memory:")).connect();
const file = (name) => fileURLToPath(new URL(`import/${name}`, import.meta.url));

// UltraFeedback's columns: prompt, and conversations as lists of structs. Two row groups would need 2,048 rows and more.
await connection.run(`
  create table pairs as select * from (values
    ('How do I put out a pan fire?', [{'role': 'user', 'content': 'How do I put out a pan fire?'}, {'role': 'assistant', 'content': 'Cover it with a lid.'}],
     [{'role': 'user', 'content': 'How do I put out a pan fire?'}, {'role': 'assistant', 'content': 'Pour water on it.'}], 9.5, 7::bigint),
    ('Why is the sky blue? ☀', [{'role': 'user', 'content': 'Why is the sky blue? ☀'}, {'role': 'assistant', 'content': 'Short waves scatter most.'}],
     [{'role': 'user', 'content': 'Why is the sky blue? ☀'}, {'role': 'assistant', 'content': 'It mirrors the sea.'}], null, 8::bigint)
  ) as t(prompt, chosen, rejected, score_chosen, n)`);
// PKU-SafeRLHF's columns, enough rows for several row groups.
await connection.run(`
  create table safe as select 'question ' || (i // 2) as prompt, 'answer a' || i as response_0, 'answer b' || i as response_1,
    i % 3 = 0 as is_response_0_safe, i % 2 = 0 as is_response_1_safe, (i % 2)::bigint as safer_response_id
  from range(6000) r(i)`);
for (const codec of ["snappy", "zstd", "gzip", "uncompressed"])
  await connection.run(`copy pairs to '${file(`pairs-${codec}.parquet`)}' (format parquet, compression ${codec})`);
await connection.run(`copy safe to '${file("safe-zstd.parquet")}' (format parquet, compression zstd, row_group_size 2048)`);
