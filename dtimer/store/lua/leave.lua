-- Remove a node from every list, and make sure that another node claims the next event.
--
-- Kind      idempotent
-- Roles     node
-- Uses      types wake
-- Commands  hdel zrem
--
-- Arguments
--   node    the node's incarnation
--
-- Returns   1 if it was registered, else 0
local wrong = check_types(NODES, ALIVE, ROSTER, EXPECTED)
if wrong then return wrong end

redis.call('ZREM', ROSTER, node)
redis.call('ZREM', EXPECTED, node)
redis.call('HDEL', NODES, node)
local removed = redis.call('ZREM', ALIVE, node)
local earliest = first_due()
if earliest then wake_next(earliest, earliest <= NOW and 1 or 0) end
return removed
