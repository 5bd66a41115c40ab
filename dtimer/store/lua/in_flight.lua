-- Return events in flight. If there are more than `most`, return a random sample of them.
--
-- Kind      reads
-- Commands  hget hrandfield zscore
--
-- Arguments
--   most    number: how many events to look at, at most
--
-- Returns   {id, token, attempt, due, cancelled, incarnation, ends, registration, ...}
--   due           when the attempt became due, in µs
--   cancelled     1 if it was cancelled, else ''
--   ends          when its lease ends, in µs
--   registration  that of the node (parts/format.lua); '' if it is not registered
local held, registrations, reply = redis.call('HRANDFIELD', LEASE, most, 'WITHVALUES'), {}, {}
for i = 1, #held, 2 do
  local token, attempt, due, cancelled, node = parse_lease(held[i + 1])
  if token then
    registrations[node] = registrations[node] or redis.call('HGET', NODES, node) or ''
    for _, v in ipairs({held[i], token, digits(attempt), due, cancelled and '1' or '', node,
      redis.call('ZSCORE', DUE, held[i]) or '0', registrations[node]}) do
      reply[#reply + 1] = v
    end
  end
end
return reply
