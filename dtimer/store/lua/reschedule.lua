-- Move a waiting event to another time. An event in flight has already started, and a dead letter
-- is not scheduled, so neither is changed.
--
-- Kind      once
-- Roles     producer
-- Uses      types session wake events
-- Commands  hexists zadd zscore
--
-- Arguments
--   id      the event
--   when    '+<µs>' from now, or '<µs>' since the epoch; a past time means now
--
-- Returns   1 if it was moved, else 0
local done, stale = recall()
if stale then return stale end
if done then return done end

local wrong = check_types(DUE, LEASE, SYS, ROSTER, EXPECTED)
if wrong then return wrong end

local result = '0'
if redis.call('ZSCORE', DUE, id) and redis.call('HEXISTS', LEASE, id) == 0 then
  local moment = tonumber(when)
  if string.sub(when, 1, 1) == '+' then moment = NOW + tonumber(string.sub(when, 2)) end
  moment = math.max(moment, NOW)
  redis.call('ZADD', DUE, 'XX', digits(moment), id)
  count('moved', 1)
  if moment <= first_due() then wake_next(moment, moment <= NOW and 1 or 0) end
  result = '1'
end
remember(result)
return result
