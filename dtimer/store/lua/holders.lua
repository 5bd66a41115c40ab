-- Return how many events in flight each node holds. If there are more than `most`, count only a
-- random sample of them.
--
-- Kind      reads
-- Commands  hrandfield
--
-- Arguments
--   most    number: how many events to look at, at most
--
-- Returns   {incarnation, number, ...}: for each node, how many of its events were counted
local counts, names, reply = {}, {}, {}
local held = redis.call('HRANDFIELD', LEASE, most, 'WITHVALUES')
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
