-- Load the candidates, as many as fit into the reply.
--
-- Commands  hmget hstrlen
-- Reads     candidates ids most_bytes
-- Sets      bodies leases tries

for i = 1, #candidates, 2 do ids[#ids + 1] = candidates[i] end
-- Measure each body before loading it, because a payload may be of any size. The first is always
-- loaded, and the others while the total stays within the limit.
local bodies
if #ids == 1 then
  bodies = redis.call('HMGET', BODY, ids[1])
else
  local bytes = 0
  for i, id in ipairs(ids) do
    bytes = bytes + redis.call('HSTRLEN', BODY, id)
    if bytes > most_bytes and i > 1 then
      for last = #ids, i, -1 do ids[last] = nil end
      break
    end
  end
  bodies = redis.call('HMGET', BODY, unpack(ids))
end
local leases = redis.call('HMGET', LEASE, unpack(ids))
local tries = redis.call('HMGET', TRIES, unpack(ids))
