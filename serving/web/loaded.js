// Which networks the service has loaded: asked for when first needed, and again if an answer does not fit what is known.

import { models } from "./ask.js";

let networks = null; // as the last answer has them
let asking = null; // the question under way, one for all who wait
let tell = () => {};

/** Calls `listener` with the networks each time the service has said which they are. */
export function whenAsked(listener) {
  tell = listener;
}

/** The networks as they are known; the service is asked if they are not. */
export const known = async () => networks ?? refresh();

/** The networks as the service has them now. */
export function refresh() {
  asking ??= models()
    .then((answer) => tell((networks = answer.models)) ?? networks)
    .finally(() => (asking = null));
  return asking;
}

/** The networks that gave the results of /compare: the service may have loaded others since it was asked. */
export async function behind(results) {
  const before = await known();
  const same = ({ model, version }) => results[model] && (results[model].error || results[model].version === version);
  return before.length === Object.keys(results).length && before.every(same) ? before : refresh();
}
