// Which networks the service has loaded. It is asked when this is first needed, and again if an answer does not fit.

import { models } from "./ask.js";

let networks = null; // as the last answer has them
let asking = null; // the current request, which all callers share
let tell = () => {};

/** Calls `listener` with the networks each time the service has said which they are. */
export function whenAsked(listener) {
  tell = listener;
}

/** The networks that are known. If none are, the service is asked. */
export const known = async () => networks ?? refresh();

/** The networks as the service has them now. */
export function refresh() {
  asking ??= models()
    .then((answer) => tell((networks = answer.models)) ?? networks)
    .finally(() => (asking = null));
  return asking;
}

/** The networks that gave the results of /compare. The service may have loaded others since it was last asked. */
export async function behind(results) {
  const before = await known();
  const same = ({ model, version }) => results[model] && (results[model].error || results[model].version === version);
  return before.length === Object.keys(results).length && before.every(same) ? before : refresh();
}
