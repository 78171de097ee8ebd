/** One turn of the conversation as a program in three languages. Texts only; a test runs them. */

/**
 * @typedef {object} Call
 * @property {string} server "http://127.0.0.1:8000"
 * @property {string} file name of the picture
 * @property {string} prompt
 * @property {string} mode
 * @property {{prompt: string, mode: string, raw_text: string}[]} history earlier turns
 * @property {boolean} key whether the server asks for one
 */

/** What the tabs say, in their order. @type {Record<string, (call: Call) => string>} */
export const SNIPPETS = { curl, Python: python, JavaScript: javascript };

/** For a POSIX shell. @param {string} text */
const shell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/** @param {Call} call */
function question({ prompt, mode, history }) {
  return { prompt, mode, ...(history.length && { history }) };
}

/** @param {Call} call */
function curl(call) {
  const key = call.key ? ` -H "Authorization: Bearer $LISASEG_KEY"` : "";
  const body = shell(JSON.stringify({ image_id: "@", ...question(call) })).replace('"@"', `"'"$IMAGE"'"`);
  return [
    "# send the picture once",
    `IMAGE=$(curl -sS${key} ${call.server}/v1/images -F ${shell(`file=@"${call.file}"`)} |`,
    `  python3 -c 'import json, sys; print(json.load(sys.stdin)["id"])')`,
    "",
    "# ask as often as you like",
    `curl -sS${key} ${call.server}/v1/segment -H 'Content-Type: application/json' \\`,
    `  -d ${body}`,
  ].join("\n");
}

/** @param {Call} call */
function python(call) {
  const key = call.key ? ', os.environ["LISASEG_KEY"]' : "";
  const say = ({ prompt, mode }) => `chat.ask(${JSON.stringify(prompt)}${mode === "auto" ? "" : `, mode="${mode}"`})`;
  return [
    ...(call.key ? ["import os", ""] : []),
    "import lisaseg",
    "",
    `model = lisaseg.Client("${call.server}"${key})`,
    `chat = model.chat(${JSON.stringify(call.file)})`,
    ...call.history.map(say),
    `answer = ${say(call)}`,
    "",
    "print(answer.text)",
    "for segment in answer.segments:",
    "    print(segment.phrase, segment.box, segment.mask.shape)",
    'answer.save("out")',
  ].join("\n");
}

/** @param {Call} call */
function javascript(call) {
  const key = call.key ? "Authorization: `Bearer ${process.env.LISASEG_KEY}`" : "";
  const fields = JSON.stringify(question(call), null, 2).slice(1, -1).trim();
  return [
    `const server = "${call.server}";`,
    "const form = new FormData();",
    `const file = await (await import("node:fs")).openAsBlob(${JSON.stringify(call.file)}); // in a page: input.files[0]`,
    `form.append("file", file, ${JSON.stringify(call.file)});`,
    `const sent = await fetch(\`\${server}/v1/images\`, { method: "POST", body: form${key && `, headers: { ${key} }`} });`,
    "const image = await sent.json();",
    "",
    "const response = await fetch(`${server}/v1/segment`, {",
    '  method: "POST",',
    `  headers: { "Content-Type": "application/json"${key && `, ${key}`} },`,
    "  body: JSON.stringify({",
    "    image_id: image.id,",
    ...fields.split("\n").map((line) => `    ${line.trimStart().length < line.length ? line.replace(/^ {2}/, "") : line}`),
    "  }),",
    "});",
    "const answer = await response.json();",
    "console.log(answer.text, answer.segments.map((segment) => segment.box_xyxy));",
  ].join("\n");
}
