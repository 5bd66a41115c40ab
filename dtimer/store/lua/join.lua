-- Register a node, and remove those that have been silent for long.
--
-- Kind      idempotent
-- Roles     node
-- Uses      types wake events
-- Commands  hdel hget hset zadd zcard zrangebyscore zrem
--
-- Arguments
--   node          the node's incarnation
--   description   what it says about itself, as JSON
--   silent_after  number: how long a silent node is remembered, in µs
--
-- Returns   how many nodes there are
local wrong = check_types(DUE, SYS, NODES, ALIVE, ROSTER, EXPECTED)
  or check_version(redis.call('HGET', SYS, 'v'))
if wrong then return wrong end

-- Let Redis accept the later writes if it is out of memory (parts/types.lua).
redis.call('ZREM', EXPECTED, '')
local silent = redis.call('ZRANGEBYSCORE', ALIVE, '-inf', digits(NOW - silent_after),
  'LIMIT', 0, 200)
if #silent > 0 then
  redis.call('ZREM', ALIVE, unpack(silent))
  redis.call('HDEL', NODES, unpack(silent))
  redis.call('ZREM', ROSTER, unpack(silent))
  redis.call('ZREM', EXPECTED, unpack(silent))
  -- A node that is no longer registered reads this total to learn whether silence can be the
  -- cause.
  count('struck', #silent)
  -- One of the removed nodes may have been on duty.
  local earliest = first_due()
  if earliest then wake_next(earliest, 0) end
end
-- A node that registers again keeps its time of joining.
local joined = string.match(redis.call('HGET', NODES, node) or '', '^%d+') or digits(NOW)
redis.call('HSET', NODES, node, write_registration(joined, description))
redis.call('ZADD', ALIVE, digits(NOW), node)
return redis.call('ZCARD', ALIVE)
