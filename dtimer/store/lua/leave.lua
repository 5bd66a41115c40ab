-- Remove a node from every list, and make sure that another node claims the next event.
--
-- Uses      guard rouse
--
-- ARGV[3]   the node's incarnation
--
-- Returns   1 if it was registered, else 0
local wrong = guard(NODES, ALIVE, ROSTER, PROMISE)
if wrong then return wrong end

redis.call('ZREM', ROSTER, ARGV[3])
redis.call('ZREM', PROMISE, ARGV[3])
redis.call('HDEL', NODES, ARGV[3])
local was = redis.call('ZREM', ALIVE, ARGV[3])
local earliest = first_due()
if earliest then rouse(earliest, earliest <= NOW and 1 or 0) end
return was
