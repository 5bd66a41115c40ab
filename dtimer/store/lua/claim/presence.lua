-- Record that the node has claimed now, and detect a rollback.
--
-- Commands  hexists zadd zrange zrem
-- Reads     heard node
-- Sets      before first known now second

local now = digits(NOW)
local first, second = unpack(redis.call('ZRANGE', ROSTER, '0', '1'))
-- This ZREM comes first on purpose: if Redis is out of memory, it then accepts the later writes.
redis.call('ZREM', EXPECTED, node)
-- Detect a rollback: ALIVE must still have the time of this node's previous claim, `heard`. If that
-- write is lost, all later writes are lost too (docs/decisions/10-rollbacks). ZADD INCR adds the
-- time since then to the stored time. If the stored time is `heard`, the sum is NOW. So one command
-- both checks the time and updates it.
local before = ''
local previous = tonumber(heard)
if previous then
  local sum = tonumber(redis.call('ZADD', ALIVE, 'INCR', digits(NOW - previous), node))
  if sum ~= NOW then before = digits(math.max(0, sum - (NOW - previous))) end
end
if not previous or before ~= '' then redis.call('ZADD', ALIVE, now, node) end
local known = redis.call('HEXISTS', NODES, node) == 1
