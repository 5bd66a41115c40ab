-- Remove a node from every list, and make sure that another node claims the next event.
--
-- Kind      idempotent
-- Roles     node
-- Uses      types wake
-- Commands  hdel hget hset zrem
--
-- Arguments
--   node    the node's incarnation
--
-- Returns   1 if it was registered, else 0
local wrong = check_types(NODES, ALIVE, ROSTER, EXPECTED, SYS)
  or check_version(redis.call('HGET', SYS, 'v'))
if wrong then return wrong end

-- Removals come first: if Redis is out of memory, it then accepts the later write.
redis.call('ZREM', ROSTER, node)
redis.call('ZREM', EXPECTED, node)
redis.call('HDEL', NODES, node)
local removed = redis.call('ZREM', ALIVE, node)
-- An upgrade waits until no node of an older version was heard of for a minute (lua/upgrade.lua).
redis.call('HSET', SYS, 'heard:' .. SCHEMA, digits(NOW))
local earliest = first_due()
if earliest then wake_next(earliest, earliest <= NOW and 1 or 0) end
return removed
