-- Make dead letters pending events again: due now, without their past attempts, their
-- first snooze and their expiry.
--
-- Kind      once
-- Uses      types session wake events
-- Commands  hdel hget hset zadd zrem
--
-- Arguments
--   reason  revive only letters with this reason; '' for any
--   ids...  the dead letters
--
-- Returns   one digit for each: 1 if it was revived; 0 if the letter does not exist, has another
--           reason, or has a body that is not an event
local done, stale = recall()
if stale then return stale end
if done then return done end

local wrong = check_types(DUE, BODY, DEAD, DIED, SYS, ROSTER, EXPECTED)
if wrong then return wrong end

local digits_of, revived = {}, 0
for i = ids, #ARGV do
  local id, result = ARGV[i], '0'
  local letter = redis.call('HGET', DEAD, id)
  if letter and (reason == '' or reason_of_letter(letter) == reason) then
    local body = body_of_letter(letter)
    local _, max_retries = parse_body(body)
    if max_retries then
      redis.call('ZADD', DUE, digits(NOW), id)
      redis.call('HSET', BODY, id, revived_body(without_snooze(body) or body))
      redis.call('HDEL', DEAD, id)
      redis.call('ZREM', DIED, id)
      revived = revived + 1
      result = '1'
    end
  end
  digits_of[#digits_of + 1] = result
end
count('revived', revived)
if revived > 0 then wake_next(first_due(), revived) end
local result = table.concat(digits_of)
remember(result)
return result
