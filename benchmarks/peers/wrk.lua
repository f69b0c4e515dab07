-- Posts the files that are its arguments in turn and prints one line of JSON at the end.
local requests, sent = {}, 0

function init(args)
  for i = 1, #args do
    local file = assert(io.open(args[i], "rb"))
    requests[i] = wrk.format("POST", nil, nil, file:read("*a"))
    file:close()
  end
end

function request()
  sent = sent % #requests + 1
  return requests[sent]
end

function done(summary, latency, _)
  local e = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "seconds": %.6f, "p50": %.3f, "p99": %.3f, "mean": %.3f, "errors": %d}\n',
    summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.mean / 1e3,
    e.connect + e.read + e.write + e.status + e.timeout
  ))
end
