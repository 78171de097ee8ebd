/**
 * The objects of docs/api.md, and those of the page. Types only.
 *
 * @typedef {"auto" | "segment" | "explain" | "text" | "instances" | "explain_instances" | "reason"} Mode
 * @typedef {import("./rle.js").Rle} Rle
 * @typedef {{index: number, phrase: string, span: [number, number], box_xyxy: number[], area: number, score: number | null, mask: Rle}} Segment
 * @typedef {{id?: string, text: string, raw_text: string, status: string, mode: Mode, instruction: string, model: string, segments: Segment[],
 *   image: {id?: string, width: number, height: number}, usage: Record<string, number>, timings_ms: Record<string, number>,
 *   warnings: {code: string, message: string}[]}} Answer
 * @typedef {{prompt: string, mode: Mode, raw_text: string, answer: Answer | null}} ServerTurn
 *
 * @typedef {"waiting" | "streaming" | "done" | "stopped" | "failed"} TurnState
 * @typedef {{key: string, prompt: string, mode: Mode, state: TurnState, text: string, segments: Segment[], answer: Answer | null, notice: string,
 *   problem: import("./errors.js").Problem | null, recorded?: boolean}} Turn
 *   notice: what the reader should know while waiting; recorded: the answer was made beforehand
 * @typedef {{name: string, blob: Blob, bitmap: ImageBitmap | null, width: number, height: number, id: string | null, notes: string[]}} Picture
 * @typedef {{id: string, number: number, turn: number, segment: Segment, name: string, label: string, hidden: boolean, share: number}} Layer
 *   number: counted through the conversation, from 1; turn: from 0; name: given by the reader; label: name, phrase or "mask 3"; share: of the picture, 0-1
 */
export {};
