-- Delete dead letters that are too many or too old, a limited number in one call.
--
-- Kind      once
-- Roles     node
-- Uses      types session
-- Commands  hdel zcard zrange zrangebyscore zrem
--
-- Arguments
--   keep    number: how many may stay
--   age     number: how old they may be, in µs; -1 for any age
--
-- Returns   how many were deleted; call again until it is 0
local MOST = 500
local done, stale = recall()
if stale then return stale end
if done then return done end
local wrong = check_types(DEAD, DIED)
if wrong then return wrong end

local over = redis.call('ZCARD', DIED) - keep
local ids = {}
if over > 0 then
  ids = redis.call('ZRANGE', DIED, 0, math.min(over, MOST) - 1)
elseif age >= 0 then
  ids = redis.call('ZRANGEBYSCORE', DIED, '-inf', digits(NOW - age),
    'LIMIT', 0, MOST)
end
if #ids > 0 then
  redis.call('ZREM', DIED, unpack(ids))
  redis.call('HDEL', DEAD, unpack(ids))
else
  -- Let Redis accept the later writes if it is out of memory (parts/types.lua).
  redis.call('ZREM', DIED, '')
end
remember(digits(#ids))
return digits(#ids)
