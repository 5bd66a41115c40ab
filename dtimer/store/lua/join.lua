-- Register a node, and forget those that have been silent for long.
--
-- Uses      guard rouse events
--
-- ARGV[3]   the node's incarnation
-- ARGV[4]   who that is, as JSON: id, host, pid
-- ARGV[5]   how long a silent node is remembered, in µs
-- ARGV[6]   1: change who it is where it is registered, and register nobody
--
-- Returns   how many nodes there are
local wrong = guard(DUE, SYS, NODES, ALIVE, ROSTER, PROMISE)
if wrong then return wrong end

-- Redis allows this when it is out of memory, and with it what follows.
redis.call('ZREM', PROMISE, '')
local silent = redis.call('ZRANGEBYSCORE', ALIVE, '-inf', digits(NOW - tonumber(ARGV[5])),
  'LIMIT', 0, 200)
if #silent > 0 then
  redis.call('ZREM', ALIVE, unpack(silent))
  redis.call('HDEL', NODES, unpack(silent))
  redis.call('ZREM', ROSTER, unpack(silent))
  redis.call('ZREM', PROMISE, unpack(silent))
  -- So that who finds himself gone knows whether it can have been for this.
  count('struck', #silent)
  -- One of them may have been on duty.
  local earliest = first_due()
  if earliest then rouse(earliest, 0) end
end
local was = redis.call('HGET', NODES, ARGV[3])
if ARGV[6] == '1' and not was then return redis.call('ZCARD', ALIVE) end
-- A node that says more of itself joined when it did.
local since = was and was:match('^%d+') or digits(NOW)
redis.call('HSET', NODES, ARGV[3], since .. '|' .. ARGV[4])
redis.call('ZADD', ALIVE, digits(NOW), ARGV[3])
return redis.call('ZCARD', ALIVE)
