-- Register a node, and remove those that have been silent for long.
--
-- Kind      idempotent
-- Roles     node
-- Uses      guard rouse events
-- Commands  hdel hget hset zadd zcard zrangebyscore zrem
--
-- Arguments
--   node          the node's incarnation
--   description   its id, host and pid, as JSON
--   silent_after  number: how long a silent node is remembered, in µs
--   update        1 to update the JSON of a registered node, and not to register a new one
--
-- Returns   how many nodes there are
local wrong = guard(DUE, SYS, NODES, ALIVE, ROSTER, PROMISE)
if wrong then return wrong end

-- This ZREM removes nothing. If Redis is out of memory, it allows a ZREM as the first write of a
-- script, and then all later writes of that script.
redis.call('ZREM', PROMISE, '')
local silent = redis.call('ZRANGEBYSCORE', ALIVE, '-inf', digits(NOW - silent_after),
  'LIMIT', 0, 200)
if #silent > 0 then
  redis.call('ZREM', ALIVE, unpack(silent))
  redis.call('HDEL', NODES, unpack(silent))
  redis.call('ZREM', ROSTER, unpack(silent))
  redis.call('ZREM', PROMISE, unpack(silent))
  -- A node that is no longer registered reads this total to learn whether silence can be the
  -- cause.
  count('struck', #silent)
  -- One of the removed nodes may have been on duty.
  local earliest = first_due()
  if earliest then rouse(earliest, 0) end
end
local was = redis.call('HGET', NODES, node)
if update == '1' and not was then return redis.call('ZCARD', ALIVE) end
-- A node that only updates its JSON keeps its time of joining.
local since = was and was:match('^%d+') or digits(NOW)
redis.call('HSET', NODES, node, since .. '|' .. description)
-- Only its claims update the time of a registered node. If the server loses the last claim, the node
-- detects the rollback by this time.
if update ~= '1' then redis.call('ZADD', ALIVE, digits(NOW), node) end
return redis.call('ZCARD', ALIVE)
