-- Pause or resume a whole namespace. While it is paused, no event is claimed.
--
-- Kind      once
-- Uses      types session wake
-- Commands  hdel hget hset zcount
--
-- Arguments
--   on      1 to pause, 0 to resume
--
-- Returns   1 if that changed something, else 0
local done, stale = recall()
if stale then return stale end
if done then return done end
local wrong = check_types(SYS, ROSTER, EXPECTED)
if wrong then return wrong end

local before = redis.call('HGET', SYS, 'paused') == '1'
if on == '1' then
  redis.call('HSET', SYS, 'paused', '1')
else
  redis.call('HDEL', SYS, 'paused')
  local earliest = first_due()
  if earliest then wake_next(earliest, redis.call('ZCOUNT', DUE, '-inf', digits(NOW))) end
end
local result = before == (on == '1') and '0' or '1'
remember(result)
return result
