-- Move a scheduled event to another time. An event in flight has already started, and a dead letter
-- is not scheduled, so neither is changed.
--
-- Uses      guard session rouse
--
-- ARGV[3]   id
-- ARGV[4]   when: '+<µs>' from now, or '<µs>' since the epoch; a past time means now
--
-- Returns   1 if it was moved, else 0
local id = ARGV[3]
local done, stale = recall()
if stale then return stale end
if done then return done end

local wrong = guard(DUE, LEASE, ROSTER, PROMISE)
if wrong then return wrong end

local result = '0'
if redis.call('ZSCORE', DUE, id) and redis.call('HEXISTS', LEASE, id) == 0 then
  local when = tonumber(ARGV[4])
  if string.sub(ARGV[4], 1, 1) == '+' then when = NOW + tonumber(string.sub(ARGV[4], 2)) end
  when = math.max(when, NOW)
  redis.call('ZADD', DUE, 'XX', digits(when), id)
  if when <= first_due() then rouse(when, when <= NOW and 1 or 0) end
  result = '1'
end
remember(result)
return result
