-- Delete one dead letter.
--
-- Kind      once
-- Uses      types session
-- Commands  hdel zrem
--
-- Arguments
--   id      the dead letter
--
-- Returns   1; 0 if it does not exist
local done, stale = recall()
if stale then return stale end
if done then return done end
local wrong = check_types(DEAD, DIED)
if wrong then return wrong end

redis.call('ZREM', DIED, id)
local result = digits(redis.call('HDEL', DEAD, id))
remember(result)
return result
