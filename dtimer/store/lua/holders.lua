-- Return how many events in flight each node holds. If there are more than ARGV[3], count only a
-- random sample of them.
--
-- Uses      events
--
-- ARGV[3]   how many events to look at, at most
--
-- Returns   for each node: incarnation, number of its events that were counted
local counts, names, reply = {}, {}, {}
local held = redis.call('HRANDFIELD', LEASE, tonumber(ARGV[3]), 'WITHVALUES')
for i = 2, #held, 2 do
  local _, _, _, _, node = parse_lease(held[i])
  if node then
    if not counts[node] then names[#names + 1] = node end
    counts[node] = (counts[node] or 0) + 1
  end
end
for _, node in ipairs(names) do
  reply[#reply + 1] = node
  reply[#reply + 1] = counts[node]
end
return reply
