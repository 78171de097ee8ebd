/**
 * Server-sent events out of a body that arrives in pieces. (The browser's EventSource can only GET.)
 */

/** @typedef {{event: string, data: any}} ServerEvent */

/**
 * @param {AsyncIterable<Uint8Array> | ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<ServerEvent>}
 */
export async function* serverEvents(body) {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const bytes of chunks(body)) {
    rest += decoder.decode(bytes, { stream: true });
    const blocks = rest.split(/\r?\n\r?\n/);
    rest = /** @type {string} */ (blocks.pop());
    for (const block of blocks) {
      const found = parse(block);
      if (found) yield found;
    }
  }
}

/** @param {any} body */
async function* chunks(body) {
  if (!body.getReader) {
    yield* body;
    return;
  }
  const reader = body.getReader(); // Safari's streams cannot be iterated
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** @param {string} block @returns {ServerEvent | null} null for comments */
function parse(block) {
  let event = "message";
  const data = [];
  for (const line of block.split(/\r?\n/)) {
    if (line.startsWith("event:")) event = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
  }
  return data.length ? { event, data: JSON.parse(data.join("\n")) } : null;
}
