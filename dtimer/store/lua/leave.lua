-- Remove a node from every list, and make sure that another node claims the next event.
--
-- Kind      idempotent
-- Roles     node
-- Uses      guard rouse
-- Commands  hdel zrem
--
-- Arguments
--   node    the node's incarnation
--
-- Returns   1 if it was registered, else 0
local wrong = guard(NODES, ALIVE, ROSTER, PROMISE)
if wrong then return wrong end

redis.call('ZREM', ROSTER, node)
redis.call('ZREM', PROMISE, node)
redis.call('HDEL', NODES, node)
local was = redis.call('ZREM', ALIVE, node)
local earliest = first_due()
if earliest then rouse(earliest, earliest <= NOW and 1 or 0) end
return was
