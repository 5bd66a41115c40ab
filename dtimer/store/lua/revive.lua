-- Make a dead letter a pending event again: due now, without its past attempts and its expiry.
--
-- Kind      once
-- Uses      types session wake events
-- Commands  hdel hget hset zadd zrem
--
-- Arguments
--   id      the dead letter
--
-- Returns   1; 0 if the letter does not exist, or if its body is not an event
local done, stale = recall()
if stale then return stale end
if done then return done end

local wrong = check_types(DUE, BODY, DEAD, DIED, SYS, ROSTER, EXPECTED)
if wrong then return wrong end

local result = '0'
local letter = redis.call('HGET', DEAD, id)
if letter then
  local body = body_of_letter(letter)
  local _, max_retries = parse_body(body)
  if max_retries then
    redis.call('ZADD', DUE, digits(NOW), id)
    redis.call('HSET', BODY, id, revived_body(body))
    redis.call('HDEL', DEAD, id)
    redis.call('ZREM', DIED, id)
    count('revived', 1)
    wake_next(first_due(), 1)
    result = '1'
  end
end
remember(result)
return result
