-- Pause or resume a whole namespace. While it is paused, no event is claimed.
--
-- Kind      once
-- Uses      guard session rouse
-- Commands  hdel hget hset zcount
--
-- Arguments
--   on      1 to pause, 0 to resume
--
-- Returns   1 if that changed something, else 0
local done, stale = recall()
if stale then return stale end
if done then return done end
-- `wrong` is an error reply if a key has the wrong type. `rouse` below uses ROSTER and PROMISE, the
-- times at which nodes are expected to claim.
local wrong = guard(SYS, ROSTER, PROMISE)
if wrong then return wrong end

local before = redis.call('HGET', SYS, 'paused') == '1'
if on == '1' then
  redis.call('HSET', SYS, 'paused', '1')
else
  redis.call('HDEL', SYS, 'paused')
  local earliest = first_due()
  if earliest then rouse(earliest, redis.call('ZCOUNT', DUE, '-inf', digits(NOW))) end
end
local result = before == (on == '1') and '0' or '1'
remember(result)
return result
