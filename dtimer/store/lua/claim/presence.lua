-- Record that the node has claimed now, and detect a rollback.
--
-- Commands  hexists zadd zrange zrem
-- Reads     heard hears lags limit node
-- Sets      before first first_place known now other other_lags second second_place

local now = digits(NOW)
local first, first_place, second, second_place =
  unpack(redis.call('ZRANGE', ROSTER, '0', '1', 'WITHSCORES'))
-- This ZREM comes first on purpose: if Redis is out of memory, it then accepts the later writes.
redis.call('ZREM', EXPECTED, node)
-- The first of the other nodes on the roster.
local other, other_lags = first, false
if first == node then other = second end
if other then
  other_lags = tonumber(first == node and second_place or first_place) >= BEHIND
  if other_lags and not lags and hears and limit > 0 and tonumber(first_place) >= BEHIND then
    -- This node is the first on the roster that is on time. Keep no event for those that lag.
    redis.call('ZREM', EXPECTED, '', unpack(redis.call('ZRANGE', EXPECTED, '0', '99')))
  end
end
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
